"""What a run shows: a bar or lines, the report's curves, TensorBoard's figures; that one cannot be written is said, and the run goes on."""

from __future__ import annotations

import errno
import io
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.commands.train import Screen
from ldm.errors import InputError, MemoryNeedError, NumericError
from ldm.options import Job
from ldm.train.loop import Limits, Trainer, train
from ldm.train.recipe import Recipe
from ldm.train.report import report
from ldm.train.watching import Grids, append, counter, many, scalars
from tests.train.test_loop import Line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_bar_on_a_terminal_and_lines_elsewhere(
    stream: io.StringIO, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stream)
    screen, trainer = Screen(), Trainer(Line(), replace(recipe.vae.optim, steps=500), tmp_path)
    trainer.step = 100  # as of a run that is gone on with

    def tell(trainer: Trainer, _figures: dict[str, float]) -> None:
        if trainer.step == 300:
            screen.say("a grid is made")

    screen.train("vae", trainer, Limits(say=screen.say, log_seconds=1e9), [tell])
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[A-Z]", "", stream.getvalue()))
    drawn = [line for line in lines if line.startswith("vae: ")]
    assert {"a grid is made", f"step 500 of 500: {tmp_path}"} <= set(lines)
    assert bool(drawn) == stream.isatty()
    said = [line.split()[1] for line in lines if re.match("step [0-9]+/", line)]
    assert said == ([] if drawn else [f"{at}/500" for at in range(120, 501, 20)])
    if drawn:
        assert "| 100/500 [" in drawn[0] and len(drawn) < 200  # not one a step
        assert re.search(r"100%\|.+\| 500/500 \[.*<00:00, .*it/s, loss [0-9.e-]+, [0-9.]+ pictures/s\]", drawn[-1])
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(120, 501, 20))


@pytest.mark.parametrize(("seconds", "wanted"), [(12.0, [3, 6, 9, 10]), (100.0, [*range(1, 11)])])
def test_a_slow_run_has_a_line_every_half_minute(
    seconds: float, wanted: list[int], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, said = [0.0], list[str]()

    def step(*_: object) -> None:
        clock[0] += seconds

    monkeypatch.setattr("ldm.train.loop.time.monotonic", lambda: clock[0])
    train(Trainer(Line(), replace(recipe.vae.optim, steps=10), tmp_path), Limits(seen=step, say=said.append))
    assert [int(line.split("/")[0].removeprefix("step ")) for line in said] == wanted


def test_what_is_counted_is_said_from_the_beginning_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], list[str]()
    monkeypatch.setattr("ldm.train.watching.time.monotonic", lambda: clock[0])
    done = counter("encoding pictures", 1300, said.append)
    for at in range(1300):
        clock[0] = at / 64
        done(at)
    done(1300)
    assert said == [f"encoding pictures: {done}/1,300" for done in ("0", "640", "1,280", "1,300")]
    assert (many(1, "bucket"), many(1300, "picture")) == ("1 bucket", "1,300 pictures")


@pytest.mark.parametrize("before", ["", '{"step": 20, "loss": 9.0}\n', '{"step": 20, "loss": 9.0}\n{"step": 40, "lo'])
def test_a_line_that_a_kill_cut_stays_one_of_its_own(before: str, tmp_path: Path) -> None:
    log = tmp_path / "vae" / "metrics.jsonl"
    if before:
        log.parent.mkdir()
        log.write_text(before)
    for step in (40, 60):
        append(log, {"step": step, "loss": 5.0})
    between = "" if before[-1:] in ("", "\n") else "\n"
    assert log.read_text() == before + between + '{"step": 40, "loss": 5.0}\n{"step": 60, "loss": 5.0}\n'
    assert "vae: 60 steps" in report(tmp_path).read_text()


def test_metrics_that_cannot_be_written_are_said_once(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    said: list[str] = []
    trainer = Trainer(Line(), recipe.vae.optim, tmp_path, said.append)
    assert train(trainer, Limits(log_every=1)) == 6
    assert said == ["no line in metrics.jsonl at step 1: Is a directory; the run goes on"]


def test_grids_that_cannot_be_made_are_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, failures = list[str](), list[Exception]()

    def run(_job: Job) -> SimpleNamespace:
        if failures:
            raise failures[0]
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))])

    @contextmanager
    def averaged() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(run=run)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    source: Any = SimpleNamespace(averaged=averaged)
    trainer: Any = SimpleNamespace(folder=tmp_path, step=1, numbers=SimpleNamespace(steps=9))
    grids = Grids(source, [Job("x")], 1, said.append)
    grids(trainer, {})
    assert (tmp_path / "samples" / "00000001.png").exists() and not said
    monkeypatch.setattr("ldm.train.watching.write_atomic", full)
    for trainer.step in (2, 3):
        grids(trainer, {})
    failures.append(NumericError("not finite"))
    grids(trainer, {})
    for free in ("1.00 GiB", "0.99 GiB"):  # in the middle of a picture, or named by the pipeline already
        failures[0] = torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 9.56 GiB. GPU 0 has 80 GiB of which {free} is free")
        grids(trainer, {})
    failures[0] = MemoryNeedError("VAE decode: out of memory (3.00 GiB more asked for)", "E4002")
    grids(trainer, {})
    memory = "making them: out of memory (9.56 GiB more asked for, 1.00 GiB free): give smaller pictures, or fewer at once, in --samples"
    last = [(2, "No space left on device"), (3, "not finite"), (3, memory)]
    assert said == [f"no samples at step {step}: {why}; the run goes on" for step, why in last]
    failures[0] = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        grids(trainer, {})


def test_steps_made_again_after_a_kill_count_once(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    lines = [(20, 9.0), (40, 8.0), (60, 7.0), (40, 6.0), (60, 5.0), (80, 4.0)]
    text = "\n".join(json.dumps({"step": step, "loss": loss}) for step, loss in lines) + '\n{"step": 100, "lo'
    (tmp_path / "unet" / "metrics.jsonl").write_text(text)
    page = report(tmp_path).read_text()
    (points,) = re.findall(r"<polyline points='([^']+)'", page)
    xs = [float(point.split(",")[0]) for point in points.split()]
    assert len(xs) == 4 and xs == sorted(xs)
    assert "unet: 80 steps" in page and "9 to 4" in page
    with pytest.raises(InputError, match="there is no folder"):
        report(tmp_path, tmp_path / "absent" / "page.html")


class Writer:
    """As TensorBoard's, whose figures are on the disk only when they were flushed."""

    waiting: list[tuple[str, float, int]]

    def __init__(self, folder: str) -> None:
        self.waiting, self.kept = [], Path(folder) / "kept.json"

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.waiting.append((name, value, step))

    def flush(self) -> None:
        self.kept.write_text(json.dumps(self.waiting))


def test_figures_are_written_out_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    said, trainer = list[str](), SimpleNamespace(step=3)
    write: Any = scalars(tmp_path, said.append)
    write(trainer, {"loss": 0.5})
    assert json.loads((tmp_path / "kept.json").read_text()) == [["loss", 0.5, 3]]
    (tmp_path / "kept.json").unlink()
    (tmp_path / "kept.json").mkdir()
    for _ in range(2):
        write(trainer, {"loss": 0.5})
    assert said == ["nothing more for TensorBoard from step 3: Is a directory; the run goes on"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="--tensorboard"):
        scalars(tmp_path, said.append)
