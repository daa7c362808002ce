"""Heun's method on the probability flow ODE, alone, with restarts, and its like with weights by sigma."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, check_sigmas, toward, walk

LEAST = 20  # steps from which there are restarts
BETWEEN = (0.1, 2.0)  # where they begin and end, as near as the list allows


def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 1: the mean of the slopes (x - x0) / sigma at both ends of Euler's step."""
    return walk(denoise, x, sigmas, lambda s: corrected(denoise, s))


def corrected(denoise: Denoise, s: Step) -> Tensor:
    """Heun's step from `s` to its sigma_next > 0."""
    end = toward(s.x0, s.x, s.sigma_next / s.sigma)
    slope = (s.x - s.x0) / s.sigma
    slope_end = (end - denoise(end, s.sigma_next)) / s.sigma_next
    return s.x + (slope + slope_end) * (0.5 * (s.sigma_next - s.sigma))


def heunpp2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """Heun++ (sd-webui-samplers-scheduler, ComfyUI): the slope of the step mixed with those of the next two of Euler's steps.

    Slope k has weight sigma_k / (n sigma_0), n slopes in all, and the first has the rest: at low sigmas nearly everything. No slope is
    asked for at the list's last sigma, so that the last step but one mixes two and the last is Euler's.
    """

    def advance(s: Step) -> Tensor:
        ahead = sigmas[s.i + 1 : s.i + 3]
        ahead = ahead[:-1] if s.i + 3 >= len(sigmas) else ahead
        slope = first = (s.x - s.x0) / s.sigma
        x, here, mixed = s.x, s.sigma, first
        for sigma in ahead:
            x, here = x + slope * (sigma - here), sigma
            slope = (x - denoise(x, sigma)) / sigma
            mixed = mixed + (slope - first) * (sigma / ((len(ahead) + 1) * sigmas[0]))
        return s.x + mixed * (s.sigma_next - s.sigma)

    return walk(denoise, x, sigmas, advance)


def restart(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn) -> Iterator[Step]:
    """Restart sampling (Xu et al. 2023, algorithm 1): Heun's method down, then noise back up and down again over the low sigmas.

    The path is that of `legs`; where it goes up, noise number 0, 1 ... makes the difference.
    """
    check_sigmas(sigmas)
    jumps, here = 0, sigmas[0]
    for i, (sigma, sigma_next) in enumerate(legs(sigmas)):
        if sigma > here:
            x = x + noise(jumps, sigma, here) * math.sqrt(sigma**2 - here**2)
            jumps += 1
        x0, here = denoise(x, sigma), sigma_next
        x = x0 if sigma_next == 0 else corrected(denoise, Step(i, sigma, sigma_next, x, x0))
        yield Step(i, sigma, sigma_next, x, x0)


def legs(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    """(sigma, sigma_next) of every step, by stable-diffusion-webui's rule.

    Below LEAST steps they are the list's. From there on the list is left for Karras' over the same range, shorter by the steps that one
    restart takes, or two from 36 on, so that the count stays (it is less where the range does not reach BETWEEN).
    """
    steps = len(sigmas) - 1
    if steps < LEAST:
        return list(pairwise(sigmas))
    again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    main = [*_karras(steps - again * times, sigmas[-2], sigmas[0]), 0.0]
    low, high = (min(range(len(main)), key=lambda k: abs(main[k] - end)) for end in BETWEEN)
    out = list(pairwise(main))
    if high < low:
        back = _karras(again + 1, main[low], main[high])
        out[low:low] = list(pairwise(back)) * times
    return out


def _karras(n: int, low: float, high: float) -> list[float]:
    """Karras et al. 2022, eq. 5, rho 7: n sigmas from high to low, in float32."""
    ends = low ** (1 / 7), high ** (1 / 7)
    roots: Tensor = ends[1] + torch.linspace(0, 1, n) * (ends[0] - ends[1])
    values: list[float] = roots.pow(7).tolist()
    return values
