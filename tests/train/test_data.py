"""Composed pictures: functions of (seed, index), with true numbers and captions that say what is there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ldm.errors import InputError
from ldm.train.data import COLOURS, JITTER, MARGIN, Composer, Thing, load_things, with_article


def composed(composer: Composer, **changes: float) -> Composer:
    return Composer(composer.things, dataclasses.replace(composer.data, **changes), composer.seed)


def test_a_sample_is_a_function_of_seed_and_index(composer: Composer) -> None:
    first, again = composer.sample(5), Composer(composer.things, composer.data, composer.seed).sample(5)
    assert np.array_equal(first.image, again.image)
    assert (first.caption, first.numbers) == (again.caption, again.numbers)
    other = Composer(composer.things, composer.data, composer.seed + 1).sample(5)
    assert not np.array_equal(first.image, other.image)


def test_whole_pictures_show_the_named_background_and_the_thing(composer: Composer) -> None:
    whole = composed(composer, crop_share=0.0, small_share=0.0)
    for index in range(50):
        sample = whole.sample(index)
        colour = list(COLOURS.values())[sample.colour]
        near = np.abs(sample.image.astype(int) - colour).max(-1) <= JITTER
        assert 0.1 < near.mean() < 0.95
        assert sample.numbers == (32, 32, 0, 0, 32, 32)
        assert whole.things[sample.thing].names[0] in sample.caption


def test_windows_of_larger_canvases_say_where_they_were_cut(composer: Composer) -> None:
    windows = composed(composer, crop_share=1.0)
    seen = np.array([windows.sample(index).numbers for index in range(200)])
    size = composer.data.size
    assert (seen[:, :2] >= size).all()
    assert (seen[:, :2] <= size * (1 + MARGIN)).all()
    assert (seen[:, 2:4] <= seen[:, :2] - size).all()
    assert (seen[:, 4:] == size).all()
    assert len(np.unique(seen[:, 2])) > 5


def test_enlarged_pictures_say_how_small_they_were(composer: Composer) -> None:
    small = composed(composer, crop_share=0.0, small_share=1.0)
    seen = [small.sample(index) for index in range(30)]
    assert all(16 <= sample.numbers[0] == sample.numbers[1] < 32 for sample in seen)
    assert all(sample.image.shape == (32, 32, 3) for sample in seen)


def test_captions_name_what_is_there(composer: Composer) -> None:
    captions = [composer.sample(index).caption for index in range(400)]
    assert any(caption == "a circle on a blue background" for caption in captions)
    assert any(" on an orange background" in caption for caption in captions)
    assert {with_article(name) for name in ("owl", "unicorn", "apple")} == {"an owl", "a unicorn", "an apple"}


def test_things_are_read_from_a_folder(tmp_path: Path, shapes: list[Thing]) -> None:
    shapes[0].tile.save(tmp_path / "circle.png")
    (tmp_path / "things.json").write_text(json.dumps([{"file": "circle.png", "names": ["circle", "disc"], "plural": False}]))
    (thing,) = load_things(tmp_path)
    assert thing.names == ("circle", "disc")
    assert thing.tile.mode == "RGBA"
    (tmp_path / "circle.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"scripts/emoji\.py"):
        load_things(tmp_path)
