"""Sigma lists and training steps by other libraries, a profile at a time: asked live by the tests, stored by the script for references."""

from __future__ import annotations

import numpy as np
import torch

from tests.diffusion.foreign import k_diffusion
from tests.diffusion.references import SPACINGS

COUNTS = (4, 20, 30, 50)
PROFILES = ("comfyui", "a1111", "forge", "diffusers", "sgm")
KINDS = {
    "normal": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
# Our samplers -> diffusers' schedulers, and which of their sigmas and steps start one of our steps.
SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", 1),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", 1),
    "heun": ("HeunDiscreteScheduler", 2),
    "lms": ("LMSDiscreteScheduler", 1),
    "dpm2": ("KDPM2DiscreteScheduler", 2),
    "dpmpp_sde": ("DPMSolverSDEScheduler", 2),
    "unipc": ("UniPCMultistepScheduler", 1),
    "deis": ("DEISMultistepScheduler", 1),
    "sa_solver": ("SASolverScheduler", 1),
}


def scheduled(sampler: str, spacing: str, kind: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(sigmas, timesteps) of diffusers' scheduler with SDXL's settings: steps + 1 and steps of them."""
    import diffusers

    name, stride = SCHEDULERS[sampler]
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    made = getattr(diffusers, name)(timestep_spacing=SPACINGS[spacing], **KINDS[kind], **settings)
    made.set_timesteps(steps)
    sigmas, times = made.sigmas.double().numpy(), made.timesteps.double().numpy()
    if stride == 2:  # each sigma but the first stands there twice
        sigmas = np.concatenate([sigmas[:1], sigmas[1::2]])[: steps + 1]
    return sigmas, times[::stride]


def numpys_table(alphas: str) -> np.ndarray:
    """The 1000 sigmas, made without torch."""
    products = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    products = products.astype(alphas)
    return (((1 - products) / products) ** 0.5).astype(np.float32)


def k_listed(profile: str, kind: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by k-diffusion's functions, on the profile's table and with its way from sigma to t."""
    sampling = k_diffusion("sampling")
    table = torch.from_numpy(numpys_table("float32" if profile == "a1111" else "float64"))
    model = k_diffusion("external").DiscreteSchedule(table, quantize=profile != "a1111")
    ends = (float(table[0]), float(table[-1])) if profile != "sgm" else (0.0292, 14.6146)
    if kind == "normal":
        sigmas = model.get_sigmas(steps)
    elif kind == "karras":
        sigmas = sampling.get_sigmas_karras(steps, *ends, rho=3.0 if profile == "sgm" else 7.0)
    else:
        sigmas = getattr(sampling, f"get_sigmas_{kind}")(steps, *ends)
    times = (table[:, None] - sigmas[:-1]).abs().argmin(0) if profile == "sgm" else model.sigma_to_t(sigmas[:-1])
    return sigmas.double().numpy(), times.double().numpy()


def stored(profile: str) -> dict[str, np.ndarray]:
    """What tests/golden/<profile>.npz holds: for each schedule the lists of all COUNTS, end to end, sigmas and timesteps."""
    if profile == "diffusers":
        names = [f"{sampler}/{spacing}/{kind}" for sampler in ("euler", "dpmpp_2m") for spacing in SPACINGS for kind in KINDS]
    else:
        names = ["karras"] if profile == "sgm" else ["karras", "exponential", "polyexponential", "normal"]
    out = {}
    for name in names:
        parts = [scheduled(*name.split("/"), steps) if "/" in name else k_listed(profile, name, steps) for steps in COUNTS]
        out[f"{name}/sigmas"] = np.concatenate([sigmas for sigmas, _ in parts])
        out[f"{name}/timesteps"] = np.concatenate([times for _, times in parts])
    return {name: values.astype(np.float32) for name, values in out.items()}
