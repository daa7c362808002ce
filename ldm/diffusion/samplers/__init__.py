"""Samplers: generators that walk x down a list of sigmas.

    for step in euler(denoise, x, sigmas):     # denoise(x, sigma) -> x0; sigmas: floats, strictly decreasing
        preview(step.x0)
    z = step.x                                 # the last step's x is the result

A sampler knows no network, conditioning, guidance, device, progress or global random state; who iterates owns all of
that, and stops by leaving the loop. It works in x's dtype. The stochastic ones take `noise(i, sigma, sigma_next)`, unit
noise of x's shape for step i and an interval. Gradients are recorded unless the caller turns them off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.diffusion import names
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step
from ldm.diffusion.samplers.rules import follow
from ldm.diffusion.samplers.table import SAMPLERS, Run, Sampler

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.diffusion.table import SigmaTable


def get(name: str, profile: Profile, table: SigmaTable | None = None) -> Sampler:
    """The sampler of this name, ours or another engine's, with the profile's rules, for a model of this table, if it is not the plain one.

    InputError with near matches for an unknown name.
    """
    return follow(SAMPLERS[names.sampler(name)[0]], profile, table)


def evaluated(sampler: Sampler, sigmas: Sequence[float]) -> list[float]:
    """Every sigma at which `sampler` calls the denoiser, in order, midpoints included: found by a dry run on one zero.

    None of them for an adaptive one, []: what it will ask depends on the answers.
    """
    return _rehearsed(sampler, sigmas)[0]


def asked(sampler: Sampler, sigmas: Sequence[float]) -> list[tuple[int, float, float]]:
    """Every (i, sigma, sigma_next) for which `sampler` asks noise, in order; as `evaluated`."""
    return _rehearsed(sampler, sigmas)[1]


def _rehearsed(sampler: Sampler, sigmas: Sequence[float]) -> tuple[list[float], list[tuple[int, float, float]]]:
    evaluations: list[float] = []
    draws: list[tuple[int, float, float]] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        evaluations.append(sigma)
        return x

    def noise(*ask: Any) -> Tensor:
        draws.append(ask)
        return x

    x = torch.zeros(1)
    for _ in () if sampler.adaptive else sampler.run(denoise, x, sigmas, noise):
        pass
    return evaluations, draws


__all__ = ["SAMPLERS", "Denoise", "NoiseFn", "Run", "Sampler", "Step", "asked", "evaluated", "get"]
