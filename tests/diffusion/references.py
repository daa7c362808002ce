"""What other libraries give for the cases of these tests: asked live by the tests, and stored by scripts/references_diffusion.py."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ldm.diffusion.table import SigmaTable
from tests.diffusion.cases import LISTS, mixture, smooth_noise, state
from tests.diffusion.foreign import FUNCTIONS, k_diffusion, k_sample

SPACINGS = {"linspace-linear": "linspace", "leading": "leading", "trailing": "trailing"}
BROWNIAN_ONES = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
STOCHASTIC = ("euler_a", *BROWNIAN_ONES, "dpm2_a", "dpmpp_2s_a", "dpm_fast", "dpm_adaptive", "euler_a_cfg_pp")  # by A1111's rules


def diffusers_sigmas(steps: int, spacing: str, *, karras: bool) -> np.ndarray:
    """The sigmas of diffusers' Euler scheduler with SDXL's numbers."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing=SPACINGS[spacing],
        use_karras_sigmas=karras,
    )
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.double().numpy()


def k_final(name: str, levels: list[float]) -> torch.Tensor:
    """Where k-diffusion ends on the mixture with injected noise, in float64."""
    x = state(2, 4, 3, 3)
    if name not in STOCHASTIC:
        return k_sample(name, mixture, x, levels)
    if name != "dpm_adaptive":
        return k_sample(name, mixture, x, levels, lambda a, b: smooth_noise(x, float(a), float(b)))
    rows = [k_sample(name, mixture, x[k : k + 1], levels, lambda a, b, k=k: smooth_noise(x, float(a), float(b))[k : k + 1]) for k in (0, 1)]
    return torch.cat(rows)


# 20 steps over the training steps from 999 down, their sigmas in diffusers' precision. Its list for unipc and lcm goes on to 0.
STEPS = [round(999 - 999 * k / 20) for k in range(21)]
TO_ZERO = ("unipc_bh2", "lcm")
SCHEDULERS = ("unipc", "unipc_bh2", "deis", "sa_solver", "tcd", "lcm", "ipndm")


def trained(name: str) -> list[float]:
    """The sigmas along which a diffusers scheduler is compared."""
    levels = SigmaTable("float32-betas").sigmas[STEPS].tolist()
    return [*levels[:-1], 0.0] if name in TO_ZERO else levels


def draws(i: int, sigma: float, sigma_next: float) -> torch.Tensor:
    """Noise number i of the generator that a scheduler is given."""
    generator = torch.Generator().manual_seed(3)
    return torch.stack([torch.randn(2, 4, 3, 3, generator=generator) for _ in range(i + 1)])[i]


def scheduler(name: str) -> Any:
    """A diffusers scheduler with SDXL's numbers, its steps those of `trained`."""
    import diffusers

    numbers = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    made: Any = {
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**numbers, solver_type="bh1", final_sigmas_type="sigma_min"),
        "unipc_bh2": lambda: diffusers.UniPCMultistepScheduler(**numbers, final_sigmas_type="zero"),
        "deis": lambda: diffusers.DEISMultistepScheduler(**numbers),
        "sa_solver": lambda: diffusers.SASolverScheduler(**numbers),
        "tcd": lambda: diffusers.TCDScheduler(**numbers),
        "lcm": lambda: diffusers.LCMScheduler(**numbers),
        "ipndm": diffusers.IPNDMScheduler,
    }[name]()
    made.set_timesteps(len(STEPS) - 1)
    made.timesteps, made.sigmas = torch.tensor(STEPS[:-1]), torch.tensor(trained(name))
    if name == "ipndm":  # it has a schedule and steps of its own, and takes velocities
        made.alphas = (made.sigmas**2 + 1) ** -0.5
        made.betas = made.sigmas * made.alphas
    made.set_begin_index(0)
    return made


def scheduled_final(name: str) -> torch.Tensor:
    """Where a diffusers scheduler ends on the mixture, in float32, as x at the last sigma."""
    made, levels = scheduler(name), trained(name)
    noisy = {"generator": torch.Generator().manual_seed(3)} if name in ("sa_solver", "tcd", "lcm") else {}
    x = state(2, 4, 3, 3, dtype=torch.float32) / math.sqrt(levels[0] ** 2 + 1)
    for t, sigma in zip(made.timesteps, levels, strict=False):
        root = math.sqrt(sigma**2 + 1)
        eps = (x * root - mixture(x * root, sigma)) / sigma
        out = eps if name != "ipndm" else (eps - x * (sigma / root)) * root
        x = made.step(out, t, x, **noisy).prev_sample
    return x * math.sqrt(levels[-1] ** 2 + 1)


def torchsde_increments(seed: int, low: float, high: float, points: list[float]) -> torch.Tensor:
    """W over the intervals between `points` in ascending order, each (2, 3) float32."""
    import torchsde

    tree = torchsde.BrownianTree(low, torch.zeros(2, 3), high, entropy=seed)
    ordered = sorted(points)
    return torch.stack([tree(a, b) for a, b in pairwise(ordered)])


BROWNIAN = {"seed": 1234, "low": 0.0291671771556139, "high": 14.614641189575195, "points": [0.03, 0.1, 0.75, 1.0, 3.3, 7.123456, 14.5]}


def stored() -> dict[str, np.ndarray]:
    """Everything that tests/golden/diffusion.npz holds."""
    out = {f"sampler/{name}/{kind}": k_final(name, levels).numpy() for name in FUNCTIONS for kind, levels in LISTS.items()}
    out |= {f"scheduler/{name}": scheduled_final(name).numpy() for name in SCHEDULERS}
    for spacing in SPACINGS:
        for schedule in ("normal", "karras"):
            out[f"schedule/diffusers/{schedule}/{spacing}/30"] = diffusers_sigmas(30, spacing, karras=schedule == "karras")
    table, sampling = SigmaTable("float32"), k_diffusion("sampling")
    for steps in (7, 30):
        ends = steps, table.low, table.high
        out[f"schedule/k-diffusion/karras/linspace-log/{steps}"] = sampling.get_sigmas_karras(*ends).double().numpy()
        out[f"schedule/k-diffusion/exponential/linspace-log/{steps}"] = sampling.get_sigmas_exponential(*ends).double().numpy()
        normal = k_diffusion("external").DiscreteSchedule(table.sigmas, quantize=False).get_sigmas(steps)
        out[f"schedule/k-diffusion/normal/linspace-log/{steps}"] = normal.double().numpy()
    out["brownian"] = torchsde_increments(**BROWNIAN).numpy()  # type: ignore[arg-type]
    return out
