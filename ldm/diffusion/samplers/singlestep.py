"""DPM-Solver (Lu et al. 2022a): singlestep solvers of orders 1 to 3 that choose their own sigmas between the list's ends.

They end at the list's last sigma above 0 and leave the noise of that level in x, as every engine that has them does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count

import torch
from torch import Tensor

from ldm.diffusion.rounding import between, nearest
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, ancestral, check_sigmas, walk

RELATIVE, ABSOLUTE = 0.05, 0.0078  # tolerances
FIRST, SHORTEST = 0.05, 1e-3  # steps in t: the latter is taken whatever its error
ACCEPTED = 0.81  # the least factor of the next step over this one at which this one is kept
_END = 1e-5  # what is left of t does not matter


class Slopes:
    """eps of one step, (x - x0) / sigma, at sigma and inside: the two orders of an adaptive step share them."""

    def __init__(self, denoise: Denoise, s: Step, end: float) -> None:
        self._denoise, self._s, self._end = denoise, s, end
        self._seen: dict[float, Tensor] = {}
        self.first = (s.x - s.x0) / s.sigma
        self.h = math.log(s.sigma / end)

    def first_order(self) -> Tensor:
        """Eq. 3.7, DPM-Solver-1."""
        return self._s.x + self.first * (self._end - self._s.sigma)

    def second_order(self, r: float = 1 / 2) -> Tensor:
        """Algorithm 4, DPM-Solver-2 with its point at share r of the step."""
        return self.first_order() - (self._at(r) - self.first) * ((self._s.sigma - self._end) / (2 * r))

    def third_order(self) -> Tensor:
        """Algorithm 5, DPM-Solver-3 with r1 = 1/3, r2 = 2/3."""
        change = self._at(2 / 3, self._at(1 / 3) - self.first) - self.first
        return self.first_order() - change * (self._end * (math.expm1(self.h) / self.h - 1) * 3 / 2)

    def _at(self, r: float, change: Tensor | None = None) -> Tensor:
        """eps at share r of the step, where the first eps leads to, or, given its `change` until r / 2, a better point."""
        if r not in self._seen:
            s = self._s
            sigma = between(s.sigma, self._end, r, s.x.dtype)
            x = s.x + self.first * (sigma - s.sigma)
            if change is not None:
                x = x - change * (2 * sigma * (math.expm1(r * self.h) / (r * self.h) - 1))
            self._seen[r] = (x - self._denoise(x, sigma)) / sigma
        return self._seen[r]


_ORDERS: dict[int, Callable[[Slopes], Tensor]] = {1: Slopes.first_order, 2: Slopes.second_order, 3: Slopes.third_order}


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, *, eta: float = 0.0) -> Iterator[Step]:
    """DPM-Solver-fast (section 3.4): n evaluations for a list of n steps, in steps of order 3, even in log sigma, and a remainder.

    `eta` 1 makes each of them ancestral (stable-diffusion-webui); 0 draws no noise (k-diffusion's default, ComfyUI).
    """
    check_sigmas(sigmas)
    n, (high, low) = len(sigmas) - 1, _range(sigmas)
    if high == low:  # one sigma above 0: there is no step to make, engines return the noise
        return walk(denoise, x, sigmas, lambda s: s.x0)
    parts = n // 3 + 1
    orders = [3] * (parts - 2) + [2, 1] if n % 3 == 0 else [3] * (parts - 1) + [n % 3]
    grid = [high, *(between(high, low, k / parts, x.dtype) for k in range(1, parts)), low]

    def advance(s: Step) -> Tensor:
        down, up = _ancestral(s.sigma, s.sigma_next, low, eta)
        out = _ORDERS[orders[s.i]](Slopes(denoise, s, down))
        return out + noise(s.i, s.sigma, s.sigma_next) * up if eta else out

    return walk(denoise, x, grid, advance)


def dpm_adaptive(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, *, eta: float = 0.0) -> Iterator[Step]:
    """DPM-Solver-23 (appendix C): a step is as long as orders 2 and 3 agree on it, each picture by itself.

    The pictures of a batch go side by side, one step each at a time; sigma and sigma_next of a Step are the highest among them.
    The number of steps of the list means nothing. `eta` as in `dpm_fast`.
    """
    check_sigmas(sigmas)
    if _range(sigmas)[0] == _range(sigmas)[1]:
        yield from walk(denoise, x, sigmas, lambda s: s.x0)
        return
    yield from _abreast([_adapted(*part, eta) for part in _pictures(denoise, x, sigmas, noise)])


def _pictures(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn
) -> Iterator[tuple[Denoise, Tensor, Sequence[float], NoiseFn]]:
    """What a run of each picture alone is given. A denoiser without `picture` takes any number of rows."""
    one: Callable[[int, int], Denoise] | None = getattr(denoise, "picture", None)
    pictures = x.shape[0]
    for k in range(pictures):
        own = noise if pictures == 1 else partial(_row, noise, k)
        yield (denoise if one is None else one(k, pictures)), x[k : k + 1], sigmas, own


def _row(noise: NoiseFn, k: int, i: int, sigma: float, sigma_next: float) -> Tensor:
    return noise(i, sigma, sigma_next)[k : k + 1]


def _abreast(runs: Sequence[Iterator[Step]]) -> Iterator[Step]:
    """Steps of all pictures together, until the last of them has ended; the others stay where they are."""
    last: list[Step] = []
    for i in count():
        fresh = [next(run, None) for run in runs]
        moving = [step for step in fresh if step is not None]
        if not moving:
            return
        last = [new or last[k] for k, new in enumerate(fresh)]
        ends = max(step.sigma for step in moving), max(step.sigma_next for step in moving)
        yield Step(i, *ends, torch.cat([step.x for step in last]), torch.cat([step.x0 for step in last]))


def _adapted(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, eta: float) -> Iterator[Step]:
    """The steps of one picture. The controller is k-diffusion's: the error to the power 1 / order, softly limited to 0.2 .. 2.6."""
    sigma, low = _range(sigmas)
    t, t_end, h, before, i = -math.log(sigma), -math.log(low), FIRST, x, 0
    while t < t_end - _END:
        x0 = denoise(x, sigma)
        factor = 0.0
        while factor < ACCEPTED:
            t_next = min(t_end, t + h)
            sigma_next = low if t_next == t_end else nearest(math.exp(-t_next), x.dtype)
            down, up = _ancestral(sigma, sigma_next, low, eta)
            slopes = Slopes(denoise, Step(i, sigma, sigma_next, x, x0), down)
            worse, better = slopes.second_order(1 / 3), slopes.third_order()
            error = _error(worse, better, before)
            if not math.isfinite(error):  # no step will be better: who looks at x finds out
                t_next, factor = t_end, 1.0
            else:
                factor = 1 + math.atan((error + 1e-8) ** (-1 / (1.5 if eta else 3)) - 1)
                factor, h = 1.0 if h <= SHORTEST else factor, max(h * factor, SHORTEST)
        before, x = worse, better + noise(i, sigma, sigma_next) * up if eta else better
        yield Step(i, sigma, sigma_next, x, x0)
        t, sigma, i = t_next, sigma_next, i + 1


def _error(worse: Tensor, better: Tensor, before: Tensor) -> float:
    """The root of the mean square of the difference over the tolerance."""
    tolerance = (worse.abs().maximum(before.abs()) * RELATIVE).clamp(min=ABSOLUTE)
    return float((((worse - better) / tolerance) ** 2).mean().sqrt())


def _ancestral(sigma: float, sigma_next: float, low: float, eta: float) -> tuple[float, float]:
    """(down, up) as `ancestral`, but not below the list's end."""
    if not eta:
        return sigma_next, 0.0
    down = max(low, ancestral(sigma, sigma_next)[0])
    return down, math.sqrt(max(0.0, sigma_next**2 - down**2))


def _range(sigmas: Sequence[float]) -> tuple[float, float]:
    """The list's first sigma, and its last above 0."""
    return sigmas[0], sigmas[-1] or sigmas[-2]
