"""GroupNorm, with or without the SiLU that follows it, and LayerNorm, with or without the residual added before it.

Torch computes a group in one block: 32 blocks, on a GPU of 132 multiprocessors. Here many blocks measure a piece of the positions each, for
every channel; what they found is put together by group; and many blocks apply it. Mean and squared deviations are merged as by Chan,
Golub and LeVeque 1983, so that a mean far from zero cancels nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import ops
from ldm.ops import activation
from ldm.ops.rows import Norm, block_of, rows, warps

ROWS = 32  # positions that a block holds at once
BLOCK = 64  # channels of a block
PIECES = 1024  # blocks that measure, about: eight a multiprocessor
SPLIT = 1024  # positions, from which on torch splits a channels-last map on the CPU (aten/src/ATen/native/cpu/group_norm_kernel.cpp)
STRIP = 2**18  # elements whose squared deviations are held at once on the CPU: they stay in the cache


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, silu: bool = False) -> Tensor:
    """x (B, C, H, W), normalised over the positions and channels of a group, then weight and bias (C); the memory format is kept."""
    fast = ops.fast(x, weight, bias) and x.dim() == 4
    way = group_norm_triton if fast else group_norm_steady if _splits(x, weight) else group_norm_reference
    return way(x, groups, weight, bias, eps, silu=silu)


def group_norm_reference(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, silu: bool = False) -> Tensor:
    out = F.group_norm(x, groups, weight, bias, eps)
    return activation.silu(out) if silu else out


def group_norm_steady(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, silu: bool = False) -> Tensor:
    """On the CPU, channels-last: a row of positions is summed at a time, the rows in float64, whatever the number of threads."""
    channels = x.shape[1]
    mean = _over_rows(F.avg_pool2d(x, (1, x.shape[3])), groups)  # (B, G)
    centre = mean.float().repeat_interleave(channels // groups, 1)[:, :, None, None]
    parts = x.split(max(1, STRIP // (x.numel() // x.shape[2])), 2)
    spread = [F.avg_pool2d(F.mse_loss(part, centre.expand_as(part), reduction="none"), (1, x.shape[3])) for part in parts]
    variance = _over_rows(torch.cat(spread, 2), groups)
    factor = weight.double().view(1, groups, -1) * (variance + eps).rsqrt()[:, :, None]
    offset = (bias.double().view(1, groups, -1) - mean[:, :, None] * factor).float().view(len(x), channels, 1, 1)
    out = torch.addcmul(offset, x, factor.float().view(len(x), channels, 1, 1))
    return activation.silu(out, inplace=True) if silu else out


def _over_rows(rows: Tensor, groups: int) -> Tensor:
    """Means (B, C, H, 1) of rows -> (B, G) in float64, of groups."""
    return F.avg_pool2d(rows.double(), (rows.shape[2], 1)).view(len(rows), groups, -1).mean(-1)


def _splits(x: Tensor, weight: Tensor) -> bool:
    """Whether torch would sum this map on the CPU in as many pieces as it has threads, and squares without their mean taken off."""
    if x.device.type != "cpu" or x.dim() != 4 or x.dtype != torch.float32 or x.shape[2] * x.shape[3] < SPLIT:
        return False
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return not (learning or ops.use_reference() or x.is_contiguous()) and x.is_contiguous(memory_format=torch.channels_last)


def add_norm(h: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """h + delta (..., C), and the LayerNorm of that sum; of h alone where delta is None."""
    fast = ops.fast(h, delta, weight, bias)
    return (add_norm_triton if fast else add_norm_reference)(h, delta, weight, bias, eps)


def add_norm_reference(h: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    total = h if delta is None else h + delta
    return total, F.layer_norm(total, total.shape[-1:], weight, bias, eps)


def add_norm_triton(h: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    return rows(h, delta, Norm(weight, bias, eps))[:2]


class GroupNorm(nn.GroupNorm):
    """`group_norm` as a layer."""

    def __init__(self, groups: int, width: int, eps: float = 1e-5, *, silu: bool = False) -> None:
        super().__init__(groups, width, eps)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu)


class AddNorm(nn.LayerNorm):
    """`add_norm` as a layer: h and what to add to it -> the sum, and its LayerNorm."""

    def forward(self, h: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return add_norm(h, delta, self.weight, self.bias, self.eps)


class Kernels(NamedTuple):
    measure: Any
    merge: Any
    apply: Any


@cache
def _kernels() -> Kernels:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def measure(
        x: tl.tensor,
        found: tl.tensor,  # (2, B, pieces, C): means, sums of squared deviations
        channels: tl.tensor,
        positions: tl.tensor,
        row_stride: tl.tensor,
        channel_stride: tl.tensor,
        position_stride: tl.tensor,
        length: tl.tensor,  # positions of a piece
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ) -> None:
        piece, row, pieces = tl.program_id(0), tl.program_id(2).to(tl.int64), tl.num_programs(0)
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < channels
        start, stop = piece * length, tl.minimum(piece * length + length, positions)
        source = x + row * row_stride + channel.to(tl.int64) * channel_stride
        shift = tl.load(source + start.to(tl.int64) * position_stride, mask=inside, other=0.0).to(tl.float32)  # near the mean
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        squares = tl.zeros((ROWS, BLOCK), tl.float32)
        for first in range(start, stop, ROWS):
            position = first + tl.arange(0, ROWS)
            here = (position < stop)[:, None] & inside[None, :]
            value = tl.load(source[None, :] + position.to(tl.int64)[:, None] * position_stride, mask=here, other=0.0).to(tl.float32)
            value = tl.where(here, value - shift[None, :], 0.0)
            total += value
            squares += value * value
        mean = tl.sum(total, 0) / (stop - start)
        at = (row * pieces + piece) * channels + channel
        tl.store(found + at, shift + mean, mask=inside)
        tl.store(found + tl.num_programs(2) * pieces * channels + at, tl.sum(squares, 0) - mean * tl.sum(total, 0), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def merge(
        found: tl.tensor,
        weight: tl.tensor,
        bias: tl.tensor,
        affine: tl.tensor,  # (2, B, C): what to multiply by, what to add
        width: tl.tensor,  # channels of a group
        positions: tl.tensor,
        pieces: tl.tensor,
        length: tl.tensor,
        eps: tl.tensor,
        PIECES: tl.constexpr,
        BLOCK: tl.constexpr,
    ) -> None:
        group, row, channels, rows = tl.program_id(0), tl.program_id(1), tl.num_programs(0) * width, tl.num_programs(1)
        piece, lane = tl.arange(0, PIECES), tl.arange(0, BLOCK)
        channel, inside = group * width + lane, lane < width
        here = (piece < pieces)[:, None] & inside[None, :]
        at = (row * pieces + piece)[:, None] * channels + channel[None, :]
        means = tl.load(found + at, mask=here, other=0.0)
        squares = tl.load(found + rows * pieces * channels + at, mask=here, other=0.0)
        count = tl.where(here, tl.minimum(positions - piece * length, length)[:, None].to(tl.float32), 0.0)
        size = positions * 1.0 * width
        shift = tl.load(found + row * pieces * channels + group * width)
        mean = shift + tl.sum(tl.sum((means - shift) * count, 1), 0) / size
        squares += count * (means - mean) * (means - mean)
        factor = tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / size + eps)
        factor *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(affine + row * channels + channel, factor, mask=inside)
        offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) - mean * factor
        tl.store(affine + (rows + row) * channels + channel, offset, mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def apply(
        x: tl.tensor,
        affine: tl.tensor,
        out: tl.tensor,
        channels: tl.tensor,
        positions: tl.tensor,
        row_stride: tl.tensor,
        channel_stride: tl.tensor,
        position_stride: tl.tensor,
        out_row_stride: tl.tensor,
        out_channel_stride: tl.tensor,
        out_position_stride: tl.tensor,
        SILU: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ) -> None:
        row = tl.program_id(2).to(tl.int64)
        position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < channels
        here = (position < positions)[:, None] & inside[None, :]
        factor = tl.load(affine + row * channels + channel, mask=inside, other=0.0)
        offset = tl.load(affine + (tl.num_programs(2) + row) * channels + channel, mask=inside, other=0.0)
        position, channel = position.to(tl.int64)[:, None], channel.to(tl.int64)[None, :]
        value = tl.load(x + row * row_stride + channel * channel_stride + position * position_stride, mask=here, other=0.0).to(tl.float32)
        value = value * factor[None, :] + offset[None, :]
        if SILU:
            value *= tl.sigmoid(value)
        target = out + row * out_row_stride + channel * out_channel_stride + position * out_position_stride
        tl.store(target, value.to(out.dtype.element_ty), mask=here)

    return Kernels(measure, merge, apply)


def group_norm_triton(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, silu: bool = False) -> Tensor:
    """As `group_norm_reference`; what lies in memory neither by positions nor by channels is copied to channels-last first."""
    x = x if _even(x) else x.contiguous(memory_format=torch.channels_last)
    count, channels, positions = len(x), x.shape[1], x.shape[2] * x.shape[3]
    out, tiles, sizes = torch.empty_like(x), -(-channels // BLOCK), {"ROWS": ROWS, "BLOCK": BLOCK} | ops.FUSED
    length, pieces = cut(positions, tiles * count)
    found = torch.empty(2, count, pieces, channels, dtype=torch.float32, device=x.device)
    affine = torch.empty(2, count, channels, dtype=torch.float32, device=x.device)
    merging = {"PIECES": block_of(pieces), "BLOCK": block_of(channels // groups)}
    merging |= {"num_warps": warps(merging["PIECES"] * merging["BLOCK"])} | ops.FUSED
    source, kernels = (channels, positions, *_strides(x)), _kernels()
    with torch.cuda.device_of(x):
        kernels.measure[(pieces, tiles, count)](x, found, *source, length, **sizes)
        kernels.merge[(groups, count)](found, weight, bias, affine, channels // groups, positions, pieces, length, eps, **merging)
        kernels.apply[(-(-positions // ROWS), tiles, count)](x, affine, out, *source, *_strides(out), SILU=silu, **sizes)
    return out


def cut(positions: int, blocks: int) -> tuple[int, int]:
    """The positions of a piece, and the number of pieces, where `blocks` blocks measure each."""
    pieces = max(1, PIECES // max(1, blocks))
    length = -(-positions // (pieces * ROWS)) * ROWS
    return length, -(-positions // length)


def _even(x: Tensor) -> bool:
    """Whether one stride leads from position to position."""
    return x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of rows, channels and positions."""
    return x.stride(0), x.stride(1), x.stride(3) if x.shape[3] > 1 else x.stride(2)
