"""What a run shows on the way: its figures, sample grids from a prompt file, TensorBoard's scalars. That one of these fails ends no run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.errors import InputError, LdmError, MemoryNeedError
from ldm.files import write_atomic

if TYPE_CHECKING:
    from ldm.options import Job
    from ldm.train.loop import Trainer
    from ldm.train.running import Run

Figures = dict[str, float]
Watcher = Callable[["Trainer", Figures], object]
Say = Callable[[str], None]
SMALLER = "give smaller pictures, or fewer at once, in --samples"
SECONDS = 10.0  # from one line that counts to the next


class Attempts:
    """`with attempts("no picture"):` what may fail: it is said, the same failure once."""

    def __init__(self, say: Say) -> None:
        self.say, self.last = say, ""

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except (LdmError, OSError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            kind = error.code if isinstance(error, MemoryNeedError) else why  # its amounts differ every time
            if kind != self.last:
                self.say(f"{what}: {why}; the run goes on")
            self.last = kind


def append(path: Path, line: Mapping[str, Any]) -> None:
    """A line more of a file of JSON lines; what a kill or a full disk has cut stays a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
        file.write((b"" if file.read(1) in (b"", b"\n") else b"\n") + json.dumps(line).encode() + b"\n")


def many(count: int, thing: str) -> str:
    """ "1 picture", "13 pictures"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def counter(what: str, total: int, say: Say) -> Callable[[int], None]:
    """Says "what: done/total" of the number that it is told: at the beginning, every ten seconds, at the end."""
    said = -math.inf

    def tell(done: int) -> None:
        nonlocal said
        if done == total or time.monotonic() - said >= SECONDS:
            said = time.monotonic()
            say(f"{what}: {done:,}/{total:,}")

    tell(0)
    return tell


class Grids:
    """Every `every` steps the pictures of `jobs`, made by the moving average, side by side in FOLDER/samples/STEP.png."""

    def __init__(self, run: Run, jobs: Sequence[Job], every: int, say: Say) -> None:
        self.run, self.jobs, self.every, self.attempts = run, jobs, every, Attempts(say)

    def __call__(self, trainer: Trainer, _figures: Figures) -> None:
        from ldm.runtime.retry import named

        if trainer.step % self.every and trainer.step != trainer.numbers.steps:
            return
        with self.attempts(f"no samples at step {trainer.step}"), named("making them", SMALLER):
            with self.run.averaged() as pipeline:
                pictures = [picture for job in self.jobs for picture in pipeline.run(job).images]
            path = trainer.folder / "samples" / f"{trainer.step:08}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda file: tiled(pictures).save(file, "PNG"), overwrite=True)


def tiled(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures in rows, nearly a square, each cell as large as the largest."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (max(each.size[side] for each in pictures) + gap for side in (0, 1))
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for at, picture in enumerate(pictures):
        sheet.paste(picture, (at % columns * width, at // columns * height))
    return sheet


def writer_class() -> Any:
    """TensorBoard's writer. Raises InputError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard: the package tensorboard is not installed: pip install tensorboard, or leave it out") from None
    return SummaryWriter


def scalars(folder: Path, say: Say) -> Watcher:
    """Write every step's figures for TensorBoard. Raises InputError where it is not installed."""
    writer, attempts = writer_class()(str(folder)), Attempts(say)

    def write(trainer: Trainer, figures: Figures) -> None:
        if attempts.last:  # its thread has ended: nothing comes after what failed
            return
        with attempts(f"nothing more for TensorBoard from step {trainer.step}"):
            for name, value in figures.items():
                writer.add_scalar(name, value, trainer.step)
            writer.flush()  # what waits in its thread is lost when the run ends

    return write
