"""A family and a recipe of the smallest numbers, and things drawn here: no test needs a font."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.models.shapes import Family, load_family
from ldm.resources import configs
from ldm.train import stages
from ldm.train.cache import Pictures
from ldm.train.data import Composer
from ldm.train.loop import Limits
from ldm.train.recipe import Recipe, load_recipe
from ldm.train.scenes import Thing
from tests.things import Paint, drawn

SHAPES: dict[str, Paint] = {
    "circle": lambda draw: draw.ellipse((2, 2, 38, 38), (230, 200, 40, 255)),
    "square": lambda draw: draw.rectangle((4, 4, 36, 36), (60, 200, 90, 255)),
    "triangle": lambda draw: draw.polygon([(20, 2), (38, 38), (2, 38)], (200, 60, 160, 255)),
    "bar": lambda draw: draw.rectangle((14, 0, 26, 40), (70, 70, 220, 255)),
}


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A nested copy with `changes`, whose dots reach into inner tables."""
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        values = {**values, first: changed(values[first], {rest: value}) if rest else value}
    return values


def made_pictures(count: int = 10) -> Pictures:
    """Latents of noise in two buckets and numbers of all sizes, with three captions."""
    random = torch.Generator().manual_seed(5)
    numbers = torch.randint(0, 200, (count, 6), generator=random, dtype=torch.int32)
    numbers[:, 4:] = torch.tensor([[32, 32], [16, 48]] * count, dtype=torch.int32)[:count]
    z = [torch.randn(4, height // 8, width // 8, generator=random) for height, width in numbers[:, 4:].tolist()]
    return Pictures(z, numbers, ["", "one", "two"] * count)


@pytest.fixture
def shapes() -> list[Thing]:
    return drawn(SHAPES, 40)


@pytest.fixture
def recipe() -> Recipe:
    """The shipped recipe at 32 pixels, few pictures and few steps, in float32."""
    values = load_recipe(configs() / "train" / "emoji.toml").to_dict()
    optim = {"steps": 6, "batch": 4, "warmup": 2, "lr": 0.001}
    changes: dict[str, Any] = {f"{stage}.optim.{key}": value for stage in ("vae", "towers", "unet") for key, value in optim.items()}
    changes |= {"precision": "float32", "data.size": 32, "data.step": 16, "data.pictures": 16, "vae.crop": 16}
    return Recipe.from_dict(changed(values, changes))


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The shipped family with the smallest widths; `load_family` gives it inside ldm.train."""
    values = load_family("emoji").to_dict()
    changes: dict[str, Any] = {"unet.model_channels": 8, "unet.norm_groups": 4, "unet.head_dim": 8, "unet.num_res_blocks": 1}
    changes |= {"vae.ch": 4, "vae.ch_mult": (1, 1, 2, 2), "vae.norm_groups": 2}
    changes |= {"unet.context_dim": 16, "unet.vector_dim": 8 + 6 * 16, "size_embedding": 16}
    tower = {"width": 8, "layers": 2, "heads": 2, "mlp": 16}
    towers = tuple({**own, **tower, "projection": 8 if own["projection"] else 0} for own in values["towers"])
    small = Family.from_dict(changed(values, {**changes, "towers": towers, "defaults.width": 32, "defaults.height": 32}))
    for module in ("stages", "export"):
        monkeypatch.setattr(f"ldm.train.{module}.load_family", lambda _name: small)
    return small


@pytest.fixture
def composer(shapes: list[Thing], recipe: Recipe) -> Composer:
    return Composer(shapes, recipe.data, recipe.seed)


@pytest.fixture
def trained(family: Family, recipe: Recipe, composer: Composer, tmp_path: Path) -> Path:
    """The folder of a run through all three stages."""
    for stage in ("vae", "towers", "unet"):
        stages.run_stage(stage, recipe, composer, tmp_path / "run", resume=False, limits=Limits())
    return tmp_path / "run"
