"""Composed pictures: functions of (seed, index), in their buckets, with true numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import InputError
from ldm.train.data import JITTER, LONGEST, MARGIN, Ahead, Composer, load_things
from ldm.train.scenes import COLOURS, PLACES, Placed, Scene, Thing


def composed(composer: Composer, **changes: Any) -> Composer:
    return Composer(composer.things, dataclasses.replace(composer.data, **changes), composer.seed)


def test_a_sample_is_a_function_of_seed_and_index(composer: Composer) -> None:
    first, again = composer.sample(5), Composer(composer.things, composer.data, composer.seed).sample(5)
    assert np.array_equal(first.image, again.image)
    assert (first.caption, first.numbers) == (again.caption, again.numbers)
    other = Composer(composer.things, composer.data, composer.seed + 1).sample(5)
    assert not np.array_equal(first.image, other.image)


def test_whole_pictures_have_the_named_background_at_their_rim(composer: Composer) -> None:
    plain = composed(composer, crop_share=0.0, small_share=0.0)
    for index in range(60):
        sample = plain.sample(index)
        corners = sample.image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert (np.abs(corners - COLOURS[sample.scene.colour]) <= JITTER).all()
        assert sample.numbers == (*sample.image.shape[:2], 0, 0, *sample.image.shape[:2])


def test_shapes_are_those_of_the_buckets_and_as_often_as_asked(composer: Composer) -> None:
    large = composed(composer, size=64, other_shapes=0.5)
    seen = [large.sample(index).image.shape[:2] for index in range(300)]
    assert set(seen) == {(64, 64), *large.others} and large.others
    assert all(height % 16 == 0 and width % 16 == 0 and height * width <= 64 * 64 for height, width in seen)
    assert all(max(size) <= LONGEST * min(size) for size in seen)
    assert 110 < seen.count((64, 64)) < 190


def test_windows_say_where_they_were_cut(composer: Composer) -> None:
    """A window put back at its crop shows the thing in the middle of the whole canvas."""
    size, off = composer.data.size, []
    scene = Scene("one", "white", (Placed(1, 0.4, (0.5, 0.5)),), "a square")
    for k in range(100):
        sample = composer.window(scene, (size, size), np.random.default_rng(k))
        height, width, top, left, *target = sample.numbers
        assert size <= height < size * (1 + MARGIN) and size <= width < size * (1 + MARGIN)
        assert top <= height - size and left <= width - size and target == [size, size]
        rows, columns = np.nonzero((np.abs(sample.image.astype(int) - 245) > 60).any(-1))
        if rows.min() > 0 and rows.max() < size - 1 and columns.min() > 0 and columns.max() < size - 1:
            off.append((rows.mean() + top - height / 2, columns.mean() + left - width / 2))
    assert len(off) > 50 and np.abs(off).max() < 1.5


def test_enlarged_pictures_say_how_small_they_were(composer: Composer) -> None:
    small = composed(composer, crop_share=0.0, small_share=1.0)
    seen = [sample for index in range(60) if (sample := small.sample(index)).scene.kind == "one"]
    assert len(seen) > 10
    assert all(sample.numbers[0] <= 32 and sample.image.shape[:2] == sample.numbers[4:] for sample in seen)
    assert any(sample.numbers[0] < 20 for sample in seen)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_where_its_words_say(composer: Composer, place: str) -> None:
    scene = Scene("place", "black", (Placed(0, 0.4, PLACES[place]),), f"a circle {place} a black background")
    image = composer.whole(scene, (32, 32), np.random.default_rng(0)).image.astype(int)
    rows, columns = np.nonzero(image.max(-1) > 100)
    middle = {"left": columns.mean(), "right": 31 - columns.mean(), "top": rows.mean(), "bottom": 31 - rows.mean()}
    assert min(middle, key=lambda side: middle[side]) in place


def test_made_ahead_is_the_same_in_the_same_order(composer: Composer) -> None:
    plain, ahead = Ahead(lambda k: composer.sample(k).image, 0, 9), Ahead(lambda k: composer.sample(k).image, 2, 9)
    for k in (3, 4, 5, 0, 1, 8):
        assert np.array_equal(plain(k), ahead(k))
    assert not torch.utils.data.get_worker_info()


def test_things_are_read_from_a_folder(tmp_path: Path, shapes: list[Thing]) -> None:
    shapes[0].tile.save(tmp_path / "circle.png")
    entry = {"file": "circle.png", "names": ["circle", "disc"], "plural": False, "weight": 0.5}
    (tmp_path / "things.json").write_text(json.dumps([entry]))
    (thing,) = load_things(tmp_path)
    assert (thing.names, thing.weight, thing.tile.mode) == (("circle", "disc"), 0.5, "RGBA")
    (tmp_path / "circle.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"scripts/emoji\.py"):
        load_things(tmp_path)


def refusing(step: int) -> int:
    if step == 1:
        raise InputError("picture 1: is gone: put it back")
    return step


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_ahead_is_said_in_its_own_line(workers: int) -> None:
    ahead = Ahead(refusing, workers, 3)
    assert ahead(0) == 0
    with pytest.raises(InputError) as raised:
        ahead(1)
    assert str(raised.value) == "picture 1: is gone: put it back"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"names": []}, "are no names"), ({"weight": 0}, "has the weight 0"), ({"plural": True}, "none of them can be counted")],
)
def test_things_that_cannot_be_drawn_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    entry = {"file": "a.png", "names": ["square"], "plural": False, "weight": 1.0}
    (tmp_path / "things.json").write_text(json.dumps([entry | change]))
    with pytest.raises(InputError, match=message):
        load_things(tmp_path)
