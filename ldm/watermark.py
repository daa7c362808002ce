"""SDXL's invisible mark: the 48 bits that its reference code puts into every picture, in numpy, as the stock decoder reads them.

The picture in YUV; on U one level of the Haar transform; its low band in blocks of 4 x 4, row by row: block k carries bit k mod 48 in its
element of largest magnitude, the first left out. With v that magnitude, v mod 36 is 9 for a 0 and 27 for a 1; the reader takes
v mod 36 > 18, and the majority over the blocks of a bit. (`invisible-watermark` calls the method dwtDct.)

Ours goes to the nearest such value above, or to the one below when that is at most 8 away. Then the element stays the largest, or those
that are as large read as the same bit, so flat pictures keep the mark too. V does not change, and Y only where a channel would leave its
range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ldm.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

MARK = 0xB3EC907BB19E
BITS = 48
SMALLEST = 256  # a side, in pixels
SCALE = 36.0
DOWN = 8  # the furthest way down: a value that lies so far above reads as the same bit, with 1 to spare
NONE, LIKELY, SURE = 27, 33, 35  # matching bits up to which the reference's detector says: none, partial, likely; above: very likely
_LUMA = np.array([0.299, 0.587, 0.114])
_BLUE = 0.492  # U = 0.492 (B - Y) + 128
Array = np.ndarray[Any, np.dtype[Any]]


def check(width: int, height: int) -> None:
    """InputError where a picture of this size cannot carry the mark."""
    if min(width, height) < SMALLEST:
        raise InputError(f"watermark: {width}x{height} is too small to carry it: make pictures of at least {SMALLEST} pixels a side")


def embed(picture: Image.Image) -> Image.Image:
    """A copy of an RGB picture with the mark. InputError below 256 pixels a side."""
    from PIL import Image

    check(*picture.size)
    colours = np.asarray(picture.convert("RGB"), np.float64)
    blocks = _blocks(_blue(colours))
    rows, columns, place = _largest(blocks)
    value = blocks[rows, columns, place]
    rest = (value - SCALE * np.where(_wanted(blocks), 0.75, 0.25)) % SCALE  # how far below it the value lies that carries the bit
    change = np.zeros_like(blocks)
    change[rows, columns, place] = np.where(rest <= DOWN, -rest, SCALE - rest)
    return Image.fromarray(np.rint(_shift(colours, _spread(change, colours.shape[:2]))).astype(np.uint8))


def read(picture: Image.Image) -> int:
    """How many of the 48 bits are there; 24 is what a picture without the mark has by chance. 0 for one that is too small."""
    if min(picture.size) < SMALLEST:
        return 0
    blocks = _blocks(_blue(np.asarray(picture.convert("RGB"), np.float64)))
    votes = (blocks[_largest(blocks)] % SCALE > SCALE / 2).ravel()
    index = np.arange(votes.size) % BITS
    share = np.bincount(index, votes, BITS) / np.bincount(index, minlength=BITS)
    return int(np.sum((share > 127 / 255) == _bits()))


def _bits() -> Array:
    return np.array([MARK >> (BITS - 1 - place) & 1 for place in range(BITS)], bool)


def _blue(colours: Array) -> Array:
    """U of (H, W, 3), in whole numbers as the reader has it."""
    return np.clip(np.rint(_BLUE * (colours[..., 2] - colours @ _LUMA) + 128), 0, 255)


def _blocks(plane: Array) -> Array:
    """The low band (h/2, w/2) as (rows, columns, 16): sums of 2 x 2 pixels, halved; what fills no block is left out."""
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    cut = plane[: rows * 8, : columns * 8].reshape(rows, 4, 2, columns, 4, 2)
    return cut.sum((2, 5)).transpose(0, 2, 1, 3).reshape(rows, columns, 16) / 2


def _largest(blocks: Array) -> tuple[Array, Array, Array]:
    """The index of the largest element of each block but the first; of equals the first. U has no negative values."""
    rows, columns = np.indices(blocks.shape[:2])
    return rows, columns, blocks[..., 1:].argmax(-1) + 1


def _wanted(blocks: Array) -> Array:
    """The bit of each block."""
    count = blocks.shape[0] * blocks.shape[1]
    return np.resize(_bits(), count).reshape(blocks.shape[:2])


def _spread(change: Array, shape: tuple[int, ...]) -> Array:
    """The change of U (H, W): an element of the low band is half the sum of four pixels, so each pixel takes half of its change."""
    rows, columns = change.shape[:2]
    band = change.reshape(rows, columns, 4, 4).transpose(0, 2, 1, 3).reshape(rows * 4, columns * 4)
    plane = np.zeros(shape)
    plane[: rows * 8, : columns * 8] = band.repeat(2, 0).repeat(2, 1) / 2
    return plane


def _shift(colours: Array, change: Array) -> Array:
    """The colours with U changed: blue and green move so that Y and V stay; then all three, where one would leave the range.

    Where that is not enough, as in pure red, blue moves alone; in pure blue and magenta it cannot, and such blocks stay without the mark.
    """
    blue, none = change / _BLUE, np.zeros_like(change)
    moved = colours + np.stack([none, -_LUMA[2] / _LUMA[1] * blue, blue], -1)
    alone = colours + np.stack([none, none, blue / (1 - _LUMA[2])], -1)
    moved = np.where(np.ptp(moved, -1, keepdims=True) > 255, alone, moved)
    over, under = moved.max(-1, keepdims=True) - 255, moved.min(-1, keepdims=True)
    return np.clip(moved - np.maximum(over, 0) - np.minimum(under, 0), 0, 255)
