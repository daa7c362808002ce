"""The lists of sigmas that samplers walk down.

A list holds Python floats, each exact in float32, strictly decreasing; the last is 0 (a list of the user's own may end above 0, and so
does one kind of kl_optimal). It has steps + 1 of them, but for the few schedules that take as many of the table's entries as fit. Lists
are computed in float32 by the operations of k-diffusion and ComfyUI, so that the bits agree, and in float64 where diffusers does so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ldm.diffusion import beta, names
from ldm.diffusion.rounding import nearest
from ldm.diffusion.table import LAST_ALPHA, STEPS, SigmaTable
from ldm.errors import InputError
from ldm.limits import HIGHEST_SIGMA

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile

MAX_STEPS = 1000  # of a sampling run
_ROUNDED = (0.0292, 14.6146)  # the ends as sgm's interface has them
_SHAPE = (0.6, 0.6)  # of the Beta distribution: Lee et al. 2024, "Beta Sampling is All You Need"
_THRESHOLD = 0.025  # share of sigma that the linear half of linear_quadratic goes down
# Sabour et al. 2024, "Align Your Steps": the lists of 10 steps, as published and in ComfyUI's full digits.
_ALIGNED = {
    ("sdxl", "n-then-zero"): (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    ("sd15", "n-then-zero"): (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    ("sdxl", "last-to-zero"): (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
    ("sd15", "last-to-zero"): (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
}  # fmt: skip


class Asked(NamedTuple):
    """A list that is asked for: n sigmas above 0 of a table, by a profile's rules."""

    n: int
    table: SigmaTable
    profile: Profile
    whole: bool = False  # for one of the profile's `whole_steps`

    @property
    def dtype(self) -> torch.dtype:
        """In which lists are computed: numpy's where the engine is diffusers."""
        return torch.float64 if self.profile.alphas == "float32-betas" else torch.float32

    def ends(self) -> tuple[float, float]:
        """(low, high) of the schedules that fill a range."""
        if self.profile.karras_range == "rounded":
            return _ROUNDED
        if self.profile.karras_range == "model" or self.whole:
            return self.table.low, self.table.high
        spaced = _normal(self)
        return float(spaced[-1]), float(spaced[0])

    def ramp(self) -> Tensor:
        """0 to 1, (n,)."""
        return torch.linspace(0, 1, self.n, dtype=self.dtype)


# One function a schedule: -> its sigmas > 0, descending.


def _karras(asked: Asked) -> Tensor:
    """Karras et al. 2022, eq. 5."""
    rho = float(asked.profile.karras_rho)
    low, high = (end ** (1 / rho) for end in asked.ends())
    roots: Tensor = high + asked.ramp() * (low - high)
    return roots.pow(rho)


def _exponential(asked: Asked) -> Tensor:
    """Evenly spaced in log sigma."""
    low, high = asked.ends()
    return torch.linspace(math.log(high), math.log(low), asked.n, dtype=asked.dtype).exp()


def _polyexponential(asked: Asked) -> Tensor:
    """k-diffusion's ramp in log sigma to the power rho, at its default of 1, so `exponential` but for the last bits."""
    low, high = asked.ends()
    ramp = torch.linspace(1, 0, asked.n, dtype=asked.dtype)
    return (ramp * (math.log(high) - math.log(low)) + math.log(low)).exp()


def _normal(asked: Asked) -> Tensor:
    """The training steps themselves, spaced by the profile's rule."""
    spacing = asked.profile.spacing
    t = timesteps(asked.n, spacing, whole=asked.whole)
    return asked.table.at(t.float()) if spacing == "linspace-log" else asked.table.at_linear(t)


def _sgm_uniform(asked: Asked) -> Tensor:
    """n + 1 steps evenly from t = 999 to 0, the last left out."""
    return asked.table.at(torch.linspace(STEPS - 1, 0, asked.n + 1)[:-1])


def _simple(asked: Asked) -> Tensor:
    """Every (1000 / n)-th entry of the table, from its end."""
    stride = STEPS / asked.n
    return asked.table.sigmas[[STEPS - 1 - int(k * stride) for k in range(asked.n)]]


def _trailing(asked: Asked) -> Tensor:
    """Whole training steps, evenly from t = 999 down: what models distilled to few steps are made for (diffusers' "trailing")."""
    return asked.table.at_linear(timesteps(asked.n, "trailing"))


