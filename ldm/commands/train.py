"""`ldm train RECIPE`: a model, a LoRA, or one stage of a new model, trained on pictures; `ldm train report FOLDER`: a run on one page."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import catalogue
from ldm.commands import output
from ldm.commands.flags import made
from ldm.commands.progress import Bar
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
    from ldm.train.watching import Watcher

MIB = 2**20
EVERY = 500  # steps from one sample grid to the next
TRAINING = ("data", "model", "models_dir", "device", "minutes", "resume", "shard_mib", "samples", "tensorboard")  # are of a training
STAGED = ("family", "unet")  # in the recipe of a new model alone


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code."""
    if argv[:1] == ["report"]:
        return _report(argv[1:])
    options = parser().parse_args(argv)
    from ldm.train.recipe import read_recipe

    keys = read_recipe(options.recipe).keys()
    staged = "train" not in keys and not keys.isdisjoint(STAGED)
    _check(options, staged)
    return _stage(options) if staged else _tune(options)


def _check(options: argparse.Namespace, staged: bool) -> None:
    """InputError for what would be met after hours, has no effect, or is taken for something else."""
    if staged and not options.stage and not options.export:
        raise InputError("nothing to do: give --stage vae, towers or unet, or --export FILE")
    for name, why in _idle(options, staged):
        given = getattr(options, name)
        if given is not None and given is not False and given != []:
            raise InputError(f"--{name.replace('_', '-')}: {why}: leave it out")
    if options.minutes is not None and not options.minutes >= 0:
        raise InputError(f"--minutes {options.minutes}: give 0 or more")
    for name in ("every", "shard_mib"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more")
    if options.export:
        if not options.export.parent.is_dir():
            raise InputError(f"--export {options.export}: there is no folder {options.export.parent}: make it first")
        output.check_new(options.export, ".safetensors", options.overwrite, "--export")
    if options.stage or not staged:
        output.check_folder(options.out, "--out")


def _idle(options: argparse.Namespace, staged: bool) -> Iterator[tuple[str, str]]:
    """The flags that have no effect beside the others, and why."""
    if not staged:
        yield "stage", "this recipe has no stages"
    elif options.stage:
        yield "export", "one stage is no model: without --stage the file of all three is written"
    else:
        yield from ((name, "without --stage nothing is trained") for name in TRAINING)
    if options.stage in ("vae", "towers"):
        yield "samples", f"the stage {options.stage} makes no pictures"
    if not options.samples:
        yield "every", "it counts for --samples"
    if not options.export:
        yield "overwrite", "it counts for --export"


def parser() -> Parser:
    flags = made("train", "Train on pictures; `ldm train report FOLDER` draws a run.", models_dir=True)
    flags.add_argument("recipe", type=Path, help="a TOML file such as configs/train/lora.toml")
    flags.add_argument("--data", type=Path, metavar="SOURCE", help="folder, .tar, .jsonl or sd-scripts' .toml; instead of the recipe's")
    flags.add_argument("-m", "--model", metavar="NAME", help="the model to begin with; instead of the recipe's, or of random values")
    flags.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the run: states, metrics, samples, what is cached")
    flags.add_argument("--export", type=Path, metavar="FILE", help="write what is trained when it ends; all stages, without --stage")
    flags.add_argument("--overwrite", action="store_true", help="let --export replace a file that exists")
    flags.add_argument("--resume", action="store_true", help="continue from the newest state in --out")
    flags.add_argument("--minutes", type=float, metavar="N", help="stop in good order after it, preparation included; 0: prepare alone")
    flags.add_argument("--shard-mib", type=int, metavar="N", help="size of the files of a state; one file without it")
    flags.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (default auto)")
    flags.add_argument("--samples", metavar="FILE", help="prompts for sample grids, as sample --from-file takes them")
    flags.add_argument("--every", type=int, metavar="N", help="steps between sample grids (default 500)")
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
    jobs, screen = samples(options, recipe.seed), Screen()
    limits, found = _limits(options, screen), _pictures(options, recipe)  # the minutes begin here
    path = catalogue.find(options.model or recipe.model, "checkpoint", catalogue.places(options.models_dir))
    base, pipeline = read_header(path), load(path, device=options.device or "auto", dtype="float32")
    made = start(pipeline, recipe, found, options.out, resume=options.resume, limits=limits)
    screen.train(recipe.train, made.trainer, limits, _watchers(options, screen, made.trainer, lambda: made, jobs))
    if options.export:
        say(write(made, base, options.export, overwrite=options.overwrite))
    return 0


class Screen:
    """What a run says: on a terminal above a bar of its steps, elsewhere in lines alone."""

    def __init__(self) -> None:
        self.bar = Bar("", quiet=True)

    def say(self, text: str) -> None:
        with self.bar.away():
            say(text)

    def train(self, what: str, trainer: Trainer, limits: Limits, watchers: Sequence[Watcher]) -> None:
        """To the end of `limits`, with every step shown to the watchers."""
        from ldm.train.loop import LOSS, PICTURES, Pace, train

        pace = Pace()

        def seen(trainer: Trainer, figures: dict[str, float]) -> None:
            pace.add(figures[PICTURES])
            self.bar.reach(trainer.step, f"loss {figures[LOSS]:.4g}, {pace.pictures():.1f} pictures/s")
            for watcher in watchers:
                watcher(trainer, figures)

        limits.seen = seen
        with Bar(what, False, trainer.numbers.steps, done=trainer.step, long=True) as self.bar, _in_good_order(trainer):
            limits.bar = self.bar.shown
            first = trainer.step
            train(trainer, limits)
        if trainer.step == first < trainer.numbers.steps and limits.minutes:
            self.say(f"no step was made: the {limits.minutes:g} minutes were over before: give more --minutes")
        self.say(f"step {trainer.step} of {trainer.numbers.steps}: {trainer.folder}")


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


def _limits(options: argparse.Namespace, screen: Screen) -> Limits:
    from ldm.train.loop import Limits

    shard = {"shard": options.shard_mib * MIB} if options.shard_mib else {}
    minutes = math.inf if options.minutes is None else options.minutes
    return Limits(minutes=minutes, stop=lambda: bool(STOPS.number), say=screen.say, **shard)


def samples(options: argparse.Namespace, seed: int) -> list[Job]:
    """What sample grids show, if they are asked for, each of them by the same seeds: those of the prompts, or `seed`.

    Raises InputError for that, or TensorBoard, where it cannot be had.
    """
    from ldm.jobs import prompts
    from ldm.options import Job
    from ldm.train.watching import writer_class

    if options.tensorboard:
        writer_class()
    jobs = [task.job for task in prompts.read(options.samples, Job()).tasks] if options.samples else []
    return [_seeded(job, seed) for job in jobs]


def _seeded(job: Job, seed: int) -> Job:
    """The job with the seeds that it leaves open."""
    from ldm.limits import SEEDS

    names = SEEDS if job.subseed_strength else SEEDS[:1]
    fresh: dict[str, Any] = {name: seed + at for at, name in enumerate(names) if getattr(job, name) in (None, -1)}
    return replace(job, **fresh)


def _watchers(options: argparse.Namespace, screen: Screen, trainer: Trainer, run: Callable[[], Run], jobs: list[Job]) -> list[Watcher]:
    """Sample grids of `run` and TensorBoard, as far as they are asked for."""
    from ldm.train.watching import Grids, scalars

    grids = [Grids(run(), jobs, options.every or EVERY, screen.say)] if jobs else []
    return [*grids, *([scalars(trainer.folder, screen.say)] if options.tensorboard else [])]


def _stage(options: argparse.Namespace) -> int:
    """One stage of a new model, or the file that all stages make."""
    from ldm.devices import device_named
    from ldm.pipeline import load
    from ldm.train.recipe import load_recipe
    from ldm.train.stages import Place, load_composer, sampled, stage_trainer

    recipe = load_recipe(options.recipe)
    if options.stage is None:
        from ldm.train.export import export

        say(export(recipe, options.out, options.export, overwrite=options.overwrite))
        return 0
    if options.data is None:
        raise InputError("--data is missing: give the folder of things that scripts/emoji.py wrote")
    jobs, screen = samples(options, recipe.seed), Screen()
    limits, composer = _limits(options, screen), load_composer(recipe, options.data)
    path = catalogue.find(options.model, "checkpoint", catalogue.places(options.models_dir)) if options.model else None
    place = Place(device_named(options.device or "auto"), load(path, device="cpu", dtype="float32") if path else None)
    trainer = stage_trainer(options.stage, recipe, composer, options.out, resume=options.resume, limits=limits, place=place)
    run = partial(sampled, trainer, recipe, options.out)
    screen.train(options.stage, trainer, limits, _watchers(options, screen, trainer, run, jobs))
    return 0
