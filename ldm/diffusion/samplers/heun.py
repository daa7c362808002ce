"""Second order, two evaluations a step: Heun's method on the probability flow ODE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1: the mean of the slopes (x - x0) / sigma at both ends of Euler's step."""

    def advance(s: Step) -> Tensor:
        end = toward(s.x0, s.x, s.sigma_next / s.sigma)
        slope = (s.x - s.x0) / s.sigma
        slope_end = (end - denoise(end, s.sigma_next)) / s.sigma_next
        return s.x + (slope + slope_end) * (0.5 * (s.sigma_next - s.sigma))

    return walk(denoise, x, sigmas, advance)
