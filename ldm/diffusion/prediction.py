"""The UNet as the denoiser sees it: one call with x and t; text and steps are prepared once, dtype changes here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldm.models.unet import Prepared, UNet


class Prediction:
    """predict(x, t) for `count` pictures a row of conditioning: x (R * count, C, h, w), the first `count` rows with row 0 and so on.

    On the CPU each picture is evaluated alone, with its R rows: a matrix product of other height has other last bits there, and a
    picture must not depend on its batch.
    """

    def __init__(self, unet: UNet, context: Tensor, vector: Tensor, *, count: int) -> None:
        weight = next(unet.parameters())
        self.unet, self.dtype = unet, weight.dtype
        self.passes = count if weight.device.type == "cpu" else 1
        self.repeats = count // self.passes
        self.vector = vector.to(weight) if unet.shape.vector_dim else None
        self.text = unet.prepare(context.to(weight), self.vector, []).repeat(self.repeats)
        self.steps: dict[float, Prepared] = {}

    def prepare(self, ts: Sequence[float]) -> None:
        """The embeddings of steps to come, in one product; a step that was not announced is prepared when it comes."""
        new = sorted(set(ts) - set(self.steps))
        for t, shifts in zip(new, self.unet.shifts(self.vector, new), strict=True):
            self.steps[t] = replace(self.text, shifts=Prepared([], [shifts]).repeat(self.repeats).shifts)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.prepare([t])
        passes = x.to(self.dtype).unflatten(0, (-1, self.passes)).unbind(1)  # (R * count, ...) -> count times (R, ...)
        out = torch.stack([self.unet(rows, self.steps[t], 0) for rows in passes], 1)
        return out.flatten(0, 1).to(x.dtype)
