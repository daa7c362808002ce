"""The matrix product of a linear layer in Triton, with what follows it done before anything is written: scales, bias, GEGLU.

Not an operation of its own: ldm.ops.geglu and ldm.ops.fp8 launch it, and theirs are the references.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm import ops


class Blocks(NamedTuple):
    """How the product is cut: a block of rows x columns is summed in steps of `depth`, `stages` of which are under way."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def product(
        a: tl.tensor,  # descriptor of (M, K)
        weight: tl.tensor,  # descriptor of (N, K); gated (2N, K): the rows of x, then those of the gate
        bias: tl.tensor,
        row_scale: tl.tensor,
        weight_scale: tl.tensor,
        out: tl.tensor,  # (M, N)
        M: tl.tensor,
        N: tl.tensor,
        K: tl.tensor,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr,
        BAND: tl.constexpr,  # rows of blocks whose programs run together, so that they meet in the cache
        GATED: tl.constexpr,
        SCALED: tl.constexpr,
        BIASED: tl.constexpr,
    ) -> None:
        program, tall, wide = tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
        top = program // (BAND * wide) * BAND
        high = tl.minimum(tall - top, BAND)
        row = (top + program % (BAND * wide) % high) * ROWS
        column = program % (BAND * wide) // high * COLUMNS
        x = tl.zeros((ROWS, COLUMNS), tl.float32)
        if GATED:
            gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, K, DEPTH):
            left = a.load([row, k])
            x = tl.dot(left, tl.trans(weight.load([column, k])), x)
            if GATED:
                gate = tl.dot(left, tl.trans(weight.load([N + column, k])), gate)
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        if SCALED:
            scale = tl.load(row_scale + rows, mask=rows < M, other=0.0)[:, None]
            x *= scale * tl.load(weight_scale + columns, mask=columns < N, other=0.0)[None, :]
            if GATED:
                gate *= scale * tl.load(weight_scale + N + columns, mask=columns < N, other=0.0)[None, :]
        if BIASED:
            x += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
            if GATED:
                gate += tl.load(bias + N + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if GATED:  # the error function by Abramowitz and Stegun 7.1.26, within 1.5e-7: tl.erf takes more registers than there are
            z = tl.abs(gate) * 0.7071067811865476
            t = 1.0 / (1.0 + 0.3275911 * z)
            tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * tl.exp(-z * z) * 0.5
            x *= gate * tl.where(gate < 0, tail, 1.0 - tail)
        at = rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(out + at, x.to(out.dtype.element_ty), mask=(rows < M)[:, None] & (columns < N)[None, :])

    return product


def product(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    scales: tuple[Tensor, Tensor] | None = None,
    *,
    gated: bool = False,
    blocks: Blocks | None = None,
) -> Tensor:
    """a (..., K), weight (N, K), bias (N) -> a weight^T + bias in `dtype`; `scales` multiply the rows of a and of the weight.

    Gated: weight (2N, K) and bias (2N), and the result is x gelu(gate) of the two halves, (..., N).
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    flat = a.reshape(-1, a.shape[-1])
    (rows, depth), width = flat.shape, len(weight) // 2 if gated else len(weight)
    out = torch.empty(rows, width, dtype=dtype, device=a.device)
    cut = blocks or default_blocks(a, gated=gated)
    row_scale, weight_scale = scales or (out, out)
    grid = (-(-rows // cut.rows) * -(-width // cut.columns),)
    with torch.cuda.device_of(a):
        _kernel()[grid](
            *(TensorDescriptor.from_tensor(each, [side, cut.depth]) for each, side in ((flat, cut.rows), (weight, cut.columns))),
            *(out if bias is None else bias, row_scale, weight_scale, out, rows, width, depth),
            **constants(cut, gated=gated, scaled=scales is not None, biased=bias is not None),
            num_warps=cut.warps,
            num_stages=cut.stages,
            **ops.FUSED,
        )
    return out.view(*a.shape[:-1], width)


def constants(cut: Blocks, *, gated: bool, scaled: bool, biased: bool) -> dict[str, int | bool]:
    """The kernel's constants."""
    sizes = {"ROWS": cut.rows, "COLUMNS": cut.columns, "DEPTH": cut.depth, "BAND": 8}
    return sizes | {"GATED": gated, "SCALED": scaled, "BIASED": biased}


def default_blocks(a: Tensor, *, gated: bool) -> Blocks:
    """For the GPU of `a`."""
    return blocks_for(torch.cuda.get_device_capability(a.device)[0], a.element_size(), gated=gated)


def blocks_for(major: int, size: int, *, gated: bool) -> Blocks:
    """For a GPU's major compute capability and elements of `size` bytes.

    9 and 10 have 227 KiB a multiprocessor for what is under way. Others may have 99, and no unit that copies blocks: without it Triton
    does not overlap copies with products, so that there the vendor's product is the better one.
    """
    if major in (9, 10):
        return Blocks(128, 64 if gated and major == 10 else 128, 128 // size, 8, 4)
    return Blocks(64, 64, 32, 8, 3)


def takes(a: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes them: rows whole in memory that begin at multiples of 16 bytes."""
    return all(each.stride(-1) == 1 and (each.data_ptr() | each.stride(-2) * each.element_size()) % 16 == 0 for each in (a, weight))
