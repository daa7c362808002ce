"""The model's sigma table, and the lists of sigmas that samplers walk down.

A list holds steps + 1 Python floats, each exact in float32, strictly decreasing; the last is 0 (a list of the user's own
may end above 0). They are computed in float32 by the operations of k-diffusion and ComfyUI, so that the bits agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.diffusion.rounding import nearest
from ldm.errors import InputError, near_matches
from ldm.limits import HIGHEST_SIGMA

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile

STEPS = 1000  # of the training process; t runs from 0 to STEPS - 1
MAX_STEPS = 1000  # of a sampling run
LAST_ALPHA = 4.8973451890853435e-08  # of a schedule with zero terminal SNR: sigma 4518
_BETAS = (0.00085, 0.012)  # scaled linear: evenly spaced in sqrt(beta)


class SigmaTable:
    """sigma of every training step, and the way between sigma and t.

    `sigmas` and `log_sigmas`: (1000,) float32, ascending. `low`, `high`: the ends as floats.
    `alphas` names the precision of the cumulated alphas, in which engines differ: "float64", "float32" or "float16".
    `zero_terminal` rescales them so that the last step is noise alone but for LAST_ALPHA, as ComfyUI does it; float16 has no number
    there but 2^-24 and 0, so the two together are an InputError.
    """

    def __init__(self, alphas: str = "float64", *, zero_terminal: bool = False) -> None:
        if zero_terminal and alphas == "float16":
            raise InputError("alphas 'float16' cannot hold a schedule with zero terminal SNR: take --set alphas=float32")
        self.zero_terminal = zero_terminal
        start, end = (math.sqrt(beta) for beta in _BETAS)
        betas = torch.linspace(start, end, STEPS, dtype=torch.float64) ** 2
        alphas_bar = (1 - betas).cumprod(0).to({"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}[alphas])
        if zero_terminal:
            alphas_bar = _rescaled(alphas_bar)
        sigmas = ((1 - alphas_bar) / alphas_bar) ** 0.5
        self.sigmas = sigmas.float()
        self.log_sigmas = sigmas.log().float()
        self.low, self.high = float(self.sigmas[0]), float(self.sigmas[-1])

    def at(self, t: Tensor) -> Tensor:
        """sigma at steps t (n,) float32, by linear interpolation in log sigma."""
        return _interpolate(self.log_sigmas, t).exp()

    def at_linear(self, t: Tensor) -> Tensor:
        """sigma at steps t (n,) float32, by linear interpolation in sigma; a whole t gives the table's own value."""
        return _interpolate(self.sigmas, t)

    def locate(self, sigma: float, rule: str) -> tuple[float, float]:
        """(t, sigma to denoise with) by a profile's `timestep` rule.

        "float": t between two entries, linear in log sigma; "nearest-log": the entry nearest in log sigma, sigma kept;
        "nearest-snap": the entry nearest in sigma, and its sigma.
        """
        value = torch.tensor(sigma, dtype=torch.float32)
        if rule == "float":
            return self._between(value.log()), sigma
        if rule == "nearest-log":
            return float((value.log() - self.log_sigmas).abs().argmin()), sigma
        index = int((value - self.sigmas).abs().argmin())
        return float(index), float(self.sigmas[index])

    def _between(self, log_sigma: Tensor) -> float:
        index = int((self.log_sigmas <= log_sigma).sum().sub(1).clamp(0, STEPS - 2))
        low, high = self.log_sigmas[index], self.log_sigmas[index + 1]
        w = ((low - log_sigma) / (low - high)).clamp(0, 1)
        return float((1 - w) * index + w * (index + 1))


def _rescaled(alphas_bar: Tensor) -> Tensor:
    """Lin et al. 2023, algorithm 1, on cumulated alphas (1000,); the last is not 0, as no sigma would be finite."""
    roots = alphas_bar.sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    squares = roots**2
    squares[-1] = LAST_ALPHA
    return squares


