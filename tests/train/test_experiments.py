"""The experiments: their measures on what has a known answer, each of them from the command to the page, and the page itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import InputError
from ldm.train.export import export
from ldm.train.recipe import Recipe
from ldm.train.scenes import Thing
from scripts.experiments import main, page, sampling, training
from scripts.experiments.common import Asked, columns
from scripts.experiments.latents import cells
from scripts.experiments.measures import explained, frechet, mean, offset, sharpness, spread
from scripts.experiments.page import EXPERIMENTS, NOT
from tests.things import write
from tests.train.conftest import made_pictures

SIDE = 64


def block(down: int, right: int) -> np.ndarray:
    """A square of a third of the picture, so far from its middle."""
    pixels = np.full((SIDE, SIDE, 3), 240, np.float32)
    pixels[22 + down : 42 + down, 22 + right : 42 + right] = (200, 30, 40)
    return pixels


@pytest.fixture
def things(shapes: list[Thing], tmp_path: Path) -> Path:
    """The folder that scripts/emoji.py would write of them."""
    folder = tmp_path / "things"
    folder.mkdir()
    write(folder, shapes)
    return folder


@pytest.fixture
def recipe(recipe: Recipe) -> Recipe:
    """With many small pictures."""
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, small_share=0.8, crop_share=0.1))


def asked(folder: Path, count: int) -> Asked:
    """What needs no model."""
    family: Any = SimpleNamespace(family=SimpleNamespace(defaults=SimpleNamespace(height=SIDE)))
    return Asked(family, count, folder=folder)


def test_a_thing_that_is_moved_by_8_pixels_is_8_pixels_off() -> None:
    assert offset(block(0, 0)) == (0, 0)
    assert offset(block(8, -5)) == (8, -5)
    assert offset(np.full((SIDE, SIDE, 3), 240, np.float32)) is None
    right, down, seen = sampling.moved([block(8, 2), block(8, 4), np.zeros((SIDE, SIDE, 3), np.float32)])
    assert (right, down, seen) == ([3, 1], [8, 0], 2)
    rows = [[0, 0, away, [away / 2, None], [away, None], [None, None]] for away in (16.0, 0.0, -16.0)]
    assert sampling.slope(rows) == pytest.approx(0.75) and sampling.slope(rows[:1]) is sampling.slope(rows, 5) is None
    assert (sampling.plain(0.751), sampling.plain(-0.001), sampling.plain(None)) == ("0.75", "0.00", "(not known)")
    assert sampling.learned(0.1, 0.8).endswith("12 % of it") and sampling.learned(None, 0.8) == sampling.learned(0.1, None) == ""


def test_the_data_s_own_windows_lie_where_their_numbers_say(things: Path) -> None:
    for original, corner in ((64, 0), (80, 0), (80, 16), (80, 8)):
        right, down, _ = sampling.moved(sampling.windows(asked(things, 48), original, corner))
        assert [down[0], right[0]] == pytest.approx([original / 2 - corner - SIDE / 2] * 2, abs=1.5)


def test_sharpness_of_stripes_and_of_what_is_enlarged(things: Path) -> None:
    stripes = np.zeros((SIDE, SIDE, 3), np.float32)
    stripes[:, ::2] = 200
    assert sharpness(stripes) == (pytest.approx(200 / 2**0.5), pytest.approx(1))  # 200 across, 0 down
    wide = np.repeat(stripes[:, : SIDE // 4], 4, axis=1)
    assert sharpness(wide)[1] < 0.2
    gradients = [sampling.sharp(sampling.enlarged(asked(things, 6), size))[0][0] for size in (16, 32, 64)]
    assert gradients == sorted(gradients)


def test_distances_of_known_distributions() -> None:
    points = np.random.default_rng(1).normal(size=(500, 6)) @ np.random.default_rng(2).normal(size=(6, 6))
    points -= points.mean(axis=0)
    assert frechet(points, points) == pytest.approx(0, abs=1e-8)
    assert frechet(points, points + 2) == pytest.approx(24)
    assert frechet(points, 3 * points) == pytest.approx(4 * np.trace(np.cov(points, rowvar=False)))
    assert spread(np.stack([np.zeros((2, 2)), np.full((2, 2), 3.0), np.full((2, 2), -3.0)])) == pytest.approx(4)
    assert mean([1.0, 3.0]) == [2, 1] and mean([1.0]) == [1, None] and mean([]) == [None, None]


def test_what_is_said_follows_from_the_rows() -> None:
    found = [["euler", *[[x, 0.1] for x in (30, 9, 14, 12, 11, 8, 5, 3)]], ["heun", *[[x, 0.1] for x in (9, 8, 7, 6, 5, 4, 3, 11)]]]
    assert sampling.settled([*found, ["ddim", *[[1.0, 0.1]] * 8]]) == (
        "Nearer than 10 to the picture of 200 steps: euler from 20 on, heun never, ddim from 4 on."
    )
    assert sampling.best([[1.0, [0.5, 0.1]], [2.0, [0.62, 0.05]], [4.0, [0.65, 0.04]], [8.0, [None, None]]], 1) == "2, 4"
    assert sampling.share(0.2, 16) == [0.2, pytest.approx(0.1)] and sampling.share(None, 16) == [None, None]


def test_a_training_is_further_where_more_than_chance_says_so() -> None:
    rng = np.random.default_rng(7)
    reference, near = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    again = rng.integers(300, size=(100, 300))
    sets = {"one": near, "like": near + rng.normal(size=near.shape) * 0.05, "far": reference + 1}
    both = {name: training.apart(points, reference, again) for name, points in sets.items()}
    assert both["far"][0][0] == pytest.approx(4 / reference.var(axis=0).sum()) and 0 < both["far"][0][1] < 0.2
    said = training.least([[name, 300, 1, found] for name, (found, _) in both.items()], {name: each for name, (_, each) in both.items()})
    assert '"far" is' in said and '"far" is not' not in said and ('"like" is not' in said or '"one" is not' in said)


def test_a_linear_probe_finds_what_is_linear() -> None:
    x = np.random.default_rng(3).normal(size=(2000, 4))
    assert explained(x, 2 * x[:, 0] - x[:, 3] + 5) == pytest.approx(1)
    assert explained(x[:, :1], 2 * x[:, 0] - x[:, 3]) == pytest.approx(0.8, abs=0.03)
    assert explained(x[:, 1:2], x[:, 0] ** 2) < 0.02


def test_cells_hold_luminance_colours_and_contrast() -> None:
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[:, :8, :8] = 100  # grey
    image[:, :8, 8:] = (0, 0, 200)  # blue
    image[:, 8:, :4] = 80  # half of a cell
    grey, blue, half = (cells(image, 8)[0, row, column] for row, column in ((0, 0), (0, 1), (1, 0)))
    assert grey == pytest.approx([100, 0, 0, 0, 0, 0], abs=1e-9) and half == pytest.approx([40, 0, 0, -80, 0, 40], abs=1e-9)
    assert blue == pytest.approx([22.8, 99.94, -16.26, 0, 0, 0], abs=0.01)


def test_what_each_training_learns_from() -> None:
    found = made_pictures(400)
    kept = training.mixed(found, 1)
    assert training.small(kept).sum() == training.small(found).sum()
    assert float(training.small(kept).float().mean()) == pytest.approx(0.39, abs=0.01) or len(kept.z) == 400
    plain = training.untold(kept)
    assert not training.small(plain).any() and (plain.numbers[:, 2:4] == 0).all() and (plain.numbers[:, 4:] == kept.numbers[:, 4:]).all()
    few = training.chosen(kept, [3, 1])
    assert few.captions == [kept.captions[3], kept.captions[1]] and torch.equal(few.numbers[1], kept.numbers[1])


@pytest.fixture
def model(trained: Path, recipe: Recipe) -> Path:
    export(recipe, trained, trained.parent / "small.safetensors")
    return trained.parent / "small.safetensors"


def test_every_experiment_from_the_command_to_the_page(
    model: Path, trained: Path, things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = Asked.batch
    monkeypatch.setattr(Asked, "batch", lambda self, *place, **changes: batch(self, *place, **{"steps": 2, **changes}))
    few = {"CROPS": ((1.0, 0.0), (1.5, 0.5)), "ORIGINALS": (0.5, 1.0), "SCALES": (1.0, 4.0), "STEPS": (2, 4), "MANY": 5}
    for name, values in {**few, "SOLVERS": {"ddim": "ddim_uniform", "dpmpp_sde": "karras"}}.items():
        monkeypatch.setattr(sampling, name, values)
    monkeypatch.setattr(training, "STRENGTHS", (0.0, 0.1))
    words = [*("--model", model), *("--things", things), *("--run", trained), "--steps", "2", "--count", "2", "--device", "cpu"]
    out = tmp_path / "docs"
    for at, name in enumerate(EXPERIMENTS):
        assert main([name, *map(str, words), "--out", str(out)]) == 0
        assert main(["--write", "--out", str(out)]) == 0
        text = (out / "experiments.md").read_text(encoding="utf-8")
        assert capsys.readouterr().out.strip() in text and text.count(NOT) == len(EXPERIMENTS) - at - 1
        assert f"`{name} --model small.safetensors --things things --run run --count 2 --steps 2 --device cpu`, 2 pictures" in text
        assert 0 < Image.open(out / "experiments" / f"{name}.png").size[0] <= 700
    kept = json.loads((out / "experiments.json").read_text())
    assert text == page.page(kept) and str(tmp_path) not in text
    assert [row[2] for row in kept["conditioning"]["tables"][0]["rows"]] == [2, 2, 2, None]
    assert [row[1] for row in kept["offset"]["tables"][0]["rows"]] == [None, None, 2, 2]
    assert main(["crop", *map(str, words), "--out", str(out)]) == 0  # again alone: the others stay, and the same numbers come out
    new = json.loads((out / "experiments.json").read_text())
    assert {**new, "crop": {**new["crop"], "about": None}} == {**kept, "crop": {**kept["crop"], "about": None}}


def test_what_is_missing_is_asked_for(model: Path, trained: Path, things: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["latents"], "give --things"),
        (["offset", "--things", str(things)], "give --run"),
        (["offset", "--run", str(trained)], "its VAE is not the model's"),  # that of the model in the box
        (["crop", "--count", "0"], "give 1 or more"),
    ):
        assert main(words) == InputError.exit_code
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])


def test_the_page_is_what_is_kept() -> None:
    kept = page.kept(page.DOCS)
    assert (page.DOCS / "experiments.md").read_text(encoding="utf-8") == page.page(kept)
    figures = list((page.DOCS / "experiments").glob("*.png"))
    assert sorted(each.stem for each in figures) == sorted(kept)
    assert sum(each.stat().st_size for each in figures) < 2**20
    assert page.page({}).count(NOT) == len(EXPERIMENTS)


def test_cells_of_a_table() -> None:
    assert page.markdown(["a", "b"], [["x", [1.0, 0.1234]], [None, 12345], ["y", [-21.26, None]]]) == (
        "| a | b |\n| --- | --: |\n| x | 1 ± 0.123 |\n|  | 12,345 |\n| y | -21.3 |"
    )


def test_a_figure_has_a_column_a_setting() -> None:
    made = columns({"here": [block(0, 0)] * 6, "there": [block(8, 0)] * 6}).convert("RGB")
    top = made.height - 384
    assert made.width == 256 and made.getpixel((128 + 64, top + 64 - 8)) != made.getpixel((64, top + 64 - 18))
    words = np.asarray(made.convert("L"))[:top] < 128
    assert words[:, :128].any() and words[:, 128:].any() and not words[:, :40].any()  # in the middle of each
