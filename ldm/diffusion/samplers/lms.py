"""Linear multistep: Adams-Bashforth on uneven sigmas, to order 4 at one evaluation a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.integrals import lagrange
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, walk, weighted

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
        weights = [lagrange_integral(nodes, j, s.sigma_next) for j in range(len(slopes))]
        return weighted(s, weights, slopes)

    return walk(denoise, x, sigmas, advance, denoised_last=denoised_last)


def lagrange_integral(nodes: Sequence[float], j: int, end: float) -> float:
    """The integral from nodes[0] to `end` of the polynomial that is 1 at nodes[j] and 0 at the others."""
    width = end - nodes[0]
    powers = lagrange([(node - nodes[0]) / width for node in nodes], j)  # in u = (sigma - nodes[0]) / width, from 0 to 1
    return width * sum(c / (p + 1) for p, c in enumerate(powers))
