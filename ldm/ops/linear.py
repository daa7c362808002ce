"""The linear layer, with the same bits whatever the number of threads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.ops import use_reference

ROWS = 4  # that MKL takes at once


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C), weight (D, C), bias (D) -> (..., D).

    On the CPU the rows of a product are dealt to the threads, and a thread's last one to three rows are summed in another order. Rows
    that are a multiple of four are dealt in fours, so there are none left over: zeros fill them up.
    """
    rows = x.numel() // max(1, x.shape[-1])
    if rows <= ROWS or rows % ROWS == 0 or x.device.type != "cpu" or use_reference():
        return F.linear(x, weight, bias)
    filled = F.pad(x.reshape(rows, -1), (0, 0, 0, -rows % ROWS))
    return F.linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`linear` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
