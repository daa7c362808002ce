"""`ldm train RECIPE`: a model, a LoRA, or one stage of a new model, trained on pictures; `ldm train report FOLDER`: a run on one page."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import catalogue
from ldm.commands.flags import made
from ldm.commands.stopping import STOPS, Stop
from ldm.commands.streams import printable, say
from ldm.errors import InputError
from ldm.flags import Parser

if TYPE_CHECKING:
    from ldm.options import Job
    from ldm.train.loop import Limits, Trainer
    from ldm.train.running import Run
    from ldm.train.sources import Found
    from ldm.train.tune import TuneRecipe

MIB = 2**20


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code."""
    if argv[:1] == ["report"]:
        return _report(argv[1:])
    options = parser().parse_args(argv)
    _check(options)
    from ldm.train.recipe import read_recipe

    if "train" in read_recipe(options.recipe):
        return _tune(options)
    return _stage(options)


def _check(options: argparse.Namespace) -> None:
    """InputError for what would be met after hours, or taken for something else."""
    if options.export and options.export.exists() and not options.overwrite:
        raise InputError(f"--export {options.export}: exists already: give another name, or --overwrite")
    if options.export and not options.export.parent.is_dir():
        raise InputError(f"--export {options.export}: there is no folder {options.export.parent}: make it first")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: not a folder: give another name")
    if not options.minutes >= 0:
        raise InputError(f"--minutes {options.minutes}: give 0 or more")
    for name in ("every", "shard_mib"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")


def parser() -> Parser:
    flags = made("train", "Train on pictures; `ldm train report FOLDER` draws a run.", models_dir=True)
    flags.add_argument("recipe", type=Path, help="a TOML file such as configs/train/lora.toml")
    flags.add_argument("--data", type=Path, metavar="SOURCE", help="folder, .tar, .jsonl or sd-scripts' .toml; not the recipe's")
    flags.add_argument("-m", "--model", metavar="NAME", help="the model to begin with; not the recipe's, or random values")
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the run: states, metrics, samples, what is cached")
    flags.add_argument(
        "--export", type=Path, metavar="FILE", help="write what is trained when it ends; in stages, without --stage: at once"
    )
    flags.add_argument("--overwrite", action="store_true", help="let --export replace a file that exists")
    flags.add_argument("--resume", action="store_true", help="continue from the newest state in --out")
    flags.add_argument("--minutes", type=float, default=math.inf, metavar="N", help="stop in good order after this time")
    flags.add_argument("--shard-mib", type=int, metavar="N", help="size of the files of a state; one file without it")
    flags.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    flags.add_argument("--samples", metavar="FILE", help="prompts for sample grids, as sample --from-file takes them")
    flags.add_argument("--every", type=int, default=500, metavar="N", help="steps between sample grids (default 500)")
    flags.add_argument("--tensorboard", action="store_true", help="write the figures for TensorBoard too")
    flags.add_argument("--stage", choices=["vae", "towers", "unet"], help="of a recipe for a new model, in this order")
    return flags


def _report(argv: list[str]) -> int:
    flags = made("train report", "Loss, learning rate, gradient norm and samples of a run in one HTML page.")
    flags.add_argument("folder", type=Path, help="the --out of a run")
    flags.add_argument("-o", "--output", type=Path, metavar="FILE", help="the page; report.html in the folder without it")
    options = flags.parse_args(argv)
    from ldm.train.report import report

    print(printable(str(report(options.folder, options.output))), flush=True)
    return 0


def _tune(options: argparse.Namespace) -> int:
    """A run on one's own pictures."""
    from ldm.checkpoint.safetensors import read_header
    from ldm.pipeline import load
    from ldm.train.running import start, write
    from ldm.train.tune import load_tuning

    recipe = load_tuning(options.recipe)
    _refuse(options, "stage", "this recipe has no stages")
    found = _pictures(options, recipe)
    path = catalogue.find(options.model or recipe.model, "checkpoint", catalogue.places(options.models_dir))
    base, pipeline = read_header(path), load(path, device=options.device, dtype="float32")
    limits, jobs = _limits(options), _samples(options)
    made = start(pipeline, recipe, found, options.out, resume=options.resume, limits=limits)
    _watch(options, made, jobs, limits)
    from ldm.train.loop import train

    with _in_good_order(made.trainer):
        train(made.trainer, limits)
    if options.export:
        say(write(made, base, options.export, overwrite=options.overwrite))
    say(f"step {made.trainer.step} of {recipe.optim.steps}: {options.out}")
    return 0


@contextmanager
def _in_good_order(trainer: Trainer) -> Iterator[None]:
    """A signal lets the step in hand and the saving of the state end; a second one, a second later, does not wait."""
    try:
        with STOPS.held():
            yield
    except Stop:
        raise Stop(f"at step {trainer.step}", f"the state is in {trainer.folder}, continue with --resume") from None


def _pictures(options: argparse.Namespace, recipe: TuneRecipe) -> Found:
    from ldm.train.datasets import read_dataset
    from ldm.train.sources import collect

    source = options.data or (options.recipe.parent / recipe.data if recipe.data else None)
    if source is None:
        raise InputError("no pictures: give --data, or data = ... in the recipe")
    return read_dataset(source) if source.suffix.lower() == ".toml" else collect(source)


def _limits(options: argparse.Namespace) -> Limits:
    from ldm.train.loop import Limits

    shard = {"shard": options.shard_mib * MIB} if options.shard_mib else {}
    return Limits(minutes=options.minutes, stop=lambda: bool(STOPS.number), say=say, **shard)


def _samples(options: argparse.Namespace) -> list[Job]:
    """What sample grids show, if they are asked for. Raises InputError for that, or TensorBoard, where it cannot be had."""
    from ldm.jobs import prompts
    from ldm.options import Job
    from ldm.train.watching import writer_class

    if options.tensorboard:
        writer_class()
    return [task.job for task in prompts.read(options.samples, Job()).tasks] if options.samples else []


def _watch(options: argparse.Namespace, run: Run, jobs: list[Job], limits: Limits) -> None:
    """Sample grids and TensorBoard, as far as they are asked for."""
    from ldm.train.watching import Grids, Watcher, scalars

    watchers: list[Watcher] = []
    if jobs:
        watchers.append(Grids(run, jobs, options.every, say))
    if options.tensorboard:
        watchers.append(scalars(run.trainer.folder))

    def seen(trainer: Any, figures: dict[str, float]) -> None:
        for watcher in watchers:
            watcher(trainer, figures)

    limits.seen = seen


def _stage(options: argparse.Namespace) -> int:
    """One stage of a new model, or the file that all stages make."""
    from ldm.devices import device_named
    from ldm.pipeline import load
    from ldm.train.loop import train
    from ldm.train.recipe import load_recipe
    from ldm.train.stages import Place, load_composer, stage_trainer

    recipe = load_recipe(options.recipe)
    for name in ("samples", "tensorboard"):
        _refuse(options, name, "this recipe makes a new model in stages")
    if options.stage is None:
        if not options.export:
            raise InputError("nothing to do: give --stage vae, towers or unet, or --export FILE")
        from ldm.train.export import export

        say(export(recipe, options.out, options.export, overwrite=options.overwrite))
        return 0
    if options.data is None:
        raise InputError("--data is missing: give the folder of things that scripts/emoji.py wrote")
    composer, limits = load_composer(recipe, options.data), _limits(options)
    path = catalogue.find(options.model, "checkpoint", catalogue.places(options.models_dir)) if options.model else None
    place = Place(device_named(options.device), load(path, device="cpu", dtype="float32") if path else None)
    trainer = stage_trainer(options.stage, recipe, composer, options.out, resume=options.resume, limits=limits, place=place)
    with _in_good_order(trainer):
        train(trainer, limits)
    return 0


def _refuse(options: argparse.Namespace, name: str, why: str) -> None:
    if getattr(options, name):
        raise InputError(f"--{name}: {why}: leave it out")
