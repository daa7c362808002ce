"""Aspect-ratio buckets: every picture trains at a size near its own shape, in batches of one size.

A picture is enlarged or reduced until it just covers its bucket, and what stands over is cropped; size, crop and target are recorded
as they were (Podell et al. 2023, section 2.2, algorithm 1 and appendix I).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Size = tuple[int, int]  # (height, width) in pixels
Crop = Literal["random", "center"]


@dataclass(frozen=True)
class Fit:
    """How a picture of `original` size comes into its bucket: scaled to `scaled`, then cut at `crop` (top, left) to `bucket`."""

    original: Size
    scaled: Size
    crop: Size
    bucket: Size

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the network is told: original height and width, crop top and left, target height and width.

        The crop is counted in pixels of the scaled picture, as the target is.
        """
        return (*self.original, *self.crop, *self.bucket)


def sizes(area: int, step: int, longest: float = 4.0) -> list[Size]:
    """The buckets of `area` pixels: sides that are multiples of `step`, no side ratio above `longest`, no bucket above `area`.

    The largest square; for each height the widest that the area allows, and the same turned: (512, 512), (448, 576), ... at step 64.
    """
    top = math.isqrt(area) // step * step
    found: set[Size] = {(top, top)} if top else set()
    for short in range(step, top + 1, step):
        long = area // short // step * step
        if long <= longest * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


def nearest(original: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose ratio of sides is nearest in its logarithm; of equals the largest."""
    wanted = math.log(original[1] / original[0])
    return min(buckets, key=lambda size: (round(abs(math.log(size[1] / size[0]) - wanted), 9), -size[0] * size[1]))


def fit(original: Size, buckets: Sequence[Size], crop: Crop, rng: np.random.Generator) -> Fit:
    """A picture's place: the smallest scaling that covers the nearest bucket, and a crop drawn from `rng` or in the middle."""
    bucket = nearest(original, buckets)
    scale = max(bucket[0] / original[0], bucket[1] / original[1])
    scaled = (max(round(original[0] * scale), bucket[0]), max(round(original[1] * scale), bucket[1]))
    free = (scaled[0] - bucket[0], scaled[1] - bucket[1])
    at = (int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))) if crop == "random" else (free[0] // 2, free[1] // 2)
    return Fit(original, scaled, at, bucket)


class Batches:
    """Batches of one bucket each, as a function of (seed, step): every epoch every picture once, in an order of its own.

    `buckets` has one entry a picture. What a bucket has over after whole batches makes a smaller batch, so no picture is lost.
    """

    def __init__(self, buckets: Sequence[Size], batch: int, seed: int) -> None:
        self._members: dict[Size, list[int]] = defaultdict(list)
        for row, bucket in enumerate(buckets):
            self._members[bucket].append(row)
        self.batch, self.seed = batch, seed
        self._known: tuple[int, list[list[int]]] = (-1, [])

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return sum(-(-len(rows) // self.batch) for rows in self._members.values())

    def rows(self, step: int) -> list[int]:
        """The pictures of one step's batch, all of one bucket."""
        epoch, place = divmod(step, self.steps)
        if self._known[0] != epoch:
            self._known = (epoch, self._epoch(epoch))
        return self._known[1][place]

    def _epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, 3, epoch])
        made = []
        for bucket in sorted(self._members):
            rows = rng.permutation(self._members[bucket]).tolist()
            made += [rows[first : first + self.batch] for first in range(0, len(rows), self.batch)]
        return [made[place] for place in rng.permutation(len(made))]
