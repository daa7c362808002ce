"""The noise that training adds: plain, or with a part of its own for each whole channel, for coarser scales, or for the input alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.models.shapes import Numbers

SCALES = 6  # of pyramid noise, at most


@dataclass(frozen=True)
class Noising(Numbers):
    """Strengths, each 0 for none.

    `offset`: noise + offset * one draw a channel (Guttenberg 2023, "Diffusion with offset noise": 0.1; SDXL: 0.0357), so that the mean of a
    picture is noised as its details are, and learned. `pyramid`: noise + the sum of pyramid^k times noise at a random 2 to 4 times
    coarser scale each, to a standard deviation of one in all (Whitaker 2023, "Multi-resolution noise for diffusion model training").
    `perturbation`: x holds noise + perturbation * another draw, the prediction's target does not (Ning et al. 2023, algorithm 1).
    """

    offset: float = 0.0
    pyramid: float = 0.0
    perturbation: float = 0.0

    def __post_init__(self) -> None:
        for key in ("offset", "pyramid", "perturbation"):
            self._require(0 <= getattr(self, key) <= 1, key, "expected 0 to 1")

    def draw(self, shape: tuple[int, int, int, int], random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two of `shape` (B, C, h, w): the noise that x holds, and the noise that is to be predicted.

        Drawn on the CPU, one picture after the other's every part, in an order that leaves plain noise as it is without the others.
        """
        noise = torch.randn(shape, generator=random)
        if self.offset:
            noise = noise + self.offset * torch.randn(*shape[:2], 1, 1, generator=random)
        if self.pyramid:
            noise = _pyramid(noise, self.pyramid, random)
        return (noise + self.perturbation * torch.randn(shape, generator=random) if self.perturbation else noise), noise


def _pyramid(noise: Tensor, discount: float, random: torch.Generator) -> Tensor:
    height, width = noise.shape[2:]
    for k in range(1, SCALES + 1):
        factor = float(torch.rand((), generator=random)) * 2 + 2
        size = [max(1, int(side / factor**k)) for side in (height, width)]
        coarse = torch.randn(*noise.shape[:2], *size, generator=random)
        noise = noise + discount**k * F.interpolate(coarse, size=(height, width), mode="bilinear")
        if size == [1, 1]:
            break
    return noise / noise.std()
