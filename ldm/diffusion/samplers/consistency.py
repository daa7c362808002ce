"""For models distilled to jump to x0 from anywhere on a path: denoise, then noise again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk

if TYPE_CHECKING:
    from ldm.diffusion.table import SigmaTable

GAMMA = 0.3  # of TCD: 0 adds no noise, 1 only noise


def lcm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """Luo et al. 2023, algorithm 3: x0, with fresh noise of the next sigma."""
    return walk(denoise, x, sigmas, lambda s: s.x0 + noise(s.i, s.sigma, s.sigma_next) * s.sigma_next)


def tcd(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, *, below: Callable[[float], float] | None = None
) -> Iterator[Step]:
    """Zheng et al. 2024, algorithm 4, strategic stochastic sampling: down the path below the next sigma, then fresh noise up to it.

    `below` gives the sigma to go down to; by default that of (1 - GAMMA) times the next training step.
    """
    from ldm.diffusion.table import SigmaTable

    down_to = below or lower_sigma(SigmaTable())

    def advance(s: Step) -> Tensor:
        down = min(s.sigma_next, down_to(s.sigma_next))
        up = math.sqrt(s.sigma_next**2 - down**2)
        lower = toward(s.x0, s.x, down / s.sigma)
        return lower + noise(s.i, s.sigma, s.sigma_next) * up if up else lower

    return walk(denoise, x, sigmas, advance)


def lower_sigma(table: SigmaTable, gamma: float = GAMMA) -> Callable[[float], float]:
    """sigma -> that of (1 - gamma) times its training step, rounded down to a whole one (in float32, as diffusers computes it)."""

    def lower(sigma: float) -> float:
        t = torch.tensor(table.locate(sigma, "nearest-log")[0]) * (1 - gamma)
        return float(table.sigmas[int(t.floor())])

    return lower
