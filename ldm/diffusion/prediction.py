"""The UNet as the denoiser sees it: one call with x and t; text and steps are prepared once, dtype changes here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ldm.models.unet import Prepared, UNet


class Prediction:
    """predict(x, t) for `count` pictures a row of conditioning: x (R * count, C, h, w), the first `count` rows with row 0 and so on."""

    def __init__(self, unet: UNet, context: Tensor, vector: Tensor, *, count: int) -> None:
        weight = next(unet.parameters())
        self.unet, self.count, self.dtype = unet, count, weight.dtype
        self.vector = vector.to(weight) if unet.shape.vector_dim else None
        self.text = unet.prepare(context.to(weight), self.vector, []).repeat(count)
        self.steps: dict[float, Prepared] = {}

    def prepare(self, ts: Sequence[float]) -> None:
        """The embeddings of steps to come, in one product; a step that was not announced is prepared when it comes."""
        new = sorted(set(ts) - set(self.steps))
        for t, shifts in zip(new, self.unet.shifts(self.vector, new), strict=True):
            self.steps[t] = replace(self.text, shifts=Prepared([], [shifts]).repeat(self.count).shifts)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self.prepare([t])
        return self.unet(x.to(self.dtype), self.steps[t], 0)
