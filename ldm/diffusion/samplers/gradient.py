"""Gradient estimation (Permenter and Yuan 2024, arXiv 2306.04848): denoising as descent on the squared distance to the data."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, walk

GAMMA = 2.0  # the paper's choice


def gradient_estimation(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """Euler's step with GAMMA times the newest slope and 1 - GAMMA times the one before."""
    past: deque[Tensor] = deque(maxlen=1)

    def advance(s: Step) -> Tensor:
        slope = (s.x - s.x0) / s.sigma
        last = past.pop() if past else slope
        past.append(slope)
        return s.x + (slope * GAMMA + last * (1 - GAMMA)) * (s.sigma_next - s.sigma)

    return walk(denoise, x, sigmas, advance)
