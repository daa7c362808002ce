"""Improved pseudo numerical methods (Zhang and Chen 2022, iPNDM): Adams-Bashforth to order 4, its first steps of lower order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, walk, weighted

# Adams and Bashforth's weights for equal steps, newest slope first, by the number of slopes (Liu et al. 2022, eq. 9 for four).
EQUAL = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None, *, denoised_last: bool = False
) -> Iterator[Step]:
    """The weights of equal steps, whatever the steps are. At sigma 0 the same formula, or x0 with `denoised_last`."""
    slopes: deque[Tensor] = deque(maxlen=len(EQUAL))  # newest first

    def advance(s: Step) -> Tensor:
        slopes.appendleft((s.x - s.x0) / s.sigma)
        width = s.sigma_next - s.sigma
        return weighted(s, [width * weight for weight in EQUAL[len(slopes) - 1]], slopes)

    return walk(denoise, x, sigmas, advance, denoised_last=denoised_last)


def ipndm_v(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None, *, denoised_last: bool = False
) -> Iterator[Step]:
    """Weights for uneven steps, as engines have them: see `uneven`. At sigma 0 the same formula, or x0 with `denoised_last`."""
    slopes: deque[Tensor] = deque(maxlen=len(EQUAL))

    def advance(s: Step) -> Tensor:
        slopes.appendleft((s.x - s.x0) / s.sigma)
        back = sigmas[max(0, s.i - len(slopes) + 1) : s.i + 2][::-1]
        weights = uneven([a - b for a, b in pairwise(back)])
        width = s.sigma_next - s.sigma
        out = weighted(s, [width * weight for weight in weights], slopes)
        excess = sum(weights) - 1
        return out + slopes[0] * (width * excess) if excess else out

    return walk(denoise, x, sigmas, advance, denoised_last=denoised_last)


def uneven(steps: Sequence[float]) -> list[float]:
    """Weights of the slopes, newest first, for a step of steps[0] after those of steps[1], steps[2] ...: as many as there are steps.

    These are the formulas of diff-sampler's solvers.py, which ComfyUI and Forge run. To order 3 and on equal steps they are Adams and
    Bashforth's. On uneven ones a bracket of the second divided difference is not (`third`); at order 4 a plus stands for a minus
    (`bracket`), and the last factor is h1 / h2 where h2 / h3 belongs, so that the weights do not sum to one. Pictures depend on it.
    """
    if len(steps) == 1:
        return [1.0]
    h, h1, *more = steps
    weights = [1 + h / h1 / 2, -h / h1 / 2]
    if more:
        h2 = more[0]
        third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        weights = [weights[0] + third, weights[1] - (1 + h1 / h2) * third, third * h1 / h2]
    return weights if len(more) < 2 else _fourth(weights, h, h1, *more)


def _fourth(weights: list[float], h: float, h1: float, h2: float, h3: float) -> list[float]:
    """The term of order 4 added to the weights of order 3."""
    bracket = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    term = bracket * (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    far = h1 * (h1 + h2) / (h2 * (h2 + h3))
    added = (1.0, -(1 + h1 / h2 + far), h1 / h2 + far * (1 + h2 / h3), -far * h1 / h2)
    return [weight + term * more for weight, more in zip([*weights, 0.0], added, strict=True)]
