"""What a run shows on the way: sample grids from a prompt file, and TensorBoard's scalars where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ldm.errors import InputError, LdmError
from ldm.files import write_atomic

if TYPE_CHECKING:
    from ldm.options import Job
    from ldm.train.loop import Trainer
    from ldm.train.running import Run

Figures = dict[str, float]
Watcher = Callable[["Trainer", Figures], object]


class Grids:
    """Every `every` steps the pictures of `jobs`, made by the moving average, side by side in FOLDER/samples/STEP.png."""

    def __init__(self, run: Run, jobs: Sequence[Job], every: int, say: Callable[[str], None]) -> None:
        self.run, self.jobs, self.every, self.say = run, jobs, every, say

    def __call__(self, trainer: Trainer, _figures: Figures) -> None:
        if trainer.step % self.every and trainer.step != trainer.numbers.steps:
            return
        try:
            with self.run.averaged() as pipeline:
                pictures = [picture for job in self.jobs for picture in pipeline.run(job).images]
            path = trainer.folder / "samples" / f"{trainer.step:08}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda file: tiled(pictures).save(file, "PNG"), overwrite=True)
        except LdmError as error:  # a picture that fails is no reason to lose a run
            self.say(f"no samples at step {trainer.step}: {error}")


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


def scalars(folder: Path) -> Watcher:
    """Write every step's figures for TensorBoard. Raises InputError where it is not installed."""
    writer = writer_class()(str(folder))

    def write(trainer: Trainer, figures: Figures) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, trainer.step)
        writer.flush()  # what waits in its thread is lost when the run ends

    return write
