"""The 3x3 convolution of a map enlarged to twice its size, every pixel repeated, without enlarging it.

Under a 3x3 window lie at most two rows and two columns of the small map: a pixel of the result is a 2x2 convolution of the small map,
with one of four sets of sums of the nine weights by the pixel's parity. That is 4/9 of the products; the sums are made in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import ops
from ldm.ops import choice, conv
from ldm.ops.conv import Conv3x3, Kept, can_keep, convolve, multiply, on_cpu, packed, winograd_pays
from ldm.ops.linear import plain

SUMS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))  # by parity: what the two small rows are multiplied by


def upsample_reference(h: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    """The specification: h (B, C, H, W), weight (D, C, 3, 3), bias (D), size (h, w) -> (B, D, h, w)."""
    return F.conv2d(F.interpolate(h, size=tuple(size), mode="nearest"), weight, bias, padding=1)


def upsample_conv(h: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    """As `upsample_reference`; its own way where the size is exactly twice and no gradient is asked for."""
    if on_cpu(h, weight):
        return upsample_cpu(h, weight, bias, size)
    learning = torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad)
    twice = _twice(h, size) and h.numel() > 0 and h.dtype == weight.dtype
    if not twice or learning or ops.use_reference() or not can_keep(weight):
        return upsample_reference(h, weight, bias, size)
    if ops.fast(h, weight, bias) and chosen(h, weight) == "triton":
        return upsample_triton(h, weight, bias)
    return upsample_phases(h, weight, bias) if h.is_cuda else upsample_reference(h, weight, bias, size)


def upsampled(h: Tensor, conv: nn.Module, size: Sequence[int]) -> Tensor:
    """`upsample_conv` by a layer's weights; where it is more than a 3x3 convolution, what it makes of the enlarged map."""
    if plain(conv, Conv3x3):
        return upsample_conv(h, conv.weight, conv.bias, size)
    out: Tensor = conv(F.interpolate(h, size=tuple(size), mode="nearest"))
    return out


def _twice(h: Tensor, size: Sequence[int]) -> bool:
    return tuple(size) == (2 * h.shape[2], 2 * h.shape[3])


def chosen(h: Tensor, weight: Tensor) -> str:
    """ "phases" or "triton", for this shape on this device."""
    rows, before, height, wide = h.shape
    return choice.chosen("upsample", f"{rows} {before} {weight.shape[0]} {height} {wide}", h.device, "phases")


def phases_reference(weight: Tensor) -> Tensor:
    """weight (D, C, 3, 3) -> (2, 2, D, C, 2, 2): for a pixel's parities, what the small map's two rows and columns are multiplied by."""
    sums = torch.tensor(SUMS, device=weight.device)
    return torch.einsum("aik,bjl,dckl->abdcij", sums, sums, weight.float()).to(weight.dtype)


_phases: Kept[Tensor] = Kept(lambda weight: phases_reference(weight).flatten(0, 2).contiguous(memory_format=torch.channels_last))
_taps: Kept[Tensor] = Kept(lambda weight: phases_reference(weight).permute(0, 1, 4, 5, 2, 3).contiguous())


