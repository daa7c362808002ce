"""The UNet as the denoiser sees it: one call with x and t; text and steps are prepared once, dtype changes here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ldm.models.prepared import Prepared
    from ldm.models.unet import UNet

Evaluate = Callable[[], Tensor]
Forward = Callable[[Tensor, "Prepared", int], Tensor]  # the UNet's, or what stands for it
Attempt = Callable[[Evaluate, Evaluate], Tensor]  # the first, or the second where the first gives out


class Prediction:
    """predict(x, t) for `count` pictures a row of conditioning: x (R * count, C, h, w), the first `count` rows with row 0 and so on.

    On the CPU each picture is evaluated alone, with its R rows: a matrix product of other height has other last bits there, and a
    picture must not depend on its batch. `attempt(run, again)` is given two ways to one result, `again` row by row, which all later
    evaluations keep to: nothing but the result leaves an evaluation, so one that broke off leaves no trace.
    """

    def __init__(
        self, unet: UNet, context: Tensor, vector: Tensor, *, count: int,
        attempt: Attempt = lambda run, again: run(), forward: Forward | None = None,
    ) -> None:  # fmt: skip
        weight = next(unet.parameters())
        self.unet, self.dtype, self.attempt, self.forward = unet, weight.dtype, attempt, forward or unet
        self.on_cpu = weight.device.type == "cpu"
        self.passes = count if self.on_cpu else 1
        self.repeats = count // self.passes
        self.vector = vector.to(weight) if unet.shape.vector_dim else None
        self.text = unet.prepare(context.to(weight), self.vector, []).repeat(self.repeats)
        self.steps: dict[float, Prepared] = {}
        self.row_by_row = False

    def prepare(self, ts: Sequence[float]) -> None:
        """The embeddings of steps to come; a step that was not announced is prepared when it comes.

        In one product, but for the CPU, where its height would show: a run that is taken up again has fewer steps to come.
        """
        new = sorted(set(ts) - set(self.steps))
        if not new:
            return
        groups = [[t] for t in new] if self.on_cpu else [new]
        for t, shifts in zip(new, [each for group in groups for each in self.unet.shifts(self.vector, group)], strict=True):
            self.steps[t] = replace(self.text, shifts=replace(self.text, keys=[], shifts=[shifts]).repeat(self.repeats).shifts)

    def rows(self, picked: Sequence[int]) -> Prediction:
        """The same for some of the R * count rows alone, by number, evaluated together; it prepares its own steps."""
        alone = copy(self)
        alone.passes, alone.repeats, alone.steps = 1, 1, {}
        if self.vector is not None:
            alone.vector = self.vector[[n // (self.passes * self.repeats) for n in picked]]
        places = [n // self.passes for n in picked]  # of the text's rows, which are repeated where pictures are not evaluated one by one
        alone.text = self.text.told(places)
        return alone

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.attempt(partial(self._evaluate, x, t), partial(self._again, x, t))

    def _again(self, x: Tensor, t: float) -> Tensor:
        self.row_by_row = True
        return self._evaluate(x, t)

    def _evaluate(self, x: Tensor, t: float) -> Tensor:
        self.prepare([t])
        passes = x.to(self.dtype).unflatten(0, (-1, self.passes)).unbind(1)  # (R * count, ...) -> count times (R, ...)
        out = torch.stack([self._pass(rows, self.steps[t]) for rows in passes], 1)
        return out.flatten(0, 1).to(x.dtype)

    def _pass(self, rows: Tensor, prepared: Prepared) -> Tensor:
        if not self.row_by_row:
            return self.forward(rows, prepared, 0)
        return torch.cat([self.forward(row, prepared.row(r), 0) for r, row in enumerate(rows.split(1))])
