"""Samplers: generators that walk x down a list of sigmas.

    for step in euler(denoise, x, sigmas):     # denoise(x, sigma) -> x0; sigmas: floats, strictly decreasing
        preview(step.x0)
    z = step.x                                 # the last step's x is the result

A sampler knows no network, conditioning, guidance, device, progress or global random state; who iterates owns all of
that, and stops by leaving the loop. It works in x's dtype. The stochastic ones take `noise(i, sigma, sigma_next)`, unit
noise of x's shape for step i and an interval. Gradients are recorded unless the caller turns them off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ldm.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_sde
from ldm.diffusion.samplers.euler import euler, euler_a
from ldm.diffusion.samplers.heun import heun
from ldm.diffusion.samplers.lms import lms
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step
from ldm.errors import InputError, near_matches

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile

Run = Callable[[Denoise, Tensor, Sequence[float], NoiseFn], Iterator[Step]]


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of the table.

    `noise`: "none", "ancestral" (independent draws) or "brownian" (increments of one path). `minimum`: the fewest steps at
    which Gaussian data of std 0.7 keep their spread to within 20 % on the Karras schedule; below, results are poor unless
    the model was made for few steps. `log_time`: k-diffusion's code asks for noise at exp(log(sigma)).
    """

    name: str
    run: Run
    evaluations: int  # of the denoiser, a step; the step to sigma 0 takes one
    noise: Literal["none", "ancestral", "brownian"]
    minimum: int
    log_time: bool = False

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise on the way."""
        return self.noise != "none"


_TABLE = (
    Sampler("euler", euler, 1, "none", 9),
    Sampler("euler_a", euler_a, 1, "ancestral", 15),
    Sampler("heun", heun, 2, "none", 7),
    Sampler("lms", lms, 1, "none", 6),
    Sampler("dpmpp_2m", dpmpp_2m, 1, "none", 4),
    Sampler("dpmpp_sde", dpmpp_sde, 2, "brownian", 5, log_time=True),
    Sampler("dpmpp_2m_sde", dpmpp_2m_sde, 1, "brownian", 4),
    Sampler("ddim", euler, 1, "none", 9),  # at eta 0 DDIM's points are Euler's
)
SAMPLERS: dict[str, Sampler] = {row.name: row for row in _TABLE}


def get(name: str, profile: Profile) -> Sampler:
    """The sampler `name` with the profile's rules; InputError with near matches for an unknown name."""
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: {near_matches(name, list(SAMPLERS))}")
    sampler = SAMPLERS[name]
    if sampler.run is lms:
        return replace(sampler, run=partial(lms, denoised_last=profile.multistep_last == "denoised"))
    return sampler


def evaluated(sampler: Sampler, sigmas: Sequence[float]) -> list[float]:
    """Every sigma at which `sampler` calls the denoiser, in order, midpoints included: found by a dry run on one zero."""
    seen: list[float] = []

    def watch(x: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        return x

    x = torch.zeros(1)
    for _ in sampler.run(watch, x, sigmas, lambda i, sigma, sigma_next: x):
        pass
    return seen


__all__ = [
    "SAMPLERS", "Denoise", "NoiseFn", "Run", "Sampler", "Step",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "euler", "euler_a", "evaluated", "get", "heun", "lms",
]  # fmt: skip
