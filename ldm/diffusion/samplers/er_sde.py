"""ER-SDE-Solver (Cui et al. 2023, arXiv 2309.06169): the reverse SDE with noise at a rate of its own, for the data prediction x0."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk

POINTS = 200  # of the left sum that stands for an integral, as in ComfyUI; the authors take 100
ORDER = 3


def er_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """ER-SDE-Solver-3 of the variance exploding process, with the fifth of the authors' noise scales.

    With a scale phi(sigma) the step from s to t multiplies x - x0 by r = phi(t) / phi(s), and adds noise of variance t² - r² s². What
    x0 changes on the way is a Taylor series, its derivatives by sigma divided differences of the last three.
    """
    past: deque[Step] = deque(maxlen=ORDER - 1)  # newest first

    def advance(s: Step) -> Tensor:
        r = ratio(s.sigma_next, s.sigma)
        out = toward(s.x0, s.x, r)
        for weight, derivative in zip(_weights(s.sigma, s.sigma_next), _derivatives([s, *past]), strict=False):
            out = out + derivative * weight
        past.appendleft(s)
        spread = math.sqrt(max(s.sigma_next**2 - (r * s.sigma) ** 2, 0))
        return out + noise(s.i, s.sigma, s.sigma_next) * spread

    return walk(denoise, x, sigmas, advance)


def ratio(sigma: float, other: float) -> float:
    """phi(sigma) / phi(other) with phi = sigma (exp(sigma^0.3) + 10), appendix A.8: the faster it grows, the more noise.

    By logarithms, as phi itself leaves the range of floats at sigma 4e9.
    """
    one, two = (level**0.3 + math.log1p(10 * math.exp(-(level**0.3))) for level in (sigma, other))
    return sigma / other * math.exp(one - two)


def _derivatives(steps: Sequence[Step]) -> list[Tensor]:
    """x0' and x0'' at the newest sigma; `steps` newest first, one derivative less than steps."""
    slopes = [(new.x0 - old.x0) / (new.sigma - old.sigma) for new, old in pairwise(steps)]
    return slopes[:1] + [(slopes[0] - slopes[1]) * (2 / (steps[0].sigma - steps[2].sigma)) for _ in slopes[1:]]


def _weights(s: float, t: float) -> tuple[float, float]:
    """What x0' and x0'' at s are multiplied by: phi(t) times the integrals of (sigma - s)^k / k! phi'/phi² from t to s, by parts."""
    width = (s - t) / POINTS
    shares = [(t + k * width, ratio(t, t + k * width)) for k in range(POINTS)]
    ones = width * math.fsum(share for _, share in shares)
    firsts = width * math.fsum((sigma - s) * share for sigma, share in shares)
    return t - s + ones, (t - s) ** 2 / 2 + firsts
