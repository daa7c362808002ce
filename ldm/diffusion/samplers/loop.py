"""What all samplers share: the step they yield, and the loop, written once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

HIGHEST = 1e12  # far beyond any schedule; its square is far inside float32
Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> x0
# (i, sigma, sigma_next) -> unit noise, of x's shape. i counts what a run draws: the step where each step draws once. A solver that draws
# n times a step counts n * step, n * step + 1 ...; one that draws at some of its steps only counts those (engines draw in that order).
NoiseFn = Callable[[int, float, float], Tensor]


class Step(NamedTuple):
    """One finished step from `sigma` to `sigma_next`: `x` is where it ends, `x0` what the denoiser saw at its start."""

    i: int
    sigma: float
    sigma_next: float
    x: Tensor
    x0: Tensor


Advance = Callable[[Step], Tensor]  # a Step whose x is still the one at `sigma` -> x at `sigma_next`


def walk(denoise: Denoise, x: Tensor, sigmas: Sequence[float], advance: Advance, *, denoised_last: bool = True) -> Iterator[Step]:
    """Denoise at each sigma, let `advance` make the step, yield it.

    A step to sigma 0 is x0 itself: that is where Euler's step, and every solver's first-order formula, ends. A solver with
    another formula there sets `denoised_last` to False. Sigmas that `check_sigmas` does not pass are an InputError.
    """
    check_sigmas(sigmas)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        x = x0 if sigma_next == 0 and denoised_last else advance(Step(i, sigma, sigma_next, x, x0))
        yield Step(i, sigma, sigma_next, x, x0)


def walk_renewing(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, onward: Callable[[Step, float], Tensor]
) -> Iterator[Step]:
    """`walk` with steps that `onward` makes down below the next sigma, to `ancestral`'s; fresh noise leads up to it."""

    def advance(s: Step) -> Tensor:
        down, up = ancestral(s.sigma, s.sigma_next)
        return onward(s, down) + noise(s.i, s.sigma, s.sigma_next) * up

    return walk(denoise, x, sigmas, advance)


def toward(x0: Tensor, x: Tensor, ratio: float) -> Tensor:
    """The point on the line from x0 to x at `ratio` of the way: where x0 stays as it is while sigma shrinks by `ratio`."""
    return x0 + (x - x0) * ratio


def weighted(s: Step, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x plus the weighted slopes, newest first. The weights' sum times the newest is Euler's step: only the others are added to it."""
    out = toward(s.x0, s.x, s.sigma_next / s.sigma)
    for weight, slope in list(zip(weights, slopes, strict=True))[1:]:
        out = out + (slope - slopes[0]) * weight
    return out


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(down, up): step to `down`, then add noise of std `up`, to be at `sigma_next`: down² + up² = sigma_next².

    The split is that of the exact posterior (Ho et al. 2020, eq. 7, in sigma), eta 1.
    """
    up = min(sigma_next, sigma_next * math.sqrt(sigma**2 - sigma_next**2) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def uncond(denoise: Denoise, x0: Tensor) -> Tensor:
    """The unconditional x0 of the denoiser's last call; where there is none, `x0`, which that call gave."""
    out: Tensor | None = getattr(denoise, "uncond", None)
    return x0 if out is None else out


def check_sigmas(sigmas: Sequence[float]) -> None:
    """InputError unless they can be walked down: two or more below HIGHEST, strictly decreasing to 0 or above."""
    falling = all(HIGHEST > a > b >= 0 for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falling:
        from ldm.errors import InputError

        rule = f"give two or more below {HIGHEST:g}, strictly decreasing to 0 or above"
        raise InputError(f"cannot sample along sigmas {[*sigmas][:4]}: {rule}")