def _interpolate(values: Tensor, t: Tensor) -> Tensor:
    t = t.clamp(0, STEPS - 1)
    w = t.frac()
    return (1 - w) * values[t.floor().long()] + w * values[t.ceil().long()]


# One function a schedule: (n, table, profile) -> n sigmas > 0, descending, (n,) float32.


def _karras(n: int, table: SigmaTable, profile: Profile, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, eq. 5."""
    low, high = (end ** (1 / rho) for end in _ends(n, table, profile))
    roots: Tensor = high + torch.linspace(0, 1, n) * (low - high)
    return roots.pow(rho)


def _exponential(n: int, table: SigmaTable, profile: Profile) -> Tensor:
    """Evenly spaced in log sigma."""
    low, high = _ends(n, table, profile)
    return torch.linspace(math.log(high), math.log(low), n).exp()


def _normal(n: int, table: SigmaTable, profile: Profile) -> Tensor:
    """The training steps themselves, spaced by the profile's rule."""
    t = _timesteps(n, profile.spacing)
    return table.at(t) if profile.spacing == "linspace-log" else table.at_linear(t)


def _sgm_uniform(n: int, table: SigmaTable, _profile: Profile) -> Tensor:
    """n + 1 steps evenly from t = 999 to 0, the last left out."""
    return table.at(torch.linspace(STEPS - 1, 0, n + 1)[:-1])


def _simple(n: int, table: SigmaTable, _profile: Profile) -> Tensor:
    """Every (1000 / n)-th entry of the table, from its end."""
    stride = STEPS / n
    return table.sigmas[[STEPS - 1 - int(k * stride) for k in range(n)]]


def _trailing(n: int, table: SigmaTable, _profile: Profile) -> Tensor:
    """Whole training steps, evenly from t = 999 down: what models distilled to few steps are made for (diffusers' "trailing")."""
    return table.at_linear(_timesteps(n, "trailing"))


_MAKERS: dict[str, Callable[[int, SigmaTable, Profile], Tensor]] = {
    "karras": _karras,
    "exponential": _exponential,
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "trailing": _trailing,
}
SCHEDULES = tuple(_MAKERS)


def _ends(n: int, table: SigmaTable, profile: Profile) -> tuple[float, float]:
    if profile.karras_range == "model":
        return table.low, table.high
    spaced = _normal(n, table, profile)
    return float(spaced[-1]), float(spaced[0])


def _timesteps(n: int, spacing: str) -> Tensor:
    """n training steps, descending, (n,) float32. The four rules after Lin et al. 2023, table 2, and sgm's own."""
    k = torch.arange(n, dtype=torch.float64)
    if spacing == "leading":  # with an offset of 1
        t = (n - 1 - k) * (STEPS // n) + 1
    elif spacing == "trailing":
        t = (STEPS - k * (STEPS / n)).round() - 1
    elif spacing == "legacy":
        t = (STEPS - 1 - k * ((STEPS - 1) / n)).floor()
    else:
        return torch.linspace(STEPS - 1, 0, n)
    return t.float()


def check_name(schedule: str) -> None:
    """Raises InputError with the near matches unless there is a schedule of this name."""
    if schedule not in _MAKERS:
        raise InputError(f"unknown schedule {schedule!r}: {near_matches(schedule, list(_MAKERS))}")


def sigmas(schedule: str, steps: int, table: SigmaTable, profile: Profile, sampler: str) -> list[float]:
    """steps + 1 sigmas, the last 0. `sampler` is a name: some get a list that leaves out the last but one (profile).

    InputError: unknown schedule, steps outside 1 to 1000, or more steps than the schedule has distinct sigmas.
    """
    check_name(schedule)
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps cannot be {steps}: give 1 to {MAX_STEPS}")
    extra = sampler in profile.drop_penultimate
    values = _MAKERS[schedule](steps + extra, table, profile).tolist()[:steps]
    if any(b >= a for a, b in pairwise(values)):
        raise InputError(f"schedule {schedule!r} has fewer than {steps} distinct sigmas here: take fewer steps or 'karras'")
    return [*values, 0.0]


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
