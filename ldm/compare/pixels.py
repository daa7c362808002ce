"""How far the pixels of two pictures lie apart, and where."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm import opening

TILE = 64  # pixels: the side of the squares of which the one that differs most is named


@dataclass(frozen=True)
class Apart:
    """Over the three channels, in levels of 255. `box` holds all pixels that differ, `worst` is the square of TILE that differs most."""

    max: int
    mean: float
    psnr: float | None  # dB; None: the pixels are equal
    share: float  # of the pixels, 0 to 1
    box: tuple[int, int, int, int] | None  # left, top, right, bottom
    worst: tuple[int, int, int, int] | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def apart(one: Path, two: Path) -> Apart | None:
    """Of two picture files; None where their sizes differ. Raises InputError for a file that is no picture or is refused."""
    import numpy as np

    a, b = (np.asarray(opening.open_picture(path).rgb, dtype=np.int16) for path in (one, two))
    if a.shape != b.shape:
        return None
    off = np.abs(a - b)
    differs = off.any(-1)
    if not differs.any():
        return Apart(0, 0.0, None, 0.0, None, None)
    rows, columns = (np.flatnonzero(differs.any(axis)) for axis in (1, 0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    psnr = 20 * math.log10(255) - 10 * math.log10(float((off.astype(np.float64) ** 2).mean()))
    return Apart(int(off.max()), float(off.mean()), psnr, float(differs.mean()), box, _worst(off.sum(-1)))


def _worst(off: Any) -> tuple[int, int, int, int]:
    """(H, W) differences -> the square with the largest sum."""
    height, width = off.shape
    corners = [(top, left) for top in range(0, height, TILE) for left in range(0, width, TILE)]
    top, left = max(corners, key=lambda corner: int(off[corner[0] : corner[0] + TILE, corner[1] : corner[1] + TILE].sum()))
    return left, top, min(left + TILE, width), min(top + TILE, height)
