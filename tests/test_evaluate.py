"""The measures of the model in the box: right for the training set's own pictures, wrong for others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.train.data import Composer
from ldm.train.recipe import Data
from ldm.train.scenes import COLOURS, RELATIONS, Placed, Scene, Thing
from scripts.evaluate import Judge, held_scenes, main, parts, scores
from tests import things

SIZE = (96, 96)


@pytest.fixture
def composer() -> Composer:
    return Composer(things.drawn(), Data(size=96, step=16, other_shapes=0.0, pictures=1, crop_share=0.0, small_share=0.0), 1)


def shown(composer: Composer, scene: Scene) -> Image.Image:
    return Image.fromarray(composer.whole(scene, SIZE, np.random.default_rng(0)).image)


def test_the_training_set_s_own_pictures_are_right(composer: Composer) -> None:
    scenes, judge = held_scenes(composer.things, 40, 1), Judge(composer.things)
    found = scores([judge(shown(composer, scene), scene) for scene in scenes])
    assert all(of > 0 for _, of in found.values())
    assert all(right >= 0.85 * of for right, of in found.values()), found


def test_pictures_of_other_scenes_are_wrong(composer: Composer) -> None:
    scenes, judge = held_scenes(composer.things, 40, 1), Judge(composer.things)
    found = scores([judge(shown(composer, other), scene) for scene, other in zip(scenes, scenes[5:] + scenes[:5], strict=True)])
    assert found["all"][0] <= 0.15 * found["all"][1], found
    assert found["colour"][0] <= 0.5 * found["colour"][1], found


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_pair_the_wrong_way_round_has_the_wrong_position(composer: Composer, relation: str) -> None:
    placed = tuple(Placed(thing, 0.42, at) for thing, at in zip((0, 3), RELATIONS[relation], strict=True))
    scene, judge = Scene("pair", "black", placed, "", relation), Judge(composer.things)
    turned = dataclasses.replace(scene, placed=(dataclasses.replace(placed[0], thing=3), dataclasses.replace(placed[1], thing=0)))
    right, wrong = judge(shown(composer, scene), scene), judge(shown(composer, turned), scene)
    assert right["position"] and right["relation"] and "side" not in right and right["top-1"] and right["all"]
    assert not wrong["position"] and not wrong["all"] and wrong["top-5"]


def test_an_empty_picture_shows_nothing(composer: Composer) -> None:
    judge = Judge(composer.things)
    for scene in held_scenes(composer.things, 5, 2):
        verdict = judge(Image.new("RGB", SIZE, (245, 245, 245)), scene)
        assert not verdict["top-5"] and not verdict["all"] and not verdict.get("position", False) and not verdict.get("count", False)


def test_parts_that_do_not_touch_are_counted() -> None:
    mask = np.zeros((96, 96), bool)
    mask[10:30, 10:30] = mask[10:30, 60:80] = mask[60:80, 10:30] = True
    mask[90:93, 90:93] = True  # a speck
    assert sorted(parts(mask)) == [(9, 9, 30, 30), (9, 60, 30, 81), (60, 9, 81, 30)]


def test_a_pair_of_what_is_no_thing_is_nowhere(composer: Composer) -> None:
    """Two blots, one a half: one of the two ways round is always the nearer."""
    rng = np.random.default_rng(4)
    many = [Thing(Image.fromarray(rng.integers(0, 255, (12, 12, 4), np.uint8)).resize((40, 40)), (f"thing {k}",)) for k in range(60)]
    judge, picture = Judge(many), Image.new("RGB", SIZE, (15, 15, 18))
    ImageDraw.Draw(picture).ellipse((8, 30, 40, 66), (200, 200, 60))
    ImageDraw.Draw(picture).rectangle((56, 34, 88, 62), (60, 200, 200))
    right = 0
    for one in range(0, 60, 2):
        placed = tuple(Placed(thing, 0.42, at) for thing, at in zip((one, one + 1), RELATIONS["to the left of"], strict=True))
        right += judge(picture, Scene("pair", "black", placed, "", "to the left of"))["position"]
    assert right <= 6  # of 30; by which way round is the nearer alone, about half


def test_what_cannot_be_evaluated_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(tmp_path)])
    assert main() == 2
    assert "not a set of things" in capsys.readouterr().err
    for flags in (["--count", "0"], ["--seed", "-1"], ["--only", "drawn,paint"]):
        monkeypatch.setattr("sys.argv", ["evaluate.py", str(tmp_path), *flags])
        with pytest.raises(SystemExit, match="2"):
            main()


def test_measures_that_apply_to_no_prompt_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    things.write(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(tmp_path), "--count", "1", "--only", "data", "--device", "cpu"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "colour 1/1 = 1.00" in said and "position" not in said


def test_captions_name_the_background_that_is_measured(composer: Composer) -> None:
    """Not by the colour of the thing: of a green thing on red no caption without the red is judged."""
    named = [dataclasses.replace(thing, names=(f"{colour} thing",)) for thing, colour in zip(composer.things, COLOURS, strict=False)]
    for scene in held_scenes(named, 800, 3):
        assert f"{scene.colour} background" in scene.caption or scene.caption.endswith(f" on {scene.colour}")


def test_things_that_are_drawn_often_have_figures_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    things.write(tmp_path)
    index = json.loads((tmp_path / "things.json").read_text())
    index[0]["weight"] = index[1]["weight"] = 4.0
    (tmp_path / "things.json").write_text(json.dumps(index))
    words = ["evaluate.py", str(tmp_path), "--count", "15", "--only", "data", "--device", "cpu", "--json", str(tmp_path / "found.json")]
    for more in ([], ["--alike"]):
        monkeypatch.setattr("sys.argv", [*words, *more])
        assert main() == 0
    found = [line.split()[0:3] for line in capsys.readouterr().out.splitlines() if line.startswith("data")]
    assert [line[0] for line in found] == ["data", "data,", "data"]
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept["alike"] and list(kept["scores"]) == ["data"]
