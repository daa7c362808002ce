"""What is computed a row at a time, in one Triton kernel: residual add, LayerNorm, GEGLU's gate, quantising to e4m3.

Not an operation of its own: ldm.ops.norm, ldm.ops.geglu and ldm.ops.fp8 launch it, and theirs are the references.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm import ops

LARGEST = 448.0  # of e4m3
FLOOR = 1e-12  # a row without anything larger is zeros


class Norm(NamedTuple):
    """A LayerNorm's numbers."""

    weight: Tensor
    bias: Tensor
    eps: float


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def rows(
        x: tl.tensor,
        delta: tl.tensor,
        weight: tl.tensor,
        bias: tl.tensor,
        total: tl.tensor,
        out: tl.tensor,
        scale: tl.tensor,
        width: tl.tensor,
        stride: tl.tensor,  # between x's rows
        delta_stride: tl.tensor,
        eps: tl.tensor,
        LARGEST: tl.constexpr,
        FLOOR: tl.constexpr,
        ADDED: tl.constexpr,
        NORMED: tl.constexpr,
        GATED: tl.constexpr,
        QUANTISED: tl.constexpr,
        BLOCK: tl.constexpr,
    ) -> None:
        row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
        inside = columns < width
        value = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            gate = tl.load(x + row * stride + width + columns, mask=inside, other=0.0).to(tl.float32)
            value *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
        if ADDED:
            value += tl.load(delta + row * delta_stride + columns, mask=inside, other=0.0).to(tl.float32)
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + row * width + columns, rounded, mask=inside)
            value = rounded.to(tl.float32)
        if NORMED:
            value = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
            value *= tl.rsqrt(tl.sum(value * value, 0) / width + eps)
            value *= tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
            value += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        if QUANTISED:
            step = tl.maximum(tl.max(tl.abs(value), 0), FLOOR) / LARGEST
            tl.store(scale + row, step)
            value /= step
        tl.store(out + row * width + columns, value.to(out.dtype.element_ty), mask=inside)

    return rows


def rows(
    x: Tensor, delta: Tensor | None = None, norm: Norm | None = None, *, gated: bool = False, quantised: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x (..., C), plus delta -> that sum, its LayerNorm (..., C), and quantised a scale a row (..., 1).

    Gated: x (..., 2 C) holds x and gate, and the second result is x gelu(gate), (..., C).
    """
    width = x.shape[-1] // 2 if gated else x.shape[-1]
    flat, other = (_flat(each) for each in (x, x if delta is None else delta))
    total = x if delta is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out = torch.empty(*x.shape[:-1], width, dtype=torch.float8_e4m3fn if quantised else x.dtype, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device) if quantised else None
    weight, bias, eps = norm or (flat, flat, 0.0)
    block = block_of(width)
    with torch.cuda.device_of(x):
        _kernel()[(len(flat),)](
            *(flat, other, weight, bias, total, out, out if scale is None else scale, width, flat.stride(0), other.stride(0), eps),
            **constants(block, added=delta is not None, normed=norm is not None, gated=gated, quantised=quantised),
            num_warps=warps(block),
            **ops.FUSED,
        )
    return total, out, scale


def _flat(x: Tensor) -> Tensor:
    return (x if x.stride(-1) == 1 else x.contiguous()).reshape(-1, x.shape[-1])


def constants(block: int, *, added: bool = False, normed: bool = False, gated: bool = False, quantised: bool = False) -> dict[str, float]:
    """The kernel's constants."""
    what = {"ADDED": added, "NORMED": normed, "GATED": gated, "QUANTISED": quantised}
    return {"LARGEST": LARGEST, "FLOOR": FLOOR, **what, "BLOCK": block}


def block_of(width: int) -> int:
    """The power of two that holds a row."""
    return 1 << (width - 1).bit_length()


def warps(block: int) -> int:
    """Sixteen elements a thread, which is two loads of a half-precision tensor."""
    return min(16, max(1, block // 512))
