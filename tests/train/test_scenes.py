"""Scenes: words that say what is there, and combinations that training never sees."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ldm.train.scenes import COLOURS, HELD, HUES, KINDS, RELATIONS, SIZES, Scene, Thing, draw, held_out, plural, tinted, with_article


def drawn(things: list[Thing], count: int, **wanted: object) -> list[Scene]:
    rng = np.random.default_rng(3)
    return [draw(rng, things, **wanted) for _ in range(count)]  # type: ignore[arg-type]


def test_nothing_held_out_is_drawn_for_training(shapes: list[Thing]) -> None:
    for scene in drawn(shapes, 400):
        assert scene.combinations and not any(held_out(each) for each in scene.combinations)


def test_what_is_held_out_can_be_asked_for(shapes: list[Thing]) -> None:
    for kind in KINDS:
        for scene in drawn(shapes, 10, held=True, kind=kind):
            assert scene.kind == kind and any(held_out(each) for each in scene.combinations)


def test_one_combination_in_so_many_is_held_out_and_no_thing_is() -> None:
    names = [f"thing {k}" for k in range(300)]
    held = [[held_out(f"{name} on {colour}") for colour in COLOURS] for name in names]
    assert abs(np.mean(held) * HELD - 1) < 0.25
    assert not any(all(row) for row in held)


def test_all_kinds_colours_and_things_are_drawn(shapes: list[Thing]) -> None:
    scenes = drawn(shapes, 1500)
    kinds = Counter(scene.kind for scene in scenes)
    assert set(kinds) == set(KINDS) and kinds["one"] > 500
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert {each.thing for scene in scenes for each in scene.placed} == set(range(len(shapes)))


def test_captions_name_the_things_their_number_and_their_places(shapes: list[Thing]) -> None:
    for scene in drawn(shapes, 600):
        names = [shapes[each.thing].names[0] for each in scene.placed]
        assert all(name in scene.caption for name in names)
        if scene.kind == "count":
            assert scene.caption.startswith({2: "two ", 3: "three "}[len(scene.placed)] + plural(names[0]))
        if scene.said in RELATIONS:
            assert re.match(f"an? {names[0]} {scene.said} an? {names[1]}", scene.caption)
            (x, y), (u, v) = (each.at for each in scene.placed)
            assert {"to the left of": x < u, "to the right of": x > u, "above": y < v, "below": y > v}[scene.said]
        if "background" in scene.caption:
            assert scene.colour in scene.caption


def test_words_of_size_and_hue_are_true(shapes: list[Thing]) -> None:
    seen = Counter[str]()
    for scene in drawn(shapes, 800, kind="one"):
        (placed,) = scene.placed
        size = next((word for word in ("small", "big") if word in scene.caption.split()), "")
        low, high = SIZES[size]
        assert low <= placed.share <= high
        assert placed.hue is None or f"{placed.hue} {shapes[placed.thing].names[0]}" in scene.caption
        seen[size] += 1
        seen["hue"] += placed.hue is not None
    assert min(seen[""], seen["small"], seen["big"], seen["hue"]) > 20


@pytest.mark.parametrize("hue", HUES)
def test_a_tinted_tile_has_the_hue_and_keeps_what_is_grey(hue: str) -> None:
    tile = Image.new("RGBA", (4, 4), (200, 60, 60, 255))
    tile.putpixel((0, 0), (120, 120, 120, 255))
    tile.putpixel((1, 0), (0, 0, 0, 0))
    made = tinted(tile, hue)
    got = made.convert("RGB").convert("HSV").getpixel((3, 3))
    assert isinstance(got, tuple) and abs((got[0] / 255 * 360 - HUES[hue] + 180) % 360 - 180) < 4
    assert made.getpixel((0, 0)) == (120, 120, 120, 255)
    assert made.getchannel("A").tobytes() == tile.getchannel("A").tobytes()


def test_a_thing_whose_name_has_a_colour_is_not_tinted() -> None:
    red = Image.new("RGBA", (4, 4), (200, 60, 60, 255))
    assert Thing(red, ("heart",)).tints and not Thing(red, ("blue heart",)).tints
    assert not Thing(Image.new("RGBA", (4, 4), (90, 90, 92, 255)), ("stone",)).tints


def test_english() -> None:
    assert [with_article(name) for name in ("owl", "unicorn", "apple", "ukulele", "umbrella", "one o’clock")] == [
        *("an owl", "a unicorn", "an apple", "a ukulele", "an umbrella", "a one o’clock")
    ]
    names = ["cat", "fox", "cherry", "slice of pizza", "fireman", "snowman without snow", "key", "bus"]
    assert [plural(name) for name in names] == [
        *("cats", "foxes", "cherries", "slices of pizza", "firemen", "snowmen without snow", "keys", "buses")
    ]
