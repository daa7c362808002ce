"""SiLU, GELU and other functions of single elements, with the same bits whatever the number of threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.ops import use_reference

LANES = 64  # elements: a multiple of what any processor takes at once
GRAIN = 32_768  # elements: the fewest that torch gives a thread


def silu(x: Tensor, *, inplace: bool = False) -> Tensor:
    """x sigmoid(x)."""
    return steady(torch.ops.aten.silu, x, inplace=inplace)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, by the error function: what torch gives to oneDNN, which leaves nothing over, is whole in memory.

    Where a gradient is asked for, the copy would be kept for the way back.
    """
    learning = torch.is_grad_enabled() and x.requires_grad
    return F.gelu(x.contiguous() if x.device.type == "cpu" and not learning else x)


def sigmoid(x: Tensor) -> Tensor:
    return steady(torch.ops.aten.sigmoid, x)


class SiLU(nn.Module):
    """`silu` in a row of layers."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


def steady(function: Any, x: Tensor, *, inplace: bool = False) -> Tensor:
    """`function` of x, which torch cuts into one run a thread on the CPU; `inplace`: over x, which is whole in memory.

    A run is computed by vectors, and what is left over at its end one by one, by a formula with other last bits. So that only the end of
    x itself is left over, what does not divide into runs of whole vectors is computed apart.
    """
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return steady(function, x.permute(0, 2, 3, 1), inplace=inplace).permute(0, 3, 1, 2)
    threads = min(torch.get_num_threads(), -(-x.numel() // GRAIN) or 1)
    whole = x.numel() % (LANES * threads) == 0 and (x.is_contiguous() or x.shape[-1] % LANES == 0)
    learning = torch.is_grad_enabled() and x.requires_grad  # the way back has no such promise
    if threads <= 1 or whole or learning or use_reference() or x.device.type != "cpu":
        return function.out(x, out=x) if inplace else function(x)
    x = x.contiguous()
    out = x if inplace else torch.empty_like(x)
    source, target, head = x.view(-1), out.view(-1), _head(x.numel(), threads)
    for part in (slice(head), slice(head, None)):
        function.out(source[part], out=target[part])
    return out


def _head(count: int, threads: int) -> int:
    """The most of `count` elements that fall into runs of whole vectors; the rest is too little for a second thread."""
    head = count - count % (LANES * threads)
    return max(head, GRAIN * (threads - 1))
