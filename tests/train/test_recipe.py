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
from ldm.train.recipe import load_recipe

SHIPPED = configs() / "train" / "emoji.toml"


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(SHIPPED.read_text().replace("[unet]\n", "[unet]\ndropuot = 0.1\n"))
    with pytest.raises(InputError, match="dropuot"):
        load_recipe(path)


@pytest.mark.parametrize("text", [None, "seed = ["])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "recipe.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"recipe\.toml"):
        load_recipe(path)


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
