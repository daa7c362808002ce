"""Rows F1 to F3 and F5 to F7: training that is killed, damaged, or given what it cannot learn from."""

from __future__ import annotations

import io
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import InputError, NumericError
from ldm.models.unet import UNet
from ldm.train.loop import Limits, Trainer, train
from ldm.train.noising import Noising
from ldm.train.prepared import Prepared, prepare
from ldm.train.recipe import Optim, PicturesRecipe
from ldm.train.sources import collect
from ldm.train.state import load_state, save_state
from ldm.train.tune import TuneRecipe, TuneTask
from scripts.faults import Figure
from scripts.faults.tiny import tiny

STEPS = 24  # of a run that is killed
OPTIM = Optim(steps=STEPS, batch=2, lr=1e-3, warmup=2, final=0.1, weight_decay=0.01, clip=1.0, ema=0.9)
RECIPE = TuneRecipe("unet", 5, "float32", PicturesRecipe(64, 16), OPTIM, noise=Noising(offset=0.1))


def made_trainer(folder: Path) -> Trainer:
    """AdamW, moving average, dropped captions and offset noise over a UNet of the smallest numbers, with latents of two buckets."""
    pipeline = tiny()
    draw = torch.Generator().manual_seed(1)
    unet = UNet(pipeline.family.unet)
    for value in unet.parameters():
        with torch.no_grad():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.05)
    sides = [(8, 8), (8, 8), (4, 12), (8, 8), (4, 12)]
    z = [torch.randn(4, *side, generator=draw) for side in sides]
    numbers = torch.tensor([[64.0, 64, 0, 0, 8 * height, 8 * width] for height, width in sides])
    data = Prepared(z, numbers, [f"thing {k}" for k in range(5)], [None] * 5, list(range(5)), [])
    return Trainer(TuneTask(pipeline.family, unet, pipeline.towers, data, RECIPE), OPTIM, folder)


def in_child(work: Callable[[], object], after: float) -> bool:
    """Run `work` in a fork that is killed after so many seconds; True where it ended before."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    end = time.monotonic() + after
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def f1(count: int | None = None) -> Figure:
    """Killed at random moments and resumed: weights, moving average and optimiser as without a kill."""
    count, drawn = 50 if count is None else count, random.Random(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        in_child(lambda: _go_on(Path(name) / "whole"), math.inf)
        seconds, whole = time.monotonic() - start, _final(Path(name) / "whole")
        kills = runs = same = 0
        while kills < count:
            folder = Path(name) / str(runs)
            while not in_child(lambda folder=folder: _go_on(folder), drawn.uniform(0, seconds) if kills < count else math.inf):
                kills += 1
            found = _final(folder)
            same += found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)
            runs += 1
    reached = f"{kills} kills in {runs} runs of {STEPS} steps: {same} of {runs} end with the same {len(whole)} tensors to the bit"
    return Figure("final weights bit-identical after every kill", reached, same == runs)


def _go_on(folder: Path) -> None:
    """Resume or begin, a state after every step."""
    trainer = made_trainer(folder)
    trainer.resume()
    train(trainer, Limits(save_seconds=0))


def _final(folder: Path) -> dict[str, Tensor]:
    found = load_state(folder, lambda _: None)
    return found[1] if found and found[0] == STEPS else {}


def f2(count: int | None = None) -> Figure:
    """Killed while states are saved, in one file or in shards: the newest whole one is taken up, and it is what was saved."""
    count, drawn = 200 if count is None else count, random.Random(2)
    lost = wrong = newest = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_state(folder, 1, _numbered(1))
        for kill in range(count):
            before = _whole(folder)
            in_child(lambda before=before, kill=kill: _save_on(folder, before, 2**16 if kill % 2 else 2**40), drawn.uniform(0, 0.2))
            after = _whole(folder)
            lost += after < before
            newest += after > before
            found = load_state(folder, lambda _: None)
            wrong += found is None or any(not torch.equal(value, _numbered(found[0])[key]) for key, value in found[1].items())
    reached = f"{count} kills, {newest} of them after newer states: {lost} states lost, {wrong} not as they were saved"
    return Figure("0 unusable runs, the newest complete state is taken", reached, not lost and not wrong)


def _numbered(step: int) -> dict[str, Tensor]:
    return {f"layer.{k}": torch.full((64, 64), float(step * 10 + k)) for k in range(16)}


def _save_on(folder: Path, step: int, shard: int) -> None:
    while True:
        step += 1
        save_state(folder, step, _numbered(step), shard)


def _whole(folder: Path) -> int:
    found = load_state(folder, lambda _: None)
    return found[0] if found else 0


def f3(count: int | None = None) -> Figure:
    """A byte changed, or the end cut off, anywhere in any file of the newest state: said, and the state before it taken."""
    count, drawn = 2000 if count is None else count, random.Random(3)
    found = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_state(folder, 1, _numbered(1), 2**16)
        save_state(folder, 2, _numbered(2), 2**16)
        files = sorted(folder.glob("state-00000002*"))
        for k in range(count):
            path = files[k % len(files)]
            data = path.read_bytes()
            at = drawn.randrange(len(data))
            flipped = bytes([data[at] ^ (1 << drawn.randrange(8))])
            path.write_bytes(data[:at] if k // len(files) % 2 else data[:at] + flipped + data[at + 1 :])
            said: list[str] = []
            taken = load_state(folder, said.append)
            found += taken is not None and taken[0] == 1 and said == ["state-00000002 is damaged: passed over"]
            path.write_bytes(data)
    return Figure("100 % detected", f"{found:,} of {count:,} in {len(files)} files", found == count)


def f5(count: int | None = None) -> Figure:
    """Loss or gradients that are not finite at a step: the run ends there with the state before it, if there is one, and goes on."""
    count, drawn, good = 60 if count is None else count, random.Random(5), 0
    for _ in range(count):
        with tempfile.TemporaryDirectory() as name:
            at, value = drawn.randrange(6), drawn.choice([math.nan, math.inf, -math.inf])
            good += _poisoned(Path(name), at, value, in_gradient=drawn.random() < 0.5)
    return Figure("the run stops with the last good state; no bad step is kept", f"{good} of {count}", good == count)


def _poisoned(folder: Path, at: int, value: float, *, in_gradient: bool) -> bool:
    trainer = made_trainer(folder)
    own = trainer.task.loss

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        made, figures = own(step)
        if step == at and in_gradient:
            made.register_hook(lambda gradient: gradient * value)
        return (made * value if step == at and not in_gradient else made), figures

    trainer.task.loss = loss  # type: ignore[method-assign]
    try:
        train(trainer, Limits())
    except NumericError as error:
        said = f"step {at}: " in str(error)
    else:
        return False
    again = made_trainer(folder)
    finite = again.resume() == (at > 0) and all(bool(tensor.isfinite().all()) for tensor in again.task.module.state_dict().values())
    again.advance()  # of the step that failed, now without the fault
    return said and finite and again.step == at + 1


def f6(count: int | None = None) -> Figure:
    """No pickle is written or read by a run: by the interpreter's own events, and by what the files begin with."""
    count, seen = 3 if count is None else count, list[str]()
    watching = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if watching[0] and event.startswith(("pickle.", "marshal.load")) else None)
    kinds: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        for _ in range(count):
            trainer = made_trainer(Path(name))
            trainer.resume()
            for _ in range(2):
                trainer.advance()
            trainer.save()
        for path in Path(name).iterdir():
            kinds.add(path.suffix)
            seen += [f"{path.name} begins as a pickle"] * (path.read_bytes()[:1] == b"\x80" or path.read_bytes()[:2] == b"PK")
    watching[0] = False
    seen = [event for event in seen if event != "marshal.loads"]  # Python's own cache of its modules
    reached = f"{len(seen)} events in {count} runs; files are {', '.join(sorted(kinds))}"
    return Figure("no pickle written or read", reached, not seen and kinds == {".json", ".safetensors"})


