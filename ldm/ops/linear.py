"""The linear layer, with the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.ops import use_reference

T = TypeVar("T", bound=nn.Module)

ROWS = 4  # that MKL takes at once


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C), weight (D, C), bias (D) -> (..., D): in float32 on the CPU by oneDNN, which takes 0.70 to 0.92 of MKL's time."""
    if by_onednn(x, weight, bias):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    plainly = x.device.type != "cpu" or use_reference() or learning(x, weight, bias)
    return F.linear(x, weight, bias) if plainly else filled(x, weight, bias)


def learning(*tensors: Tensor | None) -> bool:
    """Whether a gradient is asked for: the way back has no promise of bits, and rows that are filled up cost it copies."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


def filled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product by MKL, which deals rows to the threads and sums a thread's last one to three in another order.

    Rows that are a multiple of four are dealt in fours, so there are none left over: zeros fill them up.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if rows <= ROWS or rows % ROWS == 0:
        return F.linear(x, weight, bias)
    whole = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % ROWS))
    return F.linear(whole, weight, bias)[:rows].reshape(*x.shape[:-1], -1)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether its product takes them; it knows no gradients."""
    given = [x, weight] if bias is None else [x, weight, bias]
    if use_reference() or not torch.backends.mkldnn.is_available() or x.dim() < 2 or not x.numel():
        return False
    return not learning(*given) and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in given)


class Linear(nn.Linear):
    """`linear` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linears(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """What each layer makes of x: by one product on a GPU where their weights lie side by side, as they do after loading.

    On the CPU it takes as long as three (measured: docs/performance.md).
    """
    weight = side_by_side(layers) if x.is_cuda and not use_reference() else None
    if weight is None:
        return [layer(x) for layer in layers]
    return linear(x, weight).chunk(len(layers), dim=-1)


def side_by_side(layers: Sequence[nn.Module]) -> Tensor | None:
    """The weights (D, C) of n plain layers without bias as one (n D, C), without a copy; None where they are not one in memory.

    Nor where one of them learns: its gradient would not find it.
    """
    weights = [layer.weight for layer in layers if plain(layer, Linear) and layer._parameters["bias"] is None]
    learning = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
    first = weights[0] if len(weights) == len(layers) and not learning else None
    if first is None or not all(_follows(first, weight, n) for n, weight in enumerate(weights)):
        return None
    return first.as_strided((len(weights) * len(first), first.shape[1]), first.stride())


def plain(layer: nn.Module, kind: type[T]) -> TypeGuard[T]:
    """Whether a layer is what it was built as, and no more: no LoRA around it, no 8 bits in its place, no hook that waits for its call."""
    return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks)


def _follows(first: Tensor, weight: Tensor, n: int) -> bool:
    """Whether `weight` is the n-th of its like from `first` on."""
    one = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    at = int(weight.storage_offset() - first.storage_offset())
    return one and weight.shape == first.shape and weight.is_contiguous() and at == n * first.numel()
