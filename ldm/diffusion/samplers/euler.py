"""First order: Euler's method on the probability flow ODE, and its ancestral form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk, walk_renewing


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1 without its correction; the same points as DDIM (Song et al. 2021, eq. 12, eta 0)."""
    return walk(denoise, x, sigmas, lambda s: toward(s.x0, s.x, s.sigma_next / s.sigma))


def euler_a(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """Euler's step down below the next sigma, then fresh noise up to it."""
    return walk_renewing(denoise, x, sigmas, noise, lambda s, down: toward(s.x0, s.x, down / s.sigma))
