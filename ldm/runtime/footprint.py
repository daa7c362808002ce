"""What the CPU's own convolutions hold beside their tensors, counted as if real while networks run on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.runtime.heap import MAPPED
from ldm.runtime.tracking import Tracker


class OnCPU(Tracker):
    """Small allocations are counted apart too, and what is kept beside weights (`ldm.ops.conv`), by the weight's identity."""

    def __init__(self) -> None:
        super().__init__()
        self.small = self.small_peak = 0
        self.kept: dict[int, int] = {}
        self._enlarged = 0  # the map that was made last to twice its size

    def allocated(self, nbytes: int) -> None:
        super().allocated(nbytes)
        self.small += nbytes if nbytes < MAPPED else 0
        self.small_peak = max(self.small_peak, self.small)

    def forgotten(self, nbytes: int) -> None:
        super().forgotten(nbytes)
        self.small -= nbytes if nbytes < MAPPED else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.convolution.default:
            self.peak = max(self.peak, self.live + self._convolved(*args[:2], plain=tuple(args[3]) == tuple(args[4]) == (1, 1)))
        elif func is torch.ops.aten.upsample_nearest2d.default:
            self._enlarged = id(out)
        return out

    def _convolved(self, x: Tensor, weight: Tensor, *, plain: bool) -> int:
        """Bytes of one convolution's own; `plain`: stride and padding of 1. What is kept is made by way of a copy."""
        from ldm.ops import conv

        if weight.shape[2:] != (3, 3) or x.dtype != torch.float32:
            return x.nbytes  # oneDNN copies it into an order of its own
        pays = plain and conv.winograd_pays(x.shape, weight.shape)
        single = weight.nbytes * 16 // 9 if id(x) == self._enlarged else weight.nbytes
        kept = conv.kept_bytes(x.shape, weight.shape) if pays else single
        first = id(weight) not in self.kept
        self.kept[id(weight)] = max(kept, self.kept.get(id(weight), 0))
        working = conv.working_bytes(x.shape, weight.shape) if pays else 0
        return max(working, kept if first else 0)
