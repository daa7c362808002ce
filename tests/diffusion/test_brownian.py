"""The Brownian path: torchsde's bits for any interval in any order, and the laws of a path."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.brownian import BrownianTree
from ldm.diffusion.rounding import nearest
from tests.diffusion.references import BROWNIAN

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "diffusion.npz")
LOW, HIGH = 0.0291671771556139, 14.614641189575195


def normals(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tree(seed=5, low=LOW, high=HIGH, shape=(2, 3)):
    return BrownianTree(low, high, seed, shape, normals)


times = st.floats(LOW, HIGH).map(nearest)
queries = st.lists(st.tuples(times, times).map(sorted).filter(lambda ends: ends[1] - ends[0] > 2e-6), min_size=1, max_size=12)
ranges = st.tuples(st.floats(1e-3, 2), st.floats(2.5, 5000)).map(lambda ends: [nearest(end) for end in ends])


@pytest.mark.filterwarnings("ignore:Should have")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), ranges, queries, st.randoms())
def test_bit_equal_to_torchsde_in_any_order(seed, ends, asked, order):
    torchsde = pytest.importorskip("torchsde", reason="the path is compared with torchsde's (extra: parity)")
    theirs = torchsde.BrownianTree(ends[0], torch.zeros(2, 3), ends[1], entropy=seed)
    ours = tree(seed, *ends)
    inside = [(a, b) for a, b in asked if a < ends[1] and b > ends[0] and min(b, ends[1]) - max(a, ends[0]) > 2e-6]
    expected = [theirs(a, b) for a, b in inside]
    shuffled = list(range(len(inside)))
    order.shuffle(shuffled)
    for k in shuffled:
        assert torch.equal(ours(*inside[k]), expected[k])


@pytest.mark.filterwarnings("ignore:Should have")
def test_bit_equal_to_torchsde_on_latents():
    torchsde = pytest.importorskip("torchsde", reason="the path is compared with torchsde's (extra: parity)")
    shape = (4, 32, 32)
    theirs, ours = torchsde.BrownianTree(LOW, torch.zeros(shape), HIGH, entropy=99), tree(99, shape=shape)
    for a, b in [(LOW, HIGH), (0.5, 0.75), (0.0306, 12.0), (14.6, HIGH)]:
        assert torch.equal(ours(a, b), theirs(a, b))


def test_equal_to_the_stored_torchsde():
    ordered, ours = sorted(BROWNIAN["points"]), tree(BROWNIAN["seed"], BROWNIAN["low"], BROWNIAN["high"])
    increments = torch.stack([ours(a, b) for a, b in pairwise(ordered)])
    # torch's float32 normals differ by 2e-6 between processors.
    torch.testing.assert_close(increments, torch.from_numpy(GOLDEN["brownian"]), rtol=0, atol=1e-4)


@given(times, times, times)
def test_increments_add_up(a, b, c):
    a, b, c = sorted((a, b, c))
    ours = tree()
    torch.testing.assert_close(ours(a, b) + ours(b, c), ours(a, c), rtol=0, atol=1e-5)


def test_more_bridges_than_are_kept():
    ours, again = tree(), tree()
    points = np.linspace(0.1, 14, 40).tolist()
    first = [ours(a, b) for a, b in pairwise(points)]
    second = [again(a, b) for a, b in reversed(list(pairwise(points)))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(second), strict=True))
    assert len(ours._bridges) <= 64


def test_beyond_the_range_and_too_small():
    ours = tree()
    assert torch.equal(ours(0.0, 20.0), ours(LOW, HIGH))
    assert torch.equal(ours(14.0, 20.0), ours(14.0, HIGH))
    assert torch.equal(ours(1.0, 1.0), torch.zeros(2, 3))
    assert torch.equal(ours(1.0000001, 1.0000002), torch.zeros(2, 3))
    assert torch.equal(ours(15.0, 20.0), torch.zeros(2, 3))


def test_variance_is_the_length_and_overlaps_correlate():
    ours = tree(3, shape=(40_000,))
    start, middle, whole = ours(1.0, 4.0), ours(4.0, 5.0), ours(1.0, 5.0)
    assert float(start.var()) == pytest.approx(3, rel=0.03) and float(whole.var()) == pytest.approx(4, rel=0.03)
    assert abs(float((start * middle).mean())) < 0.03
    assert float((start * whole).mean()) == pytest.approx(3, rel=0.03)
