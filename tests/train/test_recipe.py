"""Recipes and the command: strict, with errors of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm.commands import main
from ldm.errors import InputError
from ldm.models.shapes import Family
from ldm.resources import configs
from ldm.train.data import Composer
from ldm.train.loop import Limits
from ldm.train.recipe import Recipe, load_recipe
from ldm.train.stages import stage_trainer
from ldm.train.tune import load_tuning
from tests.train.conftest import changed

SHIPPED = configs() / "train" / "emoji.toml"


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SHIPPED.read_text().replace("[unet]\n", "[unet]\ndropuot = 0.1\n"))
    with pytest.raises(InputError, match=r"recipe\.toml: \[unet\]: unknown key 'dropuot': did you mean dropout"):
        load_recipe(path)


MISTAKES = {
    "alpha = 8.0": {
        "alpah = 8.0": "[lora]: unknown key 'alpah': did you mean alpha?",
        "alpha = 'x'": "[lora] alpha: 'x' is not acceptable: expected a number",
    },
    "steps = 500": {
        "steps = 0": "[optim] steps: 0 is not acceptable: expected 1 to 1,000,000,000",
        "steps = 1.5": "[optim] steps: 1.5 is not acceptable: expected a whole number",
    },
    "[optim]": {
        "[optimizer]": "unknown table 'optimizer': did you mean optim?",
        "#": "missing key 'optim': the keys are train, seed, ",
    },
    "seed = 1": {
        "seed = -1": "seed: -1 is not acceptable: expected 0 to ",
        "seed = 1\nnoise = 0.1": "noise: 0.1 is not acceptable: expected a table",
        "seed = 1\nmodel = 3": "model: 3 is not acceptable: expected a text",
        "seed = 1\ncheckpointing = 1": "checkpointing: 1 is not acceptable: expected true or false",
    },
    '["transformer"]': {"3": "[lora] targets: 3 is not acceptable: expected a list"},
}


@pytest.mark.parametrize(("there", "written"), [(there, written) for there, mistakes in MISTAKES.items() for written in mistakes])
def test_mistakes_are_told_by_the_file_s_own_words(tmp_path: Path, there: str, written: str) -> None:
    text = SHIPPED.with_name("lora.toml").read_text()
    assert text.count(there) == 1
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(there, written))
    with pytest.raises(InputError) as refused:
        load_tuning(path)
    assert str(refused.value).startswith(f"{path}: {MISTAKES[there][written]}")


def test_a_table_within_a_table_is_told_whole(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SHIPPED.read_text().replace("clip = 1.0", "clip = 0.0", 1))
    with pytest.raises(InputError, match=r"recipe\.toml: \[vae\.optim\] clip: 0\.0 is not acceptable"):
        load_recipe(path)


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("seed = [")
    for given, why in ((path, "Invalid value"), (tmp_path / "absent.toml", "no such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError) as refused:
            load_recipe(given)
        said = str(refused.value)
        assert said.startswith(f"{given}: {why}") and said.endswith(": give a recipe, such as configs/train/lora.toml")
        assert said.count(str(given)) == 1


def test_the_command_trains_and_says_what_is_wrong(tmp_path: Path, family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (20, 20), (255, 0, 0, 255)).save(tmp_path / "square.png")
    (tmp_path / "things.json").write_text(json.dumps([{"file": "square.png", "names": ["square"], "plural": False, "weight": 1.0}]))
    command = ["train", str(SHIPPED), "--stage", "vae", "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "--data is missing" in capsys.readouterr().err
    assert main([*command, "--data", str(tmp_path), "--minutes", "0"]) == 0
    assert (tmp_path / "run" / "vae" / "state-00000000.json").exists()
    assert main(["train", str(SHIPPED), "--stage", "towers", "--out", str(tmp_path / "none"), "--data", str(tmp_path)]) == 2
    assert "train the stage 'vae' first" in capsys.readouterr().err


BAD = {
    "unet.optim.steps": 0,
    "towers.optim.batch": 0,
    "vae.optim.lr": -0.1,
    "unet.optim.warmup": -1,
    "unet.optim.final": 1.5,
    "unet.optim.weight_decay": -0.1,
    "unet.optim.clip": 0.0,
    "unet.optim.ema": 1.0,
    "unet.optim.accumulate": 0,
    "unet.dropout": 1.1,
    "unet.gamma": 0.0,
    "unet.offset": -0.1,
    "unet.pyramid": 1.1,
    "unet.perturbation": -0.1,
    "unet.huber": -1.0,
    "vae.crop": 0,
    "vae.kl": -1.0,
    "data.step": 12,
    "data.size": 120,
    "data.pictures": 0,
    "data.other_shapes": 2.0,
    "data.small_share": 0.9,
    "seed": -1,
}


@pytest.mark.parametrize("key", BAD)
def test_a_number_out_of_range_is_named(key: str) -> None:
    values = load_recipe(SHIPPED).to_dict()
    with pytest.raises(InputError, match=rf"\.{key.rpartition('.')[2]}: .* is not acceptable: expected"):
        Recipe.from_dict(changed(values, {key: BAD[key]}))


@pytest.mark.parametrize(("crop", "message"), [(36, "multiples of the family's 8"), (40, "shortest side of a picture, 32")])
def test_windows_that_no_picture_has_are_refused(
    crop: int, message: str, family: Family, recipe: Recipe, composer: Composer, tmp_path: Path
) -> None:
    recipe = Recipe.from_dict(changed(recipe.to_dict(), {"vae.crop": crop}))
    with pytest.raises(InputError, match=message):
        stage_trainer("vae", recipe, composer, tmp_path, resume=False, limits=Limits())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes", "nan"], "--minutes nan"),
        (["--minutes", "-1"], "--minutes -1"),
        (["--samples", "x.txt", "--every", "0"], "--every 0"),
        (["--shard-mib", "0"], "--shard-mib 0"),
        (["--export", "absent/x.safetensors"], "there is no folder absent"),
        (["--out", __file__], "not a folder"),
    ],
)
def test_flags_out_of_range_are_named(tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(SHIPPED.with_name("lora.toml")), "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
