"""What other libraries give for the cases of these tests: asked live by the tests, and stored by scripts/references_diffusion.py."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from tests.diffusion.cases import LISTS, mixture, smooth_noise, state
from tests.diffusion.foreign import FUNCTIONS, k_diffusion, k_sample

SPACINGS = {"linspace-linear": "linspace", "leading": "leading", "trailing": "trailing"}
STOCHASTIC = ("euler_a", "dpmpp_sde", "dpmpp_2m_sde")


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
    noise = (lambda a, b: smooth_noise(x, float(a), float(b))) if name in STOCHASTIC else None
    return k_sample(name, mixture, x, levels, noise)


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
    for spacing in SPACINGS:
        for schedule in ("normal", "karras"):
            out[f"schedule/diffusers/{schedule}/{spacing}/30"] = diffusers_sigmas(30, spacing, karras=schedule == "karras")
    from ldm.diffusion.schedules import SigmaTable

    table, sampling = SigmaTable("float32"), k_diffusion("sampling")
    for steps in (7, 30):
        ends = steps, table.low, table.high
        out[f"schedule/k-diffusion/karras/linspace-log/{steps}"] = sampling.get_sigmas_karras(*ends).double().numpy()
        out[f"schedule/k-diffusion/exponential/linspace-log/{steps}"] = sampling.get_sigmas_exponential(*ends).double().numpy()
        normal = k_diffusion("external").DiscreteSchedule(table.sigmas, quantize=False).get_sigmas(steps)
        out[f"schedule/k-diffusion/normal/linspace-log/{steps}"] = normal.double().numpy()
    out["brownian"] = torchsde_increments(**BROWNIAN).numpy()  # type: ignore[arg-type]
    return out
