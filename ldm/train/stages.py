"""The stages of a new model in their order, each built on what the one before it left in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.train.cache import PICTURES, STAGES, Pictures, built_on, pictures
from ldm.train.data import Composer, load_things
from ldm.train.loop import Limits, Task, Trainer, train
from ldm.train.state import OTHER_STAGES, load_mean, part, refuse_other
from ldm.train.towers import initialise as start_tower
from ldm.train.vae import initialise as start_vae
from ldm.train.vae import vae_task

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline
    from ldm.train.recipe import Optim, Recipe
    from ldm.train.running import Run


@dataclass(frozen=True)
class Place:
    """Where a stage is trained, and from what."""

    device: torch.device
    warm: Pipeline | None = None  # a model of the same family whose weights are the first ones

    @property
    def workers(self) -> int:
        """Processes that compose pictures: on a CPU the training itself needs the cores."""
        return min(os.cpu_count() or 1, 16) if self.device.type == "cuda" else 0


def run_stage(stage: str, recipe: Recipe, composer: Composer, out: Path, *, resume: bool, limits: Limits) -> int:
    """Train `stage` on the CPU from nothing, and return the step reached; see `stage_trainer`."""
    return train(stage_trainer(stage, recipe, composer, out, resume=resume, limits=limits), limits)


def stage_trainer(
    stage: str, recipe: Recipe, composer: Composer, out: Path, *, resume: bool, limits: Limits, place: Place | None = None
) -> Trainer:
    """What trains `stage`. Raises InputError when a run is already there and `resume` is not asked for."""
    if any((out / stage).glob("state-*")) and not resume:
        raise InputError(f"{out / stage} holds a run: continue it with --resume, or give another --out")
    origin = built_on(out, stage)
    refuse_other(out / stage, origin)  # before pictures are encoded for what cannot go on
    task, numbers = Stages(recipe, composer, out, limits.say, place or Place(torch.device("cpu"))).task(stage)
    told = {"origin": origin, "why": OTHER_STAGES}
    trainer = Trainer(task, numbers, out / stage, limits.say, **told, shard=limits.shard, precision=recipe.precision)
    resumed = resume and trainer.resume()
    count = sum(parameter.numel() for parameter in task.module.parameters())
    limits.say(f"{stage}: {count:,} values, {'resumed at' if resumed else 'from'} step {trainer.step}")
    return trainer


def sampled(trainer: Trainer, recipe: Recipe, out: Path) -> Run:
    """The run of the stage unet as its samples are made: with the VAE and the towers in `out`, and the scale, that the model will have."""
    from ldm.pipeline import Pipeline
    from ldm.train.running import Run
    from ldm.train.tune import TuneTask

    task = trainer.task
    if not isinstance(task, TuneTask):
        raise InputError(f"samples of the stage {trainer.folder.name}: only the stage unet makes pictures: leave them out")
    vae = VAE(task.family.vae)
    vae.load_state_dict(load_mean(out / "vae"))
    model = Pipeline(task.family, task.unet, vae.to(task.device), list(task.words.towers), source=recipe.family)
    return Run(model, task.recipe, task, trainer)


def trained_towers(family: Family, mean: dict[str, Tensor], device: torch.device) -> list[CLIPText]:
    towers = [CLIPText(shape) for shape in family.towers]
    for i, tower in enumerate(towers):
        tower.load_state_dict(part(mean, f"towers.{i}."))
    return [tower.to(device).requires_grad_(False) for tower in towers]


def load_composer(recipe: Recipe, folder: Path) -> Composer:
    return Composer(load_things(folder), recipe.data, recipe.seed)


def warmed(module: nn.Module, model: Pipeline, *given: nn.Module) -> None:
    """Give `module` the weights of its like in `model`. Raises InputError where that is of another shape, or not there."""
    state = given[0].state_dict() if given else {}
    own = module.state_dict()
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        raise InputError(f"{model.source}: of another family than the recipe's: give -m a model of that one, or leave it out")
    module.load_state_dict(state)


@dataclass
class Stages:
    """What each stage needs, made when it is first asked for."""

    recipe: Recipe
    composer: Composer
    out: Path
    say: Callable[[str], None]
    place: Place

    def task(self, stage: str) -> tuple[Task, Optim]:
        torch.manual_seed(self.recipe.seed)
        self.check()
        if stage == "vae":
            return vae_task(self.first_vae(), self.composer, self.recipe, self.place.workers), self.recipe.vae.optim
        if stage == "towers":
            return self.matching(), self.recipe.towers.optim
        if stage == "unet":
            from ldm.train.unet import unet_task

            family = replace(self.family, vae=replace(self.family.vae, scale=self.pictures.scale))  # as the model will have it
            return unet_task(family, self.first_unet(), self.towers, self.pictures, self.recipe, self.say), self.recipe.unet.optim
        raise InputError(f"unknown stage {stage!r}: the stages are {', '.join(STAGES)}")

    def check(self) -> None:
        """InputError where the recipe does not fit the family or itself."""
        data, crop, down = self.recipe.data, self.recipe.vae.crop, self.family.downscale
        shortest = min(min(size) for size in [(data.size, data.size), *self.composer.others])
        if data.step % down or crop % down:
            raise InputError(f"data.step {data.step} and vae.crop {crop} have to be multiples of the family's {down}")
        if crop > shortest:
            raise InputError(f"vae.crop {crop} is more than the shortest side of a picture, {shortest}: give less")

    @cached_property
    def family(self) -> Family:
        return load_family(self.recipe.family)

    def first_vae(self) -> VAE:
        module = VAE(self.family.vae)
        if self.place.warm:
            warmed(module, self.place.warm, self.place.warm.vae)
        else:
            start_vae(module)
        return module.to(self.place.device)

    def matching(self) -> Task:
        from ldm.train.matching import MatchingTask
        from ldm.train.prepared import composed
        from ldm.train.recipe import PicturesRecipe
        from ldm.train.tune import TuneRecipe

        data, optim = self.recipe.data, self.recipe.towers.optim
        recipe = TuneRecipe("towers", self.recipe.seed, self.recipe.precision, PicturesRecipe(data.size, data.step), optim)
        return MatchingTask(self.family, self.first_towers(), composed(self.pictures), recipe)

    def first_towers(self) -> list[CLIPText]:
        towers = [start_tower(CLIPText(shape)) for shape in self.family.towers]
        if (warm := self.place.warm) is not None:
            for at, tower in enumerate(towers):
                warmed(tower, warm, *warm.towers[at : at + 1])
        return [tower.to(self.place.device) for tower in towers]

    def first_unet(self) -> UNet:
        from ldm.train.unet import initialise as start_unet

        module = UNet(self.family.unet)
        if self.place.warm:
            warmed(module, self.place.warm, self.place.warm.unet)
        else:
            start_unet(module)
        return module.to(self.place.device)

    @cached_property
    def pictures(self) -> Pictures:
        vae = VAE(self.family.vae)
        vae.load_state_dict(load_mean(self.out / "vae"))
        workers = self.place.workers or (os.cpu_count() or 1)
        return pictures(self.out / PICTURES, self.composer, vae.to(self.place.device), self.recipe.precision, workers, self.say)

    @cached_property
    def towers(self) -> list[CLIPText]:
        return trained_towers(self.family, load_mean(self.out / "towers", built_on(self.out, "towers")), self.place.device)
