"""What all samplers share: the step they yield, and the loop, written once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from ldm.errors import InputError

HIGHEST = 1e12  # far beyond any schedule; its square is far inside float32
Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> x0
NoiseFn = Callable[[int, float, float], Tensor]  # (i, sigma, sigma_next) -> unit noise, of x's shape


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


def toward(x0: Tensor, x: Tensor, ratio: float) -> Tensor:
    """The point on the line from x0 to x at `ratio` of the way: where x0 stays as it is while sigma shrinks by `ratio`."""
    return x0 + (x - x0) * ratio


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """(down, up): step to `down`, then add noise of std `up`, to be at `sigma_next`: down² + up² = sigma_next².

    The split is that of the exact posterior (Ho et al. 2020, eq. 7, in sigma), eta 1.
    """
    up = min(sigma_next, sigma_next * math.sqrt(sigma**2 - sigma_next**2) / sigma)
    return math.sqrt(sigma_next**2 - up**2), up


def check_sigmas(sigmas: Sequence[float]) -> None:
    """InputError unless they can be walked down: two or more below HIGHEST, strictly decreasing to 0 or above."""
    falling = all(HIGHEST > a > b >= 0 for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falling:
        rule = f"give two or more below {HIGHEST:g}, strictly decreasing to 0 or above"
        raise InputError(f"cannot sample along sigmas {[*sigmas][:4]}: {rule}")
