"""The linear layer in 8-bit integers: the reduced tier of the CPU, whose vector units multiply them several times as fast as floats.

A row of x is divided by its largest absolute value / 127 and rounded, a row of the weight once and for all. Sums of whole numbers are
exact, and so is every step to the scales and back, element by element: the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

LARGEST = 127.0
FLOOR = 1e-12  # a row without anything larger is zeros


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., C), weights too: their rows are the output channels -> int8 (..., C), and scales (..., 1) in float32."""
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min_(FLOOR).div_(LARGEST)
    return (x / scale).round_().to(torch.int8), scale


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C), weight (D, C) in int8 with scale (D,), bias (D) -> (..., D), float32."""
    rows, row_scale = quantise_rows(x.reshape(-1, x.shape[-1]))
    out = multiply(rows, weight).float().mul_(scale).mul_(row_scale)
    return (out if bias is None else out.add_(bias)).view(*x.shape[:-1], -1)


def linear_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The specification, in float64: no sum of 8-bit products that fits memory is rounded there."""
    rows, row_scale = quantise_rows(x)
    out = (rows.double() @ weight.double().T).float() * scale * row_scale
    return out if bias is None else out + bias


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (M, C) and weight (D, C) in int8 -> (M, D) in int32."""
    if rows.is_meta:
        return torch.empty(len(rows), len(weight), dtype=torch.int32, device="meta")
    run: Any = torch._int_mm
    out: Tensor = run(rows, weight.t())
    return out


class LinearInt8(nn.Module):
    """A linear layer with its weight in int8."""

    weight_q: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight_q", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """The layer, quantised."""
        weight, scale = quantise_rows(layer.weight.detach())
        return cls(weight, scale[:, 0].contiguous(), None if layer.bias is None else layer.bias.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        return linear_int8(x, self.weight_q, self.weight_scale, self.bias).to(x.dtype)
