"""The 3x3 convolution: on the CPU in float32 by Winograd's products or with a weight laid out once, elsewhere torch's own.

Winograd's minimal filtering, F(4x4, 3x3), takes 36 products for 16 outputs instead of 144 (Lavin and Gray 2015). The interpolation points
are 0, +-sqrt(1/2), +-sqrt(2) and infinity: in float32 the error is half of that with the customary +-1, +-2 (docs/performance.md), and
every factor but two is a power of two, so that a fused multiply-add rounds as the two operations do: no bit depends on how the elements
are dealt to threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from ldm.ops import use_reference

T = TypeVar("T")

NARROWEST = 128  # channels, before and after, from which on the transforms cost less than they save
LARGEST = 640 * 1280  # weights a tap: beyond, four times the weight's memory is more than the time is worth
FEWEST = 8  # tiles: with fewer, reading the larger weight takes all the time
FILLED = 0.75  # the least share of the tiles that lies on the map
SIDE = 4  # of a tile of outputs
TAPS = 6  # of the tile of inputs it comes from
NEAR, FAR = 2**-0.5, 2**0.5  # the points
AT_ONCE = 128  # tiles: their products stay in the processor's cache, and the weights are read seldom
SUMMED = 160  # channels summed in one go: longer sums round more, more sums take longer
ROWS = 16  # of a weight, transformed at once: they stay in the cache


_ANEW: ContextVar[bool] = ContextVar("ldm_ops_conv_anew", default=False)


@contextmanager
def anew(yes: bool = True) -> Iterator[None]:
    """Make what is made of weights at every call, and keep none of it, in this thread or task alone: less memory, more time."""
    token = _ANEW.set(yes)
    try:
        yield
    finally:
        _ANEW.reset(token)


class Kept(Generic[T]):
    """`make(weight, *hints)` of every weight, made again where the weight was written to, moved or replaced, and gone when it is gone.

    The hints of the first call stay: what is made must be right whatever they are, at most slower.
    """

    ALL: ClassVar[list[Kept[Any]]] = []

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._made: Any = WeakIdKeyDictionary()
        self.ALL.append(self)

    def __call__(self, weight: Tensor, *hints: Any) -> T:
        stamp = (weight.data_ptr(), weight._version, weight.dtype, weight.device, weight.shape, weight.stride())
        found: tuple[object, T] | None = self._made.get(weight)
        if found is not None and found[0] == stamp:
            return found[1]
        made = self._make(weight.detach(), *hints)
        if _ANEW.get():
            self.forget(weight)
        else:
            self._made[weight] = stamp, made
        return made

    def __len__(self) -> int:
        return len(self._made)

    def nbytes(self, weight: Tensor) -> int:
        """Of what is kept of it."""
        _, made = self._made.get(weight, (None, ()))
        return sum(each.numel() * each.element_size() for each in (made if isinstance(made, list | tuple) else [made]))

    def forget(self, weight: Tensor) -> None:
        self._made.pop(weight, None)


def held(weights: Iterable[Tensor]) -> int:
    """Bytes of what is kept of them."""
    return sum(kept.nbytes(weight) for weight in weights for kept in Kept.ALL)


def let_go(weights: Iterable[Tensor]) -> None:
    """Keep nothing of them any more."""
    for weight in weights:
        for kept in Kept.ALL:
            kept.forget(weight)


def can_keep(weight: Tensor) -> bool:
    """Whether a change of the weight can be seen: a tensor made in inference mode counts none."""
    return not weight.is_inference()


class Conv3x3(nn.Conv2d):
    """x (B, C, H, W) -> (B, D, H, W), or half of that with stride 2; the same bits whatever the number of threads."""

    def __init__(self, before: int, width: int, *, stride: int = 1, padding: int = 1) -> None:
        super().__init__(before, width, 3, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if not on_cpu(x, self.weight):
            return super().forward(x)
        return convolve(x, self.weight, self.bias, int(self.stride[0]), int(self.padding[0]))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 1) -> Tensor:
    """x (B, C, H, W), weight (D, C, 3, 3), where `on_cpu` says so; channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    if stride == padding == 1 and winograd_pays(x.shape, weight.shape):
        return winograd(x, weight, bias)
    return multiply(x, _laid_out(weight, padding, stride, x.shape), 1, bias, padding, stride)


