"""A Brownian path that is a function of its seed alone: ask for any interval, in any order, get the same numbers.

The path's range is halved again and again; what it does over a half, given what it does over the whole, is a Brownian
bridge with its own random numbers. Time is counted in millionths. Bit for bit the path of torchsde's BrownianTree
(Li et al. 2020, section 4), which the DPM-Solver++ samplers of other engines draw their noise from.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Randn = Callable[[int, tuple[int, ...]], Tensor]  # (seed, shape) -> unit normals

_DIGITS = 6  # times are rounded to so many decimals
_POOL = 24  # words of entropy in numpy's SeedSequence
_KEPT = 64  # bridges kept in memory; neighbouring intervals share most of them


class _Part(NamedTuple):
    """A dyadic part of the range: number `place` from the left of the 2^depth parts at its depth."""

    start: float
    end: float
    place: int
    depth: int

    def halves(self) -> tuple[_Part, _Part]:
        middle = round(0.5 * (self.end + self.start), _DIGITS)
        place, depth = 2 * self.place, self.depth + 1
        return _Part(self.start, middle, place, depth), _Part(middle, self.end, place + 1, depth)


class BrownianTree:
    """W over [low, high] with `tree(a, b)` = W(b) - W(a), of `shape`, for low <= a <= b <= high (clamped to the range).

    `randn(seed, shape)` makes the normals: the random source is the caller's. Intervals below a millionth are 0.
    """

    def __init__(self, low: float, high: float, seed: int, shape: tuple[int, ...], randn: Randn) -> None:
        self._seed, self._shape, self._randn = seed, shape, randn
        self._root = _Part(round(low, _DIGITS), round(high, _DIGITS), 0, 0)
        entropy = np.random.SeedSequence(seed, pool_size=_POOL)
        self._whole = self._normal(entropy) * math.sqrt(high - low)
        self._bridges: OrderedDict[_Part, Tensor] = OrderedDict()

    def __call__(self, a: float, b: float) -> Tensor:
        a, b = (round(min(max(t, self._root.start), self._root.end), _DIGITS) for t in (a, b))
        pieces: list[Tensor] = []  # over the largest dyadic parts that tile [a, b], from left to right
        waiting = [(self._root, self._whole)]
        while waiting:
            part, w = waiting.pop()
            if a <= part.start and part.end <= b:
                pieces.append(w)
            elif part.start < b and a < part.end:
                left, right = part.halves()
                left_w = self._left(part, left, w)
                waiting += [(right, w - left_w), (left, left_w)]
        return _sum(pieces, self._whole)

    def _left(self, part: _Part, left: _Part, w: Tensor) -> Tensor:
        """The bridge at the middle of `part`, which moves by `w` in all: mean and variance are linear in time."""
        if part in self._bridges:
            self._bridges.move_to_end(part)
            return self._bridges[part]
        before, after, width = left.end - part.start, part.end - left.end, 1 / (part.end - part.start)
        entropy = np.random.SeedSequence(self._seed, spawn_key=(part.place, part.depth), pool_size=_POOL)
        bridge = before * w * width + math.sqrt(before * after * width) * self._normal(entropy)
        self._bridges[part] = bridge
        if len(self._bridges) > _KEPT:
            self._bridges.popitem(last=False)
        return bridge

    def _normal(self, entropy: np.random.SeedSequence) -> Tensor:
        return self._randn(int(entropy.generate_state(1)[0]), self._shape)


def _sum(pieces: list[Tensor], like: Tensor) -> Tensor:
    if not pieces:
        return torch.zeros_like(like)
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total
