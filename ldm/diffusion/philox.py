"""CUDA's random normals, made on the CPU: Philox 4x32-10 and Box-Muller.

The counter is (draw number, 0, element, 0) and the key the seed, which is how CUDA fills a tensor for which it has a
thread an element. CUDA takes a fast sine and float32, this float64 rounded at the end: they agree to about 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # each below 2^32

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW, _WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
_TWO_PI = float(np.float32(2 * math.pi))  # the constant is a float32 in CUDA


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox (Salmon et al. 2011) on n counters of four 32-bit words, each (n,)."""
    a, b, c, d = counter
    for turn in range(_ROUNDS):
        left, right = (np.uint64((word + turn * weyl) & 0xFFFFFFFF) for word, weyl in zip(key, _WEYL, strict=True))
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (second >> _WORD) ^ b ^ left, second & _LOW, (first >> _WORD) ^ d ^ right, first & _LOW
    return a, b, c, d


def randn(seed: int, draw: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw number `draw` of the generator of `seed` (0 to 2^64 - 1): float32 of `shape`."""
    element = np.arange(math.prod(shape), dtype=np.uint64)
    zero = np.zeros_like(element)
    x, y, _, _ = philox4x32((zero + np.uint64(draw), zero, element, zero), (seed & 0xFFFFFFFF, seed >> 32))
    radius = np.sqrt(-2 * np.log(x * 2.0**-32 + 2.0**-33))
    normal = radius * np.sin((y * 2.0**-32 + 2.0**-33) * _TWO_PI)
    return torch.from_numpy(normal.astype(np.float32).reshape(shape))