def on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether the CPU's own paths serve: float32, no gradient asked for, no reference, a weight that can be watched."""
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    plain = use_reference() or learning or not can_keep(weight) or not torch.backends.mkldnn.is_available()
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0 and not plain


def winograd_pays(x: torch.Size, weight: torch.Size) -> bool:
    """Whether Winograd's products are worth their transforms and their memory, for x (B, C, H, W) and weight (D, C, 3, 3)."""
    down, across = -(-x[2] // SIDE), -(-x[3] // SIDE)
    full = x[2] * x[3] >= FILLED * down * across * SIDE**2
    return full and x[0] * down * across >= FEWEST and min(weight[:2]) >= NARROWEST and weight[0] * weight[1] <= LARGEST


def kept_bytes(x: torch.Size, weight: torch.Size) -> int:
    """What stays in memory beside a weight (D, C, 3, 3) in float32 once an x of this shape went through it."""
    taps = TAPS**2 if winograd_pays(x, weight) else 9
    return taps * weight[0] * weight[1] * torch.float32.itemsize


def working_bytes(x: torch.Size, weight: torch.Size) -> int:
    """The most that Winograd's products hold at once beside x and the result."""
    tiles = max(AT_ONCE, x[0] * -(-x[3] // SIDE)) if winograd_pays(x, weight) else 0
    return tiles * TAPS**2 * (2 * weight[1] + 3 * weight[0]) * torch.float32.itemsize


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, C, H, W), weight (D, C, 3, 3) -> (B, D, H, W), padding 1; float32 on the CPU, channels-last in memory."""
    rows, width, height, wide = x.shape[0], weight.shape[0], x.shape[2], x.shape[3]
    down, across = -(-height // SIDE), -(-wide // SIDE)
    source = x.permute(0, 2, 3, 1)
    out = x.new_empty(rows, down * SIDE, across * SIDE, width)
    step = max(1, AT_ONCE // (rows * across))
    for top in range(0, down, step):
        strip = _strip(source, top, min(step, down - top), across)
        tiles = _outputs(_products(_inputs(strip, across), weight), out[:, top * SIDE :][:, : step * SIDE])
        if bias is not None:
            tiles.add_(bias)
    return out[:, :height, :wide].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _strip(source: Tensor, top: int, count: int, across: int) -> Tensor:
    """The inputs of `count` rows of tiles, (B, 4 count + 2, 4 across + 2, C), with zeros around the map."""
    height, wide = source.shape[1:3]
    first, last = top * SIDE - 1, (top + count) * SIDE + 1
    above, below = max(0, -first), max(0, last - height)
    return F.pad(source[:, max(0, first) : last], (0, 0, 1, across * SIDE + 1 - wide, above, below))


def _inputs(strip: Tensor, across: int) -> Tensor:
    """B^T d B of every tile: (P, B, n, across, 6, 6, C / P), the channels in parts."""
    rows, high, wide, channels = strip.shape
    count, parts = high // SIDE, _parts(channels)
    half = strip.new_empty(TAPS, rows, count, wide, channels)
    _interpolate([strip[:, i:][:, : SIDE * count : SIDE] for i in range(TAPS)], half)
    out = strip.new_empty(parts, rows, count, across, TAPS, TAPS, channels // parts)
    halves = [half[:, :, :, j:][:, :, :, : SIDE * across : SIDE].unflatten(-1, (parts, -1)) for j in range(TAPS)]
    _interpolate(halves, out.permute(5, 4, 1, 2, 3, 0, 6))
    return out


def _interpolate(d: Sequence[Tensor], out: Sequence[Tensor] | Tensor) -> None:
    """B^T d: six values to their polynomial's at the six points."""
    torch.sub(d[4], d[2], alpha=2, out=out[0])
    odd = torch.sub(d[3], d[1], alpha=2).mul_(NEAR)
    torch.add(out[0], odd, out=out[1])
    torch.sub(out[0], odd, out=out[2])
    out[0].add_(d[0]).sub_(d[2], alpha=0.5)
    even = torch.sub(d[4], d[2], alpha=0.5)
    torch.sub(d[3], d[1], alpha=0.5, out=odd).mul_(FAR)
    torch.add(even, odd, out=out[3])
    torch.sub(even, odd, out=out[4])
    torch.sub(d[5], d[3], alpha=2, out=out[5]).add_(d[1]).sub_(d[3], alpha=0.5)


def _products(tiles: Tensor, weight: Tensor) -> Tensor:
    """(P, B, n, across, 6, 6, C / P) -> (B, n, across, 6, 6, D): a product at each of the 36 points, all as one grouped 1x1 convolution."""
    count, groups = tiles.shape[1:4].numel(), TAPS * TAPS
    factors = _transformed(weight, count)
    wide = tiles.view(len(tiles), 1, count, 1, -1).permute(0, 1, 4, 2, 3)
    total = multiply(wide[0], factors[0], groups)
    for part, factor in zip(wide[1:], factors[1:], strict=True):
        total.add_(multiply(part, factor, groups))
    return total.permute(0, 2, 3, 1).view(*tiles.shape[1:-1], -1)


def _outputs(m: Tensor, out: Tensor) -> Tensor:
    """A^T m A of every tile, into (B, 4n, 4 across, D)."""
    rows, count, across, _, _, width = m.shape
    half = m.new_empty(SIDE, rows, count, across, TAPS, width)
    _evaluate([m[:, :, :, i] for i in range(TAPS)], half)
    tiles = out.view(rows, count, SIDE, across, SIDE, width).permute(4, 2, 0, 1, 3, 5)  # (4 across, 4 down, B, n, across, D)
    _evaluate([half[..., j, :] for j in range(TAPS)], tiles)
    return out


def _evaluate(m: Sequence[Tensor], out: Tensor) -> None:
    """A^T m: six products to four outputs."""
    near, far = torch.sub(m[1], m[2]).mul_(NEAR), torch.sub(m[3], m[4]).mul_(FAR)
    torch.add(near, far, out=out[1])
    torch.add(m[5], far, alpha=2, out=out[3]).add_(near, alpha=0.5)
    torch.add(m[1], m[2], out=near)
    torch.add(m[3], m[4], out=far)
    torch.add(near, far, out=out[0]).add_(m[0])
    torch.mul(near, 0.5, out=out[2]).add_(far, alpha=2)


def _transform(weight: Tensor, count: int) -> list[Tensor]:
    """G g G^T in float64, a part of the channels each, laid out as oneDNN likes it for `count` tiles."""
    parts, (width, channels) = _parts(weight.shape[1]), weight.shape[:2]
    made = weight.new_empty(parts, TAPS * TAPS, width, channels // parts)
    both = torch.kron(_matrix(), _matrix())
    for top in range(0, width, ROWS):
        rows = weight[top : top + ROWS].reshape(-1, 9).double()
        made[:, :, top : top + ROWS] = (both @ rows.T).view(TAPS * TAPS, -1, parts, channels // parts).permute(2, 0, 1, 3)
    wide = [part.reshape(-1, channels // parts, 1, 1) for part in made]
    return [packed(part, 0, 1, TAPS * TAPS, [1, TAPS * TAPS * channels // parts, count, 1]) for part in wide]


def _matrix() -> Tensor:
    """G, (6, 3)."""
    points = [0.0, NEAR, -NEAR, FAR, -FAR]
    scales = [math.prod(p - q for q in points if q != p) for p in points]
    rows = [[p**k / scale for k in range(3)] for p, scale in zip(points, scales, strict=True)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


_transformed: Kept[list[Tensor]] = Kept(_transform)


def _parts(channels: int) -> int:
    """Into how many equal parts the sum over the channels is cut."""
    return next(count for count in range(-(-channels // SUMMED), channels + 1) if channels % count == 0)


def packed(weight: Tensor, padding: int, stride: int, groups: int, shape: Sequence[int]) -> Tensor:
    """The weight laid out as oneDNN likes it for an input of this shape; other shapes are right too."""
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    made: Tensor = reorder(weight.contiguous().to_mkldnn(), [padding] * 2, [stride] * 2, [1, 1], groups, list(shape))
    return made


def multiply(x: Tensor, weight: Tensor, groups: int, bias: Tensor | None = None, padding: int = 0, stride: int = 1) -> Tensor:
    """The convolution by oneDNN with a packed weight, whatever the number of threads: torch itself would choose by that."""
    run: Any = torch.ops.mkldnn._convolution_pointwise
    out: Tensor = run(x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, "none", [], "")
    return out


_laid_out: Kept[Tensor] = Kept(lambda weight, padding, stride, shape: packed(weight, padding, stride, 1, shape))
