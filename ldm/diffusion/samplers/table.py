"""The table of samplers: name -> function, evaluations a step, kind of noise, fewest steps. A new one is one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.diffusion.samplers.cfg_pp import euler_a_cfg_pp, euler_cfg_pp
from ldm.diffusion.samplers.consistency import lcm, tcd
from ldm.diffusion.samplers.deis import deis
from ldm.diffusion.samplers.dpm2 import dpm2, dpm2_a
from ldm.diffusion.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_2s_a, dpmpp_3m_sde, dpmpp_sde
from ldm.diffusion.samplers.er_sde import er_sde
from ldm.diffusion.samplers.euler import euler, euler_a
from ldm.diffusion.samplers.gradient import gradient_estimation
from ldm.diffusion.samplers.heun import heun, heunpp2, restart
from ldm.diffusion.samplers.ipndm import ipndm, ipndm_v
from ldm.diffusion.samplers.lms import lms
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step
from ldm.diffusion.samplers.res import res_multistep
from ldm.diffusion.samplers.sa_solver import sa_solver
from ldm.diffusion.samplers.seeds import seeds_2, seeds_3
from ldm.diffusion.samplers.singlestep import dpm_adaptive, dpm_fast
from ldm.diffusion.samplers.unipc import unipc, unipc_bh2

Run = Callable[[Denoise, Tensor, Sequence[float], NoiseFn], Iterator[Step]]


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row of the table.

    `evaluations`: of the denoiser, a step; the last step takes one. An `adaptive` one chooses its sigmas as it goes, so that neither its
    steps nor its evaluations are known before. `needs_uncond`: it asks for the unconditional prediction at every scale of guidance.
    `noise`: "none", "ancestral" (independent draws) or "brownian" (increments of one path). `minimum`: the fewest steps at
    which Gaussian data of std 0.7 keep their spread to within 20 % on the Karras schedule; below, results are poor unless
    the model was made for few steps. `log_time`: k-diffusion's code asks for noise at exp(log(sigma)).
    """

    name: str
    run: Run
    evaluations: int
    noise: Literal["none", "ancestral", "brownian"]
    minimum: int
    log_time: bool = False
    needs_uncond: bool = False
    adaptive: bool = False

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
    Sampler("dpm2", dpm2, 2, "none", 3),
    Sampler("dpm2_a", dpm2_a, 2, "ancestral", 9),
    Sampler("dpmpp_2s_a", dpmpp_2s_a, 2, "ancestral", 7),
    Sampler("dpmpp_3m_sde", dpmpp_3m_sde, 1, "brownian", 12),
    Sampler("dpmpp_2m_sde_heun", dpmpp_2m_sde_heun, 1, "brownian", 13),
    # no number of steps is enough for a model that was not distilled for them
    Sampler("lcm", lcm, 1, "ancestral", 1),
    Sampler("tcd", tcd, 1, "ancestral", 1),
    Sampler("unipc", unipc, 1, "none", 4),  # B(h) = h, bh1
    Sampler("unipc_bh2", unipc_bh2, 1, "none", 4),
    Sampler("deis", deis, 1, "none", 5),
    Sampler("ipndm", ipndm, 1, "none", 4),
    Sampler("ipndm_v", ipndm_v, 1, "none", 4),
    Sampler("heunpp2", heunpp2, 3, "none", 8),  # and two in the last step but one
    Sampler("dpm_fast", dpm_fast, 1, "none", 10),  # n for n steps of the list, in n // 3 + 1 of its own
    Sampler("dpm_adaptive", dpm_adaptive, 3, "none", 1, adaptive=True),  # and two more a step that is tried again
    Sampler("restart", restart, 2, "ancestral", 7),
    Sampler("euler_cfg_pp", euler_cfg_pp, 1, "none", 9, needs_uncond=True),
    Sampler("euler_a_cfg_pp", euler_a_cfg_pp, 1, "ancestral", 15, needs_uncond=True),
    Sampler("sa_solver", sa_solver, 1, "ancestral", 9),
    Sampler("er_sde", er_sde, 1, "ancestral", 6),
    Sampler("res_multistep", res_multistep, 1, "none", 3),
    Sampler("gradient_estimation", gradient_estimation, 1, "none", 3),
    Sampler("seeds_2", seeds_2, 2, "ancestral", 7),
    Sampler("seeds_3", seeds_3, 3, "ancestral", 2),
)
SAMPLERS: dict[str, Sampler] = {row.name: row for row in _TABLE}
