"""Bucket laws: near the area, sides of whole steps, every picture covered, cut as recorded, and seen once an epoch."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm import buckets as published
from ldm.train.fitting import Batches, fit, nearest, sizes

SIDES = st.integers(1, 5000)


@given(st.sampled_from([(128 * 128, 16), (512 * 512, 64), (768 * 768, 64), (1024 * 1024, 64)]))
def test_buckets_are_whole_steps_near_the_area(case: tuple[int, int]) -> None:
    area, step = case
    found = sizes(area, step)
    side = math.isqrt(area)
    assert (side, side) in found
    for height, width in found:
        assert height % step == 0 and width % step == 0
        assert area - step * max(height, width) < height * width <= area  # one step more would be above it
        assert (width, height) in found
        assert 1 / 4 <= width / height <= 4


def test_sdxl_buckets_are_the_papers() -> None:
    ours = set(sizes(1024 * 1024, 64))
    assert ours >= {(1024, 1024), (896, 1152), (832, 1216), (768, 1344), (640, 1600), (512, 2048)}
    assert len(set(published.sdxl()) & ours) >= 15  # the paper's list also has sizes of somewhat less than the area


@given(SIDES, SIDES, st.integers(0, 2**32), st.sampled_from(["random", "center"]))
def test_a_picture_covers_its_bucket(height: int, width: int, seed: int, crop: str) -> None:
    buckets = sizes(128 * 128, 16)
    made = fit((height, width), buckets, crop, np.random.default_rng(seed))  # type: ignore[arg-type]
    assert made.bucket in buckets
    for at, whole, part in zip(made.crop, made.scaled, made.bucket, strict=True):
        assert 0 <= at <= whole - part
    assert min(whole - part for whole, part in zip(made.scaled, made.bucket, strict=True)) == 0  # no smaller scaling would do
    scale = max(made.bucket[0] / height, made.bucket[1] / width)
    assert all(abs(whole - side * scale) <= 0.5 + 1e-9 for whole, side in zip(made.scaled, (height, width), strict=True))
    assert made.numbers == (height, width, *made.crop, *made.bucket)
    if crop == "center":
        assert all(abs(2 * at - (whole - part)) <= 1 for at, whole, part in zip(made.crop, made.scaled, made.bucket, strict=True))


@given(SIDES, SIDES)
def test_no_other_bucket_is_nearer(height: int, width: int) -> None:
    buckets = sizes(512 * 512, 64)
    chosen = nearest((height, width), buckets)
    distances = {size: abs(math.log(size[1] / size[0]) - math.log(width / height)) for size in buckets}
    assert distances[chosen] <= min(distances.values()) + 1e-8


def test_random_crops_reach_both_ends() -> None:
    seen = {fit((128, 160), [(128, 128)], "random", np.random.default_rng(seed)).crop for seed in range(2000)}
    assert seen == {(0, left) for left in range(33)}


@given(st.lists(st.sampled_from([(16, 16), (16, 32), (32, 16)]), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 99))
def test_every_epoch_sees_every_picture_once_in_batches_of_one_bucket(rows: list[tuple[int, int]], batch: int, seed: int) -> None:
    made = Batches(rows, batch, seed)
    for epoch in range(2):
        steps = [made.rows(epoch * made.steps + place) for place in range(made.steps)]
        assert Counter(row for step in steps for row in step) == Counter(range(len(rows)))
        assert all(len({rows[row] for row in step}) == 1 and 1 <= len(step) <= batch for step in steps)


def test_batches_are_a_function_of_seed_and_step() -> None:
    rows = [(16, 16)] * 40 + [(16, 32)] * 23
    one, other = Batches(rows, 8, 7), Batches(rows, 8, 7)
    steps = list(range(3 * one.steps))
    assert [one.rows(step) for step in steps] == [other.rows(step) for step in reversed(steps)][::-1]
    assert [Batches(rows, 8, 8).rows(step) for step in steps] != [one.rows(step) for step in steps]
    assert [one.rows(step) for step in range(one.steps)] != [one.rows(one.steps + step) for step in range(one.steps)]


@pytest.mark.parametrize("crop", ["random", "center"])
def test_a_picture_of_its_buckets_shape_is_not_cut(crop: str) -> None:
    made = fit((64, 64), [(128, 128), (96, 160)], crop, np.random.default_rng(0))  # type: ignore[arg-type]
    assert (made.scaled, made.crop, made.numbers) == ((128, 128), (0, 0), (64, 64, 0, 0, 128, 128))


@given(st.integers(16, 2000), st.sampled_from([8, 16, 64]))
def test_a_square_picture_has_a_square_bucket_at_any_size(side: int, step: int) -> None:
    if side >= step:
        largest = side // step * step
        assert (largest, largest) in sizes(side * side, step)
