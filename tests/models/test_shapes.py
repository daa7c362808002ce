"""The numbers of every family as literals: what generative-models' `configs/inference` and the official files say, and our defaults."""

from __future__ import annotations

import pytest

from ldm.models.shapes import load_family
from ldm.resources import names

UNETS = {
    "sdxl-base": {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "channel_mult": (1, 2, 4),
        "num_res_blocks": 2,
        "transformer_depth": (0, 2, 10),
        "middle_depth": 10,
        "head_dim": 64,
        "num_heads": 0,
        "context_dim": 2048,
        "vector_dim": 2816,
        "norm_groups": 32,
        "linear_proj": True,
    },
    "sdxl-refiner": {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 384,
        "channel_mult": (1, 2, 4, 4),
        "num_res_blocks": 2,
        "transformer_depth": (0, 4, 4, 0),
        "middle_depth": 4,
        "head_dim": 64,
        "num_heads": 0,
        "context_dim": 1280,
        "vector_dim": 2560,
        "norm_groups": 32,
        "linear_proj": True,
    },
}
UNETS["sdxl-turbo"] = UNETS["sdxl-base"]
VAE = {"ch": 128, "ch_mult": (1, 2, 4, 4), "num_res_blocks": 2, "z_channels": 4, "norm_groups": 32, "scale": 0.13025}
DEFAULTS = {  # width, height, sampler, schedule, steps, cfg
    "sdxl-base": (1024, 1024, "dpmpp_2m", "karras", 30, 5.0),
    "sdxl-refiner": (1024, 1024, "dpmpp_2m", "karras", 30, 5.0),
    "sdxl-turbo": (512, 512, "euler", "trailing", 1, 1.0),
    "emoji": (128, 128, "dpmpp_2m", "karras", 20, 4.0),
}
NUMBERS = {  # what follows the pooled vector, in its order
    "sdxl-base": ("original", "crop", "target"),
    "sdxl-refiner": ("original", "crop", "aesthetic"),
    "sdxl-turbo": ("original", "crop", "target"),
    "emoji": ("original", "crop", "target"),
}


def test_every_family_is_here() -> None:
    assert set(DEFAULTS) == set(NUMBERS) == set(names("models"))


@pytest.mark.parametrize("name", UNETS)
def test_official_unets(name: str) -> None:
    assert load_family(name).unet.to_dict() == UNETS[name]


@pytest.mark.parametrize("name", UNETS)
def test_the_official_vae(name: str) -> None:
    """One autoencoder for both, which overflows in half precision."""
    family = load_family(name)
    assert family.vae.to_dict() == VAE
    assert family.vae_dtype == "float32"
    assert family.downscale == 8


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    assert tuple(load_family(name).defaults.to_dict().items()) == tuple(
        zip(("width", "height", "sampler", "schedule", "steps", "cfg"), DEFAULTS[name], strict=True)
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_vector_and_prediction(name: str) -> None:
    family = load_family(name)
    assert family.numbers == NUMBERS[name]
    assert family.size_embedding == 256
    assert family.prediction == "epsilon"
