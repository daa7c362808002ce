"""The stages in their order, each built on what the one before it left in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ldm.diffusion.schedules import SigmaTable
from ldm.errors import InputError
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family, load_family
from ldm.models.vae import VAE
from ldm.text.prompt import chunks
from ldm.text.tokenizer import encode, padded
from ldm.train.cache import PICTURES, Features, Pictures, features, pictures
from ldm.train.data import Composer, load_things
from ldm.train.loop import Limits, Task, Trainer, train
from ldm.train.recipe import Optim, Recipe
from ldm.train.state import load_mean, part
from ldm.train.towers import TowersTask
from ldm.train.unet import UNetTask
from ldm.train.vae import VAETask

FEATURES = "features.safetensors"


def run_stage(stage: str, recipe: Recipe, composer: Composer, out: Path, *, resume: bool, limits: Limits) -> int:
    """Train `stage` and return the step reached; see `stage_trainer`."""
    return train(stage_trainer(stage, recipe, composer, out, resume=resume, limits=limits), limits)


def stage_trainer(stage: str, recipe: Recipe, composer: Composer, out: Path, *, resume: bool, limits: Limits) -> Trainer:
    """What trains `stage`. Raises InputError when a run is already there and `resume` is not asked for."""
    if any((out / stage).glob("state-*")) and not resume:
        raise InputError(f"{out / stage} holds a run: continue it with --resume, or give another --out")
    task, numbers = Stages(recipe, composer, out, limits.say).task(stage)
    trainer = Trainer(task, numbers, out / stage, limits.say, shard=limits.shard)
    resumed = resume and trainer.resume()
    count = sum(parameter.numel() for parameter in task.module.parameters())
    limits.say(f"{stage}: {count:,} values, {'resumed at' if resumed else 'from'} step {trainer.step}")
    return trainer


def load_composer(recipe: Recipe, folder: Path) -> Composer:
    return Composer(load_things(folder), recipe.data, recipe.seed)


@dataclass
class Stages:
    """What each stage needs, made when it is first asked for."""

    recipe: Recipe
    composer: Composer
    out: Path
    say: Callable[[str], None]

    def task(self, stage: str) -> tuple[Task, Optim]:
        if stage == "vae":
            return VAETask(self.family.vae, self.composer, self.recipe), self.recipe.vae.optim
        if stage == "towers":
            return TowersTask(self.family.towers, self.pictures, self.ids, self.recipe), self.recipe.towers.optim
        if stage == "unet":
            sigmas = SigmaTable("float64").sigmas
            return UNetTask(self.family, self.pictures, self.features, sigmas, self.recipe), self.recipe.unet.optim
        raise InputError(f"unknown stage {stage!r}: the stages are vae, towers and unet")

    @cached_property
    def family(self) -> Family:
        return load_family(self.recipe.family)

    @cached_property
    def pictures(self) -> Pictures:
        vae = VAE(self.family.vae)
        vae.load_state_dict(load_mean(self.out / "vae"))
        return pictures(self.out / PICTURES, self.composer, vae, self.recipe.precision, self.say)

    @cached_property
    def ids(self) -> list[Tensor]:
        """Token ids of all captions, (C, 77) a tower: the towers differ in their padding."""
        return [caption_ids(self.pictures.captions, shape.pad_token) for shape in self.family.towers]

    @cached_property
    def features(self) -> Features:
        mean = load_mean(self.out / "towers")
        towers = [CLIPText(shape) for shape in self.family.towers]
        for i, tower in enumerate(towers):
            tower.load_state_dict(part(mean, f"towers.{i}."))
        return features(self.out / FEATURES, towers, self.ids, self.pictures.captions, self.say)


def caption_ids(captions: Sequence[str], pad: int) -> Tensor:
    """(C, 77) token ids: start, at most 75 of the caption's, end, padding."""
    return torch.tensor([padded(chunks(encode(caption), "cut")[0], pad) for caption in captions])
