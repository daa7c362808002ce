"""Sizes for a ratio of the sides: for SDXL the nearest that it was trained on, for other models one of the same area."""

from __future__ import annotations

import math

from ldm.limits import LIMITS
from ldm.models.shapes import Defaults
from ldm.resources import read_toml

SDXL = 1024 * 1024  # pixels: models of this area were trained on the list
STEP, SMALL_STEP, SMALL = 64, 16, 512 * 512  # sides of the others are multiples of 64, or of 16 where the area is small


def sdxl() -> list[tuple[int, int]]:
    """(height, width) of SDXL's training buckets."""
    return [(height, width) for height, width in read_toml("buckets", "sdxl")["sizes"]]


def nearest(ratio: float, defaults: Defaults) -> tuple[int, int]:
    """(height, width) for width / height near `ratio`, nearest in its logarithm."""
    area = defaults.width * defaults.height
    if area == SDXL:
        return min(sdxl(), key=lambda size: abs(math.log(size[1] / size[0] / ratio)))
    step = STEP if area >= SMALL else SMALL_STEP
    width, height = (_side(math.sqrt(area * each), step) for each in (ratio, 1 / ratio))
    return height, width


def _side(length: float, step: int) -> int:
    return LIMITS["width"].nearest(max(round(length / step), 1) * step)