def upsample_phases(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The four as one convolution of four times the channels, by the vendor's library."""
    return _apart(F.conv2d(h.contiguous(memory_format=torch.channels_last), _phases(weight), padding=1), bias)


def upsample_cpu(h: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    """By Winograd's products of the enlarged map where they pay, or else the four as one 1x1 convolution of a pixel's four neighbours.

    As a 2x2 convolution oneDNN sums it in an order that depends on the number of threads.
    """
    rows, channels, height, wide = h.shape
    if not _twice(h, size) or winograd_pays(torch.Size((rows, channels, *size)), weight.shape):
        large = F.interpolate(h.contiguous(memory_format=torch.channels_last), size=tuple(size), mode="nearest")
        return convolve(large, weight, bias)
    edged = F.pad(h.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    around = h.new_empty(rows, height + 1, wide + 1, 4, channels)
    for n in range(4):
        around[:, :, :, n] = edged[:, n // 2 : n // 2 + height + 1, n % 2 : n % 2 + wide + 1]
    pixels = around.view(1, -1, 1, 4 * channels).permute(0, 3, 1, 2)
    out = multiply(pixels, _packed_sums(weight, pixels.shape), 1)
    return _apart(out.permute(0, 2, 3, 1).view(rows, height + 1, wide + 1, -1).permute(0, 3, 1, 2), bias)


def _lay_out(weight: Tensor, shape: Sequence[int]) -> Tensor:
    sums = phases_reference(weight).permute(0, 1, 2, 4, 5, 3)
    return packed(sums.reshape(4 * weight.shape[0], 4 * weight.shape[1], 1, 1), 0, 1, 1, shape)


_packed_sums: Kept[Tensor] = Kept(_lay_out)


def kept_bytes(h: torch.Size, weight: torch.Size) -> int:
    """What stays in memory on the CPU beside a weight (D, C, 3, 3) once an h of this shape went through `upsample_conv`."""
    large = torch.Size((*h[:2], 2 * h[2], 2 * h[3]))
    return conv.kept_bytes(large, weight) if winograd_pays(large, weight) else 16 * weight[0] * weight[1] * torch.float32.itemsize


def _apart(y: Tensor, bias: Tensor | None) -> Tensor:
    """y (B, 4 D, H + 1, W + 1), where pixel (p, q) has the small rows p - 1 and p -> (B, D, 2 H, 2 W), channels-last."""
    rows, height, wide, width = y.shape[0], y.shape[2] - 1, y.shape[3] - 1, y.shape[1] // 4
    out = y.new_empty(rows, 2 * height, 2 * wide, width)
    source, target = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1)), out.view(rows, height, 2, wide, 2, width)
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        part, place = source[:, a : a + height, b : b + wide, a, b], target[:, :, a, :, b]
        if bias is None:
            place.copy_(part)
        else:
            torch.add(part, bias, out=place)
    return out.permute(0, 3, 1, 2)


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def upsample(
        h: tl.tensor,  # (B, H, W, C)
        taps: tl.tensor,  # (2, 2, 2, 2, D, C)
        bias: tl.tensor,
        out: tl.tensor,  # (B, 2 H, 2 W, D)
        pixels: tl.tensor,  # B H W
        height: tl.tensor,
        wide: tl.tensor,
        C: tl.tensor,
        D: tl.tensor,
        BIASED: tl.constexpr,
        PIXELS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr,
    ) -> None:
        a, b = tl.program_id(2) // 2, tl.program_id(2) % 2
        at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        row, column, picture = at // wide % height, at % wide, at // (wide * height)
        columns, depth = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
        total = tl.zeros((PIXELS, COLUMNS), tl.float32)
        steps = tl.cdiv(C, DEPTH)
        for step in range(4 * steps):
            tap, channels = step // steps, step % steps * DEPTH + depth
            above, left = row + a - 1 + tap // 2, column + b - 1 + tap % 2
            inside = (at < pixels) & (above >= 0) & (above < height) & (left >= 0) & (left < wide)
            place = ((picture * height + above) * wide + left).to(tl.int64) * C
            x = tl.load(h + place[:, None] + channels[None, :], mask=inside[:, None] & (channels < C)[None, :], other=0.0)
            first = ((tl.program_id(2) * 4 + tap) * D + columns).to(tl.int64) * C
            w = tl.load(taps + first[None, :] + channels[:, None], mask=(columns < D)[None, :] & (channels < C)[:, None], other=0.0)
            total = tl.dot(x, w, total, input_precision="ieee")
        if BIASED:
            total += tl.load(bias + columns, mask=columns < D, other=0.0).to(tl.float32)[None, :]
        place = ((picture * 2 * height + 2 * row + a) * 2 * wide + 2 * column + b).to(tl.int64) * D
        kept = (at < pixels)[:, None] & (columns < D)[None, :]
        tl.store(out + place[:, None] + columns[None, :], total.to(out.dtype.element_ty), mask=kept)

    return upsample


BLOCKS = {"PIXELS": 128, "COLUMNS": 128, "DEPTH": 64}
WARPS, STAGES = 8, 3


def upsample_triton(h: Tensor, weight: Tensor, bias: Tensor | None, blocks: dict[str, int] = BLOCKS) -> Tensor:
    """The four phases in one kernel: the map and the result are channels-last."""
    (rows, before, height, wide), width = h.shape, weight.shape[0]
    small = h.permute(0, 2, 3, 1).contiguous()
    out = h.new_empty(rows, 2 * height, 2 * wide, width)
    pixels = rows * height * wide
    grid = (-(-pixels // blocks["PIXELS"]), -(-width // blocks["COLUMNS"]), 4)
    given = (small, _taps(weight), out if bias is None else bias.contiguous(), out, pixels, height, wide, before, width)
    with torch.cuda.device_of(h):
        _kernel()[grid](*given, BIASED=bias is not None, **blocks, num_warps=WARPS, num_stages=STAGES, **ops.FUSED)
    return out.permute(0, 3, 1, 2)
