"""The approximate tier: work is left out, from outside the models, and the picture is another one, near the exact one.

The deep part of the UNet is computed anew only now and then (DeepCache: Ma et al. 2023, arXiv:2312.00858), and guidance ends where
little noise is left (Kynkaanniemi et al. 2024, arXiv:2404.07724). How near: docs/performance.md, `python -m scripts.tiers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.diffusion.guidance import Denoise, Guidance
from ldm.diffusion.prediction import Prediction
from ldm.models.unet import CrossAttention, ResBlock
from ldm.runtime.keeping import around

if TYPE_CHECKING:
    from torch import nn

    from ldm.models.prepared import Prepared
    from ldm.models.unet import UNet

# Chosen on the model in the box with 20 steps: at 3 instead of 2, half of the UNet is left out and not 45 %, for 4 dB of the picture.
EVERY = 2  # of so many evaluations of the same words one computes all
EARLY = 800.0  # training step: all is computed above it, where the composition is decided
LOW = 0.28  # sigma: guidance ends there, as in the paper; its upper end is left out, as without guidance there the picture is another


class Interval:
    """Guidance as far down as `low`; below, the conditional prediction alone, which costs half."""

    def __init__(self, guided: Guidance, alone: Denoise, low: float) -> None:
        self._guided, self._alone, self._low = guided, alone, low
        self.uncond: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """x (B, 4, h, w) -> x0, same shape and dtype."""
        guided = sigma > self._low
        x0 = self._guided(x, sigma) if guided else self._alone(x, sigma)
        self.uncond = self._guided.uncond if guided else None
        return x0


class Skipping(Prediction):
    """A prediction that computes the deep part of the UNet anew at every step t above `EARLY`, and then at every `EVERY`-th call.

    Between, the features of the last time stand in for it: each picture's its own, so none depends on its batch.
    """

    def __init__(self, unet: UNet, context: Tensor, vector: Tensor, **rest: Any) -> None:
        self._parts = Parts(unet)
        self._age = EVERY  # as if it were time
        super().__init__(unet, context, vector, **rest | {"forward": self._parts})

    def __call__(self, x: Tensor, t: float) -> Tensor:
        self._age = 0 if t > EARLY or self._age + 1 >= EVERY else self._age + 1
        self._parts.begin(anew=self._age == 0)
        return super().__call__(x, t)

    def _again(self, x: Tensor, t: float) -> Tensor:
        self._parts.begin(anew=True)  # what was kept is of other rows
        return super()._again(x, t)


class Parts:
    """The UNet in two parts: the outermost level, and the deep part within it, whose result is kept, one for each call of an evaluation."""

    def __init__(self, unet: UNet) -> None:
        cut = 1 + unet.shape.num_res_blocks  # stages of the outermost level, on the way down and on the way up
        self._unet = unet
        self._down, self._up = unet.input_blocks[:cut], unet.output_blocks[-cut:]
        self._deep_down, self._deep_up = unet.input_blocks[cut:], unet.output_blocks[:-cut]
        self._kept: list[Tensor] = []
        self._calls = 0

    def begin(self, *, anew: bool) -> None:
        """An evaluation, of which the calls come in the order of the last one."""
        self._calls = 0
        if anew:
            self._kept.clear()

    def __call__(self, x: Tensor, prepared: Prepared, i: int) -> Tensor:
        """As UNet.forward, and as that brings weights that take turns."""
        with around(self._unet, "forward"):
            return self._evaluated(x, prepared, i)

    def _evaluated(self, x: Tensor, prepared: Prepared, i: int) -> Tensor:
        shifts, texts = self._parted(prepared.shifts[i], ResBlock), self._parted([*prepared.texts()], CrossAttention)
        h, skips = x, []
        for stage in self._down:
            h = stage(h, shifts[0], texts[0])
            skips.append(h)
        if self._calls == len(self._kept):
            self._kept.append(self._deep(h, shifts[1], texts[1]))
        h = self._kept[self._calls]
        self._calls += 1
        for stage in self._up:
            h = stage(torch.cat([h, skips.pop()], dim=1), shifts[2], texts[2])
        out: Tensor = self._unet.out(h).contiguous()
        return out

    def _deep(self, h: Tensor, shifts: Iterator[Any], texts: Iterator[Any]) -> Tensor:
        sizes = [h.shape[2:]]
        skips = []
        for stage in self._deep_down:
            h = stage(h, shifts, texts)
            skips.append(h)
            sizes.append(h.shape[2:])
        h = self._unet.middle_block(h, shifts, texts)
        for stage, skip, size in zip(self._deep_up, reversed(skips), reversed(sizes[:-1]), strict=True):
            h = stage(torch.cat([h, skip], dim=1), shifts, texts, size)
        return h

    def _parted(self, items: Sequence[Any], kind: type[nn.Module]) -> tuple[Iterator[Any], ...]:
        """Of what there is one of for each module of a kind: those of the way down, of the deep part and of the way up."""
        first, last = (sum(isinstance(each, kind) for each in stages.modules()) for stages in (self._down, self._up))
        end = len(items) - last
        return iter(items[:first]), iter(items[first:end]), iter(items[end:])
