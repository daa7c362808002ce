"""What is trained here is what is sampled here: a UNet that learned one picture by heart gives it back from noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm.measure import relative_error
from ldm.models.clip import CLIPText
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.pipeline import Pipeline
from ldm.train.data import to_tensor
from ldm.train.loop import Limits, train
from ldm.train.recipe import Optim, PicturesRecipe
from ldm.train.running import start
from ldm.train.sources import collect
from ldm.train.tune import LossRecipe, TuneRecipe
from ldm.train.unet import initialise
from scripts.faults.tiny import tiny_family

CAPTION, SIDE, BATCH = "a yellow circle on blue", 32, 8
CLOSE, FAR = 0.25, 1.0  # relative error of the latents: learned by heart, and no nearer than an empty picture


def made(prediction: Literal["epsilon", "v"]) -> Pipeline:
    """Networks of drawn values in the family's layout, a UNet of one level; the picture's latents have a deviation of one."""
    family = tiny_family(prediction)
    unet = replace(family.unet, model_channels=32, norm_groups=8, channel_mult=(1,), transformer_depth=(1,), middle_depth=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(family.vae).requires_grad_(False)
        family = replace(family, unet=unet, vae=replace(family.vae, scale=1 / float(vae.encode(pixels())[0].std())))
        parts = UNet(unet), vae, [CLIPText(shape).requires_grad_(False) for shape in family.towers]
    initialise(parts[0])
    vae.shape = family.vae
    return Pipeline(family, *parts, source="drawn")


def picture() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (40, 85, 215))
    ImageDraw.Draw(image).ellipse((3, 7, 22, 26), (250, 220, 60))
    return image


def pixels() -> torch.Tensor:
    return to_tensor(np.array(picture())[None])


def missed(pipeline: Pipeline, z: torch.Tensor, seed: int) -> float:
    """How far from z the latents come down that are sampled from noise."""
    result = pipeline.generate(CAPTION, width=SIDE, height=SIDE, steps=12, cfg=1.0, sampler="dpmpp_2m", schedule="karras", seed=seed)
    return relative_error(result.latents, z[None])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_one_picture_learned_by_heart_comes_back_from_noise(prediction: Literal["epsilon", "v"], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    picture().save(tmp_path / "pictures" / "one.png")
    (tmp_path / "pictures" / "one.txt").write_text(CAPTION)
    pipeline = made(prediction)
    optim = Optim(steps=220, batch=BATCH, lr=0.01, warmup=10, final=0.02, weight_decay=0.0, clip=1.0, ema=0.95)
    recipe = TuneRecipe("unet", 1, "float32", PicturesRecipe(SIDE, 16), optim, loss=LossRecipe("debiased", dropout=0.0))
    found = collect(tmp_path / "pictures")
    found.examples = [replace(each, repeats=BATCH) for each in found.examples]
    run = start(pipeline, recipe, found, tmp_path / "run", resume=False, limits=Limits())
    (z,) = run.task.data.z  # type: ignore[attr-defined]
    assert missed(pipeline, z, 3) > FAR
    train(run.trainer, Limits())
    with run.averaged() as averaged:
        errors = [missed(averaged, z, seed) for seed in (3, 4)]
    assert max(errors) < CLOSE, errors
