"""CFG++ (Chung et al. 2024, algorithm 2): x0 is the guided one, the noise that is kept is that of the unconditional prediction.

Guidance then works between 0 and about 1.5 rather than from 1 to 10. A denoiser without guidance makes these Euler's methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, uncond, walk, walk_renewing


def euler_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """Euler's method with the unconditional slope, from the guided x0."""
    return walk(denoise, x, sigmas, lambda s: _renoised(denoise, s, s.sigma_next))


def euler_a_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """The same step down below the next sigma, then fresh noise up to it."""
    return walk_renewing(denoise, x, sigmas, noise, lambda s, down: _renoised(denoise, s, down))


def _renoised(denoise: Denoise, s: Step, end: float) -> Tensor:
    return s.x0 + (s.x - uncond(denoise, s.x0)) * (end / s.sigma)