def f7(count: int | None = None) -> Figure:
    """One picture in twenty is broken in one of eight ways: each is listed and counted, the others are used."""
    count, drawn = 1000 if count is None else count, random.Random(7)
    with tempfile.TemporaryDirectory() as name:
        folder, bad = Path(name) / "pictures", set()
        folder.mkdir()
        for k in range(count):
            if _make(folder / f"{k:05}", k // 20 % len(FAULTS) if k % 20 == 7 else None, drawn):
                bad.add(f"{k:05}")
        try:
            data = prepare(Path(name) / "run", collect(folder), tiny().vae, PicturesRecipe(32, 16), 1, lambda _: None)
        except InputError as error:
            return Figure("0 crashes, exact count", str(error), False)
    listed = {line.split(".")[0].rpartition("/")[2][:5] for line in data.skipped}
    good = listed == bad and len(data.skipped) == len(bad) and len(data.z) == count - len(bad)
    reached = f"{len(data.z):,} used and {len(data.skipped):,} listed of {count:,}, of which {len(bad):,} were broken"
    return Figure("0 crashes, exact count", reached, good)


FAULTS = ("empty", "cut", "noise", "text", "bomb", "caption", "long caption", "CMYK")  # the last can be used


def _make(path: Path, fault: int | None, drawn: random.Random) -> bool:
    """A picture with a caption; True where it cannot be used."""
    colour = tuple(drawn.randrange(256) for _ in range(3))
    whole = io.BytesIO()
    kind = FAULTS[fault] if fault is not None else ""
    Image.new("CMYK" if kind == "CMYK" else "RGB", (40, 32), colour if kind != "CMYK" else (*colour, 0)).save(
        whole, "JPEG" if kind == "CMYK" else "PNG"
    )
    data = whole.getvalue()
    broken: dict[str, Any] = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "noise": drawn.randbytes(300),
        "text": b"a page, not a picture",
        "bomb": data[:16] + (50_000).to_bytes(4, "big") * 2 + data[24:],
    }
    path.with_suffix(".jpg" if kind == "CMYK" else ".png").write_bytes(broken.get(kind, data))
    captions = {"caption": b"\xff\xfe\x00", "long caption": b"x" * 200_000}
    path.with_suffix(".txt").write_bytes(captions.get(kind, b"a sheet"))
    return kind in broken or kind in captions


