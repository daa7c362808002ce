"""Second order, two evaluations a step: the slope at the middle of the step in log sigma, alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.rounding import midpoint
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk, walk_renewing


def dpm2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """After DPM-Solver-2 (Lu et al. 2022a, algorithm 1), with the midpoint rule in sigma for its exponential one (k-diffusion)."""
    return walk(denoise, x, sigmas, lambda s: _through_the_middle(denoise, s, s.sigma_next))


def dpm2_a(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """The same step down below the next sigma, then fresh noise up to it."""
    return walk_renewing(denoise, x, sigmas, noise, lambda s, down: _through_the_middle(denoise, s, down))


def _through_the_middle(denoise: Denoise, s: Step, end: float) -> Tensor:
    """From `s` to sigma `end`; Euler's step where no sigma is between, as `end` is 0 after a step of ten million to one."""
    middle = midpoint(s.sigma, end, s.x.dtype) if end else 0.0
    if not middle:
        return toward(s.x0, s.x, end / s.sigma)
    half = toward(s.x0, s.x, middle / s.sigma)
    return s.x + (half - denoise(half, middle)) * ((end - s.sigma) / middle)
