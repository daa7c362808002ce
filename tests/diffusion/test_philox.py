"""Philox 4x32-10 against the vectors published with Random123, and CUDA's random normals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldm.diffusion.philox import philox4x32, randn

ONES = 0xFFFFFFFF

# Random123, kat_vectors: philox 4x32 10.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "out"), VECTORS)
def test_published_vectors(counter, key, out):
    words = tuple(np.array([word, 1], dtype=np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox4x32(words, key)) == out


def test_cudas_normals():
    """torch.manual_seed(0); torch.randn(3, 4, device="cuda"), as printed by torch on a GPU."""
    printed = [[-0.9247, -0.4253, -2.6438, 0.1452], [-0.1209, -0.5797, -0.6229, -0.3284], [-1.0745, -0.3631, -1.6711, 2.2655]]
    assert torch.allclose(randn(0, 0, (3, 4)), torch.tensor(printed), atol=5.1e-5)


def counted(seed: int, draw: int, element: int) -> float:
    """One normal in Python's own whole numbers and floats: Salmon et al. 2011, section 3.3, then the first of Box and Muller's pair."""
    words, key = [draw, 0, element, 0], [seed % 2**32, seed >> 32]
    for _ in range(10):
        first, second = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [second >> 32 ^ words[1] ^ key[0], second % 2**32, first >> 32 ^ words[3] ^ key[1], first % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    u, v = (word * 2.0**-32 + 2.0**-33 for word in words[:2])
    return math.sqrt(-2 * math.log(u)) * math.sin(v * float(np.float32(2 * math.pi)))


@pytest.mark.parametrize("draw", [0, 1, 7, 1999])
@pytest.mark.parametrize("seed", [0, 31337, 2**64 - 1])
def test_first_and_later_draws_element_by_element(seed, draw):
    ours = randn(seed, draw, (4, 8, 8)).flatten().tolist()
    for element in (0, 1, 100, 255):
        assert ours[element] == float(np.float32(counted(seed, draw, element)))


def test_a_draw_is_a_function_of_seed_number_and_element():
    whole = randn(7, 3, (4, 8, 8))
    assert whole.dtype == torch.float32
    assert torch.equal(whole.flatten()[:64], randn(7, 3, (64,)))
    assert not torch.equal(whole, randn(7, 4, (4, 8, 8)))
    assert not torch.equal(randn(1, 0, (8,)), randn(1 + 2**32, 0, (8,)))
    assert randn(2**64 - 1, 0, (8,)).isfinite().all()


def test_moments():
    draw = randn(11, 0, (4, 128, 128)).double()
    assert abs(float(draw.mean())) < 3 / 256 and float(draw.std()) == pytest.approx(1, abs=3 / 362)
    assert float((draw**4).mean()) == pytest.approx(3, abs=3 * 96**0.5 / 256)
