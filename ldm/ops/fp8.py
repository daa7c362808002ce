"""The linear layer in 8-bit floating point (e4m3), a scale a row of either factor: the reduced tier of GPUs from compute capability 8.9.

    rows = quantise_rows(h)
    out = linear_fp8(rows, weight, bias, h.dtype)  # weight = quantise_rows(linear.weight)

A row is divided by its largest absolute value / 448, so that it fills e4m3's range; the product is multiplied by both scales again. The
rows are best quantised by the kernel that computes them: `norm_quantise` and `geglu_fp8` give them without a pass of their own, and
`AddNormFP8`, `GEGLUFP8` and `LinearFP8` hand them on where the exact layers hand on tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import ops
from ldm.ops import choice
from ldm.ops.linear import linear
from ldm.ops.product import Blocks, product
from ldm.ops.rows import FLOOR, LARGEST, Norm, rows

ALIGNED = 16  # both sides of a weight are multiples of it, as the vendor's product asks


@dataclass(frozen=True)
class Rows:
    """A tensor by rows: values (..., C) in e4m3, times scale (..., 1) in float32. It stands where models pass the tensor on."""

    values: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def is_cuda(self) -> bool:
        return self.values.is_cuda

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Rows:
        """Some of the first axis."""
        return Rows(self.values[index], self.scale[index])

    def dequantise(self) -> Tensor:
        """In float32."""
        return self.values.float() * self.scale


def supported(device: torch.device) -> bool:
    """Whether this device multiplies e4m3."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 9)


def quantise_rows(x: Tensor) -> Rows:
    """x (..., C), weights too: their rows are the output channels."""
    return quantise_triton(x) if ops.fast(x) else quantise_reference(x)


def quantise_reference(x: Tensor) -> Rows:
    scale = x.float().abs().amax(-1, keepdim=True).clamp_min(FLOOR) / LARGEST
    return Rows((x.float() / scale).to(torch.float8_e4m3fn), scale)


def quantise_triton(x: Tensor) -> Rows:
    return _rows(*rows(x, quantised=True)[1:])


def norm_quantise(h: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Rows]:
    """h + delta (..., C), and the rows of its LayerNorm; h alone where delta is None."""
    fast = ops.fast(h, delta, weight, bias)
    return (norm_quantise_triton if fast else norm_quantise_reference)(h, delta, weight, bias, eps)


def norm_quantise_reference(h: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Rows]:
    total = h if delta is None else h + delta
    return total, quantise_reference(F.layer_norm(total, total.shape[-1:], weight, bias, eps))


def norm_quantise_triton(h: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Rows]:
    total, values, scale = rows(h, delta, Norm(weight, bias, eps), quantised=True)
    return total, _rows(values, scale)


def gate_quantise(projected: Tensor) -> Rows:
    """projected (..., 2 C), x and gate -> the rows of x gelu(gate), (..., C)."""
    return gate_quantise_triton(projected) if ops.fast(projected) else gate_quantise_reference(projected)


def gate_quantise_reference(projected: Tensor) -> Rows:
    x, gate = projected.chunk(2, dim=-1)
    return quantise_reference(x * F.gelu(gate))


def gate_quantise_triton(projected: Tensor) -> Rows:
    return _rows(*rows(projected, gated=True, quantised=True)[1:])


def _rows(values: Tensor, scale: Tensor | None) -> Rows:
    if scale is None:
        raise TypeError("rows without scales")
    return Rows(values, scale)


def linear_fp8(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (..., C), weight (D, C), bias (D) -> (..., D) in `dtype`: by the vendor's product, or ours where it is the faster one."""
    if not ops.fast(x.values, weight.values):
        return linear_fp8_reference(x, weight, bias, dtype)
    return (linear_fp8_triton if _ours(x, weight, "fp8") else linear_fp8_vendor)(x, weight, bias, dtype)


def _ours(x: Rows, weight: Rows, op: str) -> bool:
    shape = f"{x.scale.numel()} {len(weight)} {x.shape[-1]}"
    return choice.chosen(op, shape, x.values.device, "vendor") == "triton"


def linear_fp8_reference(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return linear(x.dequantise(), weight.dequantise(), None if bias is None else bias.float()).to(dtype)


def linear_fp8_vendor(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """torch's scaled product; with scales by row it gives bfloat16 alone."""
    half = torch.bfloat16
    out = torch._scaled_mm(
        x.values.reshape(-1, x.shape[-1]),
        weight.values.t(),
        scale_a=x.scale.reshape(-1, 1),
        scale_b=weight.scale.t(),
        bias=None if bias is None else bias.to(half),
        out_dtype=half,
        use_fast_accum=True,
    )
    return out.to(dtype).view(*x.shape[:-1], len(weight))


def linear_fp8_triton(
    x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype, *, gated: bool = False, blocks: Blocks | None = None
) -> Tensor:
    return product(x.values, weight.values, bias, dtype, (x.scale, weight.scale), gated=gated, blocks=blocks)


def geglu_fp8(x: Rows, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> Rows:
    """x (..., C), weight (2 D, C) -> the rows of x gelu(gate), (..., D).

    A row's largest value needs the whole row, and a block of a product holds a part of it: the rows are quantised by a second kernel,
    which the vendor's product leaves the gate to as well.
    """
    if ops.fast(x.values, weight.values) and _ours(x, weight, "fp8_geglu"):
        return quantise_rows(linear_fp8_triton(x, weight, bias, dtype, gated=True))
    return gate_quantise(linear_fp8(x, weight, bias, dtype))


class LinearFP8(nn.Module):
    """A linear layer with its weight in e4m3; it takes a tensor, or its rows where they are quantised already."""

    weight_q: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Rows, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = dtype  # of what it gives
        self.register_buffer("weight_q", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """The layer, quantised on the device where its weight is."""
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(quantise_rows(layer.weight.detach()), bias, layer.weight.dtype)

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        """Whether the layer's sides are what the product takes."""
        return layer.in_features % ALIGNED == 0 and layer.out_features % ALIGNED == 0

    @property
    def rows(self) -> Rows:
        """The weight."""
        return Rows(self.weight_q, self.weight_scale)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """x (..., C) -> (..., D) in the layer's dtype."""
        return linear_fp8(as_rows(x), self.rows, self.bias, self.dtype)


class GEGLUFP8(nn.Module):
    """The first half of a feed-forward: it gives rows, which the second half's `LinearFP8` takes."""

    def __init__(self, proj: LinearFP8) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, h: Tensor | Rows) -> Rows:
        return geglu_fp8(as_rows(h), self.proj.rows, self.proj.bias, self.proj.dtype)


class AddNormFP8(nn.LayerNorm):
    """`ldm.ops.norm.AddNorm` that gives its second result as rows, for `LinearFP8` to take."""

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Self:
        """With that layer's own weight and bias."""
        made = cls(norm.normalized_shape, norm.eps, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(self, h: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Rows]:  # type: ignore[override]
        return norm_quantise(h, delta, self.weight, self.bias, self.eps)


def as_rows(x: Tensor | Rows) -> Rows:
    return x if isinstance(x, Rows) else quantise_rows(x)