def _ddim_uniform(asked: Asked) -> Tensor:
    """Every (1000 // n)-th entry of the table from t = 1 up: n of them or more, starting below the table's end."""
    return asked.table.sigmas[1 :: max(STEPS // asked.n, 1)].flip(0)


def _beta(asked: Asked) -> Tensor:
    """Steps at the quantiles of a Beta distribution, dense at both ends.

    "timesteps": n quantiles below 1 of the training steps, rounded, each taken once; "sigmas": n from 1 to 0 of the range of sigma.
    """
    if asked.profile.beta == "timesteps":
        ts = [round(beta.quantile(1 - k / asked.n, *_SHAPE) * (STEPS - 1)) for k in range(asked.n)]
        return asked.table.sigmas[list(dict.fromkeys(ts))]
    low, high = asked.ends()
    shares = [beta.quantile(1 - k / max(asked.n - 1, 1), *_SHAPE) for k in range(asked.n)]
    return low + torch.tensor(shares, dtype=torch.float64) * (high - low)


def _kl_optimal(asked: Asked) -> Tensor:
    """Evenly spaced in arctan(sigma): least bound of the KL divergence for Gaussian data (Sabour et al. 2024)."""
    low, high = (math.atan(end) for end in asked.ends())
    count = asked.n + (asked.profile.kl_optimal == "to-low")
    u = torch.arange(count) / max(count - 1, 1)
    return (u * low + (1 - u) * high).tan()


def _align_your_steps(asked: Asked, model: str = "sdxl") -> Tensor:
    """The published list, its log sigmas interpolated evenly to n values, or to n + 1 without the last."""
    rule = asked.profile.align_your_steps
    logs = torch.tensor(_ALIGNED[model, rule], dtype=torch.float64).log()
    count = asked.n + (rule == "last-to-zero")
    at = torch.linspace(0, len(logs) - 1, count, dtype=torch.float64)
    low = at.floor().long().clamp(max=len(logs) - 2)
    return (logs[low] + (at - low) * (logs[low + 1] - logs[low])).exp()[: asked.n]


def _align_your_steps_sd15(asked: Asked) -> Tensor:
    """The same with the list made for Stable Diffusion 1.5."""
    return _align_your_steps(asked, "sd15")


def _linear_quadratic(asked: Asked) -> Tensor:
    """The linear-quadratic schedule of Movie Gen (Polyak et al. 2024), in sigma.

    Half the steps go down evenly, by _THRESHOLD of the range in all, the others along the parabola that goes on from there to 0.
    """
    half = max(asked.n // 2, 1)
    bend = (half - _THRESHOLD * asked.n) / (half * max(asked.n - half, 1) ** 2)
    gone = [_THRESHOLD * k / half + bend * max(k - half, 0) ** 2 for k in range(asked.n)]
    return (1 - torch.tensor(gone, dtype=torch.float64)).float() * asked.table.high


_MAKERS: dict[str, Callable[[Asked], Tensor]] = {
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _polyexponential,
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "trailing": _trailing,
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "kl_optimal": _kl_optimal,
    "align_your_steps": _align_your_steps,
    "align_your_steps_sd15": _align_your_steps_sd15,
    "linear_quadratic": _linear_quadratic,
}
SCHEDULES = tuple(_MAKERS)


def timesteps(n: int, spacing: str, *, whole: bool = False) -> Tensor:
    """n training steps, descending, (n,) float64. The rules after Lin et al. 2023, table 2, and sgm's own.

    `whole`: the first n of n + 1 that are spaced so, rounded.
    """
    k = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":  # with an offset of 1
        return (n - k) * (STEPS // (n + 1)) + 1 if whole else (n - 1 - k) * (STEPS // n) + 1
    if spacing == "trailing":
        return (STEPS - k * (STEPS / n)).round() - 1
    if spacing == "legacy":
        return (STEPS - 1 - k * ((STEPS - 1) / n)).floor()
    return ((n - k) * ((STEPS - 1) / n)).round() if whole else torch.linspace(STEPS - 1, 0, n).double()


def sigmas(schedule: str, steps: int, table: SigmaTable, profile: Profile, sampler: str) -> list[float]:
    """The list of `steps` steps; `schedule` by any engine's name, A1111's "Automatic" too.

    `sampler` is our name: by the profile some get a list without the last sigma but one, another spacing or another end.

    InputError: unknown schedule, steps outside 1 to 1000, or more steps than the schedule has distinct sigmas.
    """
    name = names.schedule(schedule) or names.AUTOMATIC.get(sampler, "normal")
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps cannot be {steps}: give 1 to {MAX_STEPS}")
    extra = sampler in profile.drop_penultimate
    asked = Asked(steps + extra, table, profile, sampler in profile.whole_steps)
    values = _MAKERS[name](asked).float().tolist()
    last = table.low if sampler in profile.ends_low or (name == "kl_optimal" and profile.kl_optimal == "to-low") else 0.0
    values = [value for value in values if value > last or math.isclose(value, last, rel_tol=1e-5)]
    values += [] if math.isclose(values[-1], last, rel_tol=1e-5) else [last]
    values = values[:-2] + values[-1:] if extra else values
    if any(b >= a for a, b in pairwise(values)):
        raise InputError(f"schedule {name!r} has fewer than {steps} distinct sigmas here: take fewer steps or 'karras'")
    return values


def custom(values: Sequence[float]) -> list[float]:
    """A list of the user's own, each value rounded to float32.

    InputError unless it has 2 to 1001 values, all below HIGHEST_SIGMA, strictly decreasing after rounding, the last 0 or above.
    """
    if not 2 <= len(values) <= MAX_STEPS + 1:
        raise InputError(f"a sigma list cannot have {len(values)} values: give 2 to {MAX_STEPS + 1}, one more than steps")
    rounded = [nearest(value) for value in values]
    for place, (value, exact) in enumerate(zip(values, rounded, strict=True), 1):
        if not 0 <= exact < HIGHEST_SIGMA:
            raise InputError(f"sigma {place} cannot be {value}: give numbers from 0 to below {HIGHEST_SIGMA:.0f}")
    for place, (a, b) in enumerate(pairwise(rounded), 2):
        if b >= a:
            raise InputError(f"sigma {place} ({b:g}) is not below the one before ({a:g}): give a strictly decreasing list")
    return [abs(value) for value in rounded]


__all__ = ["LAST_ALPHA", "MAX_STEPS", "SCHEDULES", "STEPS", "Asked", "SigmaTable", "custom", "sigmas", "timesteps"]
