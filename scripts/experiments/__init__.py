"""What papers and readers say of diffusion, tried on a model: one experiment at a time.

    python -m scripts.experiments NAME [--model FILE] [--things FOLDER] [--run FOLDER] [--count N] [--out docs]
    python -m scripts.experiments --write [--out docs]

An experiment prints its tables; with --out it keeps them in OUT/experiments.json and its figure in OUT/experiments, where the others' stay
as they are. --write makes OUT/experiments.md of what is kept. THINGS is the folder that scripts/emoji.py writes, RUN that of a run of
configs/train/emoji.toml, whose encoded pictures the experiments that train learn from.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ldm.commands.streams import answered, say
from ldm.errors import InputError
from ldm.resources import weights
from scripts.bench.records import machine, today, versions
from scripts.experiments import page
from scripts.experiments.page import EXPERIMENTS

SAID = ("model", "things", "run", "count", "seed", "minutes", "steps", "device")  # what the kept command names


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser()
    options = flags.parse_args(argv)
    if options.write == bool(options.name):
        flags.error("give the name of an experiment, or --write")
    if options.write:
        return answered(lambda: say(f"{page.write(options.out or page.DOCS)}"))
    return answered(lambda: experiment(flags, options))


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m scripts.experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("name", nargs="?", choices=list(EXPERIMENTS))
    flags.add_argument("--model", type=Path, help="default: the model in the box")
    flags.add_argument("--things", type=Path, metavar="FOLDER", help="the tiles that the training set is composed of")
    flags.add_argument("--run", type=Path, metavar="FOLDER", help="of a training run: its encoded pictures")
    flags.add_argument("--count", type=int, metavar="N", help="pictures a setting; each experiment has its own default")
    flags.add_argument("--seed", type=int, default=1, metavar="N")
    flags.add_argument("--minutes", type=float, default=10.0, metavar="N", help="of the first training, whose steps are the others' too")
    flags.add_argument("--steps", type=int, metavar="N", help="of each training, instead of minutes")
    flags.add_argument("--device", default="auto", metavar="NAME")
    flags.add_argument("--out", type=Path, metavar="FOLDER", help="keep what is found there; without it, it is only printed")
    flags.add_argument("--write", action="store_true", help="make the page of what is kept")
    return flags


def experiment(flags: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Run one, print what it found, and keep it where that is asked for."""
    import ldm
    from scripts.experiments.common import Asked

    described = EXPERIMENTS[options.name]
    options.count = described.count if options.count is None else options.count
    if options.count < 1:
        raise InputError(f"--count {options.count}: give 1 or more")
    pipeline, begun = ldm.load(options.model, device=options.device), time.perf_counter()
    given = {key: getattr(options, key) for key in ("count", "seed", "run", "minutes", "steps")}
    function = getattr(import_module(f"scripts.experiments.{described.home}"), options.name)
    found = function(Asked(pipeline, folder=options.things, say=say, **given))
    about: dict[str, Any] = {
        "command": command(flags, options),
        "date": today(),
        "machine": machine(pipeline.device)["name"],
        "torch": versions()["torch"],
        "model": pipeline.source,
        "sha256": digest(options.model or weights() / pipeline.source),
        "count": options.count,
        "seconds": round(time.perf_counter() - begun),
    }
    record = {"about": about, **found.record()}
    print(page.result(options.name, record), flush=True)
    if options.out:
        page.keep(options.out, options.name, record, found.figure)


def command(flags: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """What was asked for, files and folders by their last names."""
    words = [options.name]
    for key in SAID:
        value = getattr(options, key)
        if value != flags.get_default(key):
            words += [f"--{key}", value.name if isinstance(value, Path) else str(value)]
    return " ".join(words)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
