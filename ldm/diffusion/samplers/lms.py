"""Linear multistep: Adams-Bashforth on uneven sigmas, to order 4 at one evaluation a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk

ORDER = 4


def lms(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None, *, denoised_last: bool = False
) -> Iterator[Step]:
    """The polynomial through the last slopes (x - x0) / sigma, integrated exactly over the step.

    At sigma 0 the same formula holds (k-diffusion, A1111, diffusers); `denoised_last` returns x0 there (ComfyUI).
    """
    slopes: deque[Tensor] = deque(maxlen=ORDER)  # newest first

    def advance(s: Step) -> Tensor:
        slopes.appendleft((s.x - s.x0) / s.sigma)
        nodes = sigmas[s.i :: -1][: len(slopes)]
        out = toward(s.x0, s.x, s.sigma_next / s.sigma)  # the weights' sum times the newest slope: Euler's step
        for j, slope in list(enumerate(slopes))[1:]:
            out = out + (slope - slopes[0]) * lagrange_integral(nodes, j, s.sigma_next)
        return out

    return walk(denoise, x, sigmas, advance, denoised_last=denoised_last)


def lagrange_integral(nodes: Sequence[float], j: int, end: float) -> float:
    """The integral from nodes[0] to `end` of the polynomial that is 1 at nodes[j] and 0 at the others."""
    width = end - nodes[0]
    at = [(node - nodes[0]) / width for node in nodes]  # in u = (sigma - nodes[0]) / width, from 0 to 1
    powers = [1.0]  # coefficients of 1, u, u² ...
    for k, zero in enumerate(at):
        if k != j:
            shifted, scaled = [0.0, *powers], [*(zero * c for c in powers), 0.0]
            powers = [(a - b) / (at[j] - zero) for a, b in zip(shifted, scaled, strict=True)]
    return width * sum(c / (p + 1) for p, c in enumerate(powers))
