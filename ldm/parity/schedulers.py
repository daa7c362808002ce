"""A few steps of diffusers' schedulers, as its pipelines run them, on any network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.samplers import SAMPLERS

Model = Callable[[Tensor, float], Tensor]  # (x scaled (1, 4, h, w), t) -> what the network predicts, guided


class Scheduler(NamedTuple):
    """A class of diffusers and how our sampler of that name is told to it."""

    kind: str
    settings: dict[str, Any]
    karras: bool = True  # takes `use_karras_sigmas`


_SDXL = {  # of the scheduler in the official repositories
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_TABLE = {
    "euler": Scheduler("EulerDiscreteScheduler", {}),
    "euler_a": Scheduler("EulerAncestralDiscreteScheduler", {}, karras=False),
    "heun": Scheduler("HeunDiscreteScheduler", {}),
    "lms": Scheduler("LMSDiscreteScheduler", {}),
    "dpmpp_2m": Scheduler("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": Scheduler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": Scheduler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "dpmpp_sde": Scheduler("DPMSolverSDEScheduler", {}),
    "ddim": Scheduler("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}, karras=False),
    "dpm2": Scheduler("KDPM2DiscreteScheduler", {}, karras=False),
    "dpm2_a": Scheduler("KDPM2AncestralDiscreteScheduler", {}, karras=False),
    "unipc_bh2": Scheduler("UniPCMultistepScheduler", {}),
    "deis": Scheduler("DEISMultistepScheduler", {}, karras=False),
    "sa_solver": Scheduler("SASolverScheduler", {}, karras=False),
}


APART = {  # what both have and is not compared, with the reason
    "unipc": "diffusers' bh1 form is not finite in a step to 0",
    "lcm": "diffusers takes its steps from a grid of 50 of its own",
    "tcd": "diffusers takes its steps from a grid of 50 of its own",
    "ipndm": "diffusers' class takes no schedule of the model's",
    "dpm2 karras": "diffusers rounds t in a step's first evaluation alone, which is not followed",
    "dpm2_a karras": "diffusers rounds t in a step's first evaluation alone, which is not followed",
    "deis karras": "diffusers' list ends in its last sigma twice",
    "sa_solver karras": "diffusers' list ends in its last sigma twice",
}


def shared(karras: bool) -> list[str]:
    """The samplers that both engines have, and that follow a Karras list where one is asked for."""
    return [name for name, scheduler in _TABLE.items() if name in SAMPLERS and (scheduler.karras or not karras)]


def make(name: str, *, karras: bool, prediction: str, seed: int, spacing: str = "leading") -> Any:
    """The scheduler of our sampler `name`, with the settings of the SDXL repositories but for the spacing."""
    kind, settings, takes_karras = _TABLE[name]
    given = {**_SDXL, "timestep_spacing": spacing, **settings, "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[prediction]}
    given |= {"use_karras_sigmas": karras} if takes_karras else {}
    given |= {"noise_sampler_seed": seed} if kind == "DPMSolverSDEScheduler" else {}
    return getattr(import_module("diffusers"), kind)(**given)


def run(scheduler: Any, model: Model, shape: tuple[int, ...], steps: int, seed: int, device: str = "cpu") -> Tensor:
    """Latents (1, 4, h, w) after `steps`, from the noise of a generator of `seed` on the CPU, as a pipeline draws it."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps, device=device)
    x = torch.randn(shape, generator=generator).to(device) * scheduler.init_noise_sigma
    takes = "generator" in type(scheduler).step.__code__.co_varnames
    extra = {"generator": generator} if takes else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchsde's, of ends that miss its range by a last bit
        for t in scheduler.timesteps:
            x = scheduler.step(model(scheduler.scale_model_input(x, t), float(t)), t, x, **extra, return_dict=False)[0]
    return x
