"""Closed-form denoisers, injected noise and sigma lists that the tests and scripts/references_diffusion.py share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.diffusion.profiles import Profile, load_profile
from ldm.diffusion.samplers import Denoise, NoiseFn, Run, get
from ldm.diffusion.schedules import SigmaTable, sigmas

COMFYUI, A1111 = load_profile("comfyui"), load_profile("a1111")
TABLE = SigmaTable(COMFYUI.alphas)

# Lists along which every sampler is compared: a schedule's, and an uneven one of a user's own, ending at 0 and above it.
LISTS = {
    "karras": sigmas("karras", 12, TABLE, COMFYUI, "euler"),
    "uneven": [12.5, 11.75, 6.0, 5.5, 2.25, 0.75, 0.625, 0.125, 0.0],
    "open": [12.5, 6.0, 5.5, 2.25, 0.75, 0.125],
}


def state(*shape: int, scale: float = 10.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values spread over about -2 to 2 times `scale`, the same on every machine."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(k * 1.7 + 0.3) * 2 * scale).reshape(shape).to(dtype)


def smooth_noise(like: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Noise-like values that depend smoothly on the interval: two sides that differ in the last bit of sigma still agree."""
    k = torch.arange(like.numel(), dtype=torch.float64)
    return (torch.sin(k * 2.1 + 3 * sigma + 5 * sigma_next) * math.sqrt(2)).reshape(like.shape).to(like.dtype)


def gaussian(std: float = 0.7) -> Callable[[Tensor, float], Tensor]:
    """x0 for data N(0, std²): linear in x."""
    return lambda x, sigma: x * (std**2 / (std**2 + sigma**2))


MEANS, SPREADS, WEIGHTS = (-1.5, 0.4, 2.0), (0.3, 0.5, 0.4), (0.3, 0.5, 0.2)


def mixture(x: Tensor, sigma: float) -> Tensor:
    """x0 for data from three Gaussians, element by element: the mean of the posterior."""
    variances = [spread**2 + sigma**2 for spread in SPREADS]
    logits = [
        math.log(weight) - 0.5 * math.log(variance) - (x - mean) ** 2 / (2 * variance)
        for weight, mean, variance in zip(WEIGHTS, MEANS, variances, strict=True)
    ]
    share = torch.softmax(torch.stack(logits), dim=0)
    means = [
        mean + spread**2 / variance * (x - mean) for mean, spread, variance in zip(MEANS, SPREADS, variances, strict=True)
    ]
    return (share * torch.stack(means)).sum(dim=0)


def final(run: Run, denoise: Denoise, x: Tensor, levels: Sequence[float], noise: NoiseFn | None = None) -> Tensor:
    """Where a sampler ends."""
    for step in run(denoise, x, levels, noise):  # type: ignore[arg-type]
        x = step.x
    return x


def ours(name: str, profile: Profile, levels: Sequence[float]) -> Tensor:
    """Our sampler on the mixture with injected noise, in float64, as k-diffusion is run for the stored reference."""
    x = state(2, 4, 3, 3)
    return final(get(name, profile).run, mixture, x, levels, lambda i, sigma, sigma_next: smooth_noise(x, sigma, sigma_next))
