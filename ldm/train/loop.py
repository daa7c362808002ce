"""The training loop, the same for every stage: it knows a task's loss and nothing of what is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from ldm.errors import NumericError
from ldm.runtime.retry import named
from ldm.train.optim import EMA, build_optimizer, learning_rate
from ldm.train.sealed import UNWRITTEN, WHOLE
from ldm.train.state import OTHER, load_state, optimizer_tensors, part, restore_optimizer, save_state
from ldm.train.watching import Attempts, append

if TYPE_CHECKING:
    from ldm.train.recipe import Optim, Precision


LOSS, PICTURES = "loss", "pictures"  # figures of a step
SMALLER = "take a smaller optim.batch with a larger optim.accumulate or, for a UNet or a LoRA, checkpointing = true"
TICK = 1e-9  # seconds: on a coarse clock a step takes none
SELDOM = 20  # times as long as a state takes to write, which is 41 GB for SDXL's UNet, passes before the next


class Task(Protocol):
    """What is trained: `module`, whose whole state is saved, and its loss at a step, which draws its data and noise from the step alone.

    The loss is a mean over the step's pictures; of the figures beside it `pictures` says how many, where it is not the batch.
    """

    @property
    def module(self) -> nn.Module: ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]: ...


@dataclass
class Limits:
    """When a run ends, and what it says meanwhile."""

    minutes: float = math.inf  # since `begun`; 0: the data are prepared, nothing is trained
    stop: Callable[[], bool] = lambda: False
    save_seconds: float = 120.0  # from one state to the next; 0: after every step
    log_every: int = 20  # steps from one line of figures to the next
    log_seconds: float = 30.0  # after which a slow step has a line too
    bar: bool = False  # `seen` shows the figures: there are no lines of them
    shard: int = WHOLE  # bytes of a file of a state
    seen: Callable[[Trainer, dict[str, float]], object] = lambda *_: None  # called after every step with its figures
    say: Callable[[str], None] = lambda _: None
    begun: float = field(default_factory=lambda: time.monotonic())

    def over(self) -> bool:
        return time.monotonic() - self.begun >= self.minutes * 60 or self.stop()


class Trainer:
    """One stage's module, optimiser and moving average, on disk under `folder`."""

    def __init__(
        self,
        task: Task,
        numbers: Optim,
        folder: Path,
        say: Callable[[str], None] = lambda _: None,
        *,
        origin: str = "",
        why: str = OTHER,
        shard: int = WHOLE,
        precision: Precision = "float32",
    ) -> None:
        self.task, self.numbers, self.folder, self.say = task, numbers, folder, say
        self.origin, self.why, self.shard = origin, why, shard
        device = next(task.module.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "float16")  # a half's gradients would vanish
        self.optimizer = build_optimizer(task.module, numbers)
        self.ema = EMA(task.module, numbers.ema)
        self.attempts = Attempts(say)
        self.step = 0
        self.saved: int | None = None  # the step of the newest whole state
        self.whole = True  # weights, average and optimiser are of one step

    def resume(self) -> bool:
        """Continue from the newest whole state; False when there is none."""
        found = load_state(self.folder, self.say, self.origin, self.why)
        if found is None:
            self.say(f"no state in {self.folder}: from step 0")
            return False
        self.step, tensors = found
        self.task.module.load_state_dict(part(tensors, "model."))
        self.ema.load(part(tensors, "ema."))
        restore_optimizer(self.optimizer, part(tensors, "optim."))
        whole = ("growth_interval", "_growth_tracker")
        scaler = {name: int(value) if name in whole else float(value) for name, value in part(tensors, "scaler.").items()}
        if scaler:
            self.scaler.load_state_dict(scaler)
        self.saved = self.step
        return True

    def save(self) -> list[Path]:
        """Write the state. Raises LdmError, which says what state is left, where the disk or the memory fails."""
        parts = {"model": self.task.module.state_dict(), "ema": self.ema.mean, "optim": optimizer_tensors(self.optimizer)}
        parts["scaler"] = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.scaler.state_dict().items()}
        tensors = {f"{name}.{key}": value for name, values in parts.items() for key, value in values.items()}
        with named(f"saving step {self.step}", SMALLER):
            files = save_state(self.folder, self.step, tensors, self.shard, self.origin)
        self.saved = self.step
        return files

    def advance(self) -> dict[str, float]:
        """One step: loss, gradients, clipped; AdamW; moving average. Raises NumericError before a bad step is applied.

        In float16 a step whose gradients overflow is left out, at the next one they are scaled by half as much; that they overflow unscaled
        is an error too. Raises MemoryNeedError where memory runs out; where that was amid the change of the weights, `whole` is false.
        """
        with named(f"step {self.step}", SMALLER):
            try:
                return self._advance()
            finally:
                self.optimizer.zero_grad(set_to_none=True)  # also what is half summed

    def _advance(self) -> dict[str, float]:
        rate = learning_rate(self.step, self.numbers)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value, figures = self._gradients()
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.task.module.parameters(), self.numbers.clip))
        scaled = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not math.isfinite(value) or not (math.isfinite(norm) or scaled):
            earlier = f"if that comes to the same, first remove the newest state from {self.folder}"
            half = ", or begin anew with precision bfloat16 or float32" if self.scaler.is_enabled() else ""
            said = f"step {self.step}: loss {value}, gradient norm {norm}"
            raise NumericError(f"{said}: lower the learning rate and resume{half}; {earlier}")
        self.whole = False
        self.scaler.step(self.optimizer)
        increment_version(list(self.task.module.parameters()))  # a fused step does not, and what is kept of weights goes by it
        self.scaler.update()
        self.step += 1
        self.ema.update(self.task.module, self.step)
        self.whole = True
        return {LOSS: value, "lr": rate, "norm": norm, **figures}

    def _gradients(self) -> tuple[float, dict[str, float]]:
        """The gradients of one step's batches, summed where they lie; the means of loss and figures over their pictures.

        Every picture weighs as much as any other, also one of a bucket's last batch, which is smaller.
        """
        count, seen = self.numbers.accumulate, list[dict[str, float]]()
        for k in range(count):
            loss, figures = self.task.loss(self.step * count + k)
            seen.append({PICTURES: self.numbers.batch, LOSS: float(loss.detach()), **figures})
            self.scaler.scale(loss * (seen[-1][PICTURES] / self.numbers.pictures)).backward()
        figures = means(seen) | {PICTURES: sum(each[PICTURES] for each in seen)}
        return figures.pop(LOSS), figures


def means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure over all pictures; of the pictures themselves over the records."""
    whole = sum(record[PICTURES] for record in records)
    told = {key: sum(record[key] * record[PICTURES] for record in records) / whole for key in records[0]}
    return told | {PICTURES: whole / len(records)}


def train(trainer: Trainer, limits: Limits) -> int:
    """Advance to the recipe's last step, or until the clock or `stop` ends it; the state is saved on the way and at the end.

    Where a step, or what watches it, fails, the state of the last whole step, if one was made, is saved and the error raised.
    """
    first, saved = trainer.step, (told := time.monotonic())
    pause, records, pace = limits.save_seconds, list[dict[str, float]](), Pace()
    say = (lambda _: None) if limits.bar else limits.say
    try:
        while trainer.step < trainer.numbers.steps and not limits.over():
            records.append(trainer.advance())
            pace.add(records[-1][PICTURES])
            limits.seen(trainer, records[-1])
            if trainer.step % limits.log_every == 0 or time.monotonic() - told > limits.log_seconds:
                _log(trainer, records, pace, say)
                told = time.monotonic()
            if (now := time.monotonic()) - saved > pause:
                trainer.save()
                saved = time.monotonic()
                pause = limits.save_seconds and max(limits.save_seconds, SELDOM * (saved - now))
    except Exception as error:
        if trainer.whole and trainer.step > first and getattr(error, "code", "") != UNWRITTEN:  # nothing of the bad step was applied
            _rescue(trainer, records, pace, say, limits.say)
        raise
    _end(trainer, records, pace, say)
    return trainer.step


def _rescue(trainer: Trainer, records: list[dict[str, float]], pace: Pace, log: Callable[[str], None], say: Callable[[str], None]) -> None:
    """As `_end` on the way of an error, which another one does not hide."""
    try:
        _end(trainer, records, pace, log)
    except Exception as error:
        say(f"the state of step {trainer.step} is not saved: {error}")
    else:
        say(f"the state of step {trainer.step} is in {trainer.folder}")


def _end(trainer: Trainer, records: list[dict[str, float]], pace: Pace, say: Callable[[str], None]) -> None:
    if trainer.saved != trainer.step:
        trainer.save()
    if records:
        _log(trainer, records, pace, say)


class Pace:
    """Of the steps that were added."""

    def __init__(self) -> None:
        self.begun, self.steps, self.seen = time.monotonic(), 0, 0.0

    def add(self, pictures: float) -> None:
        self.steps, self.seen = self.steps + 1, self.seen + pictures

    def pictures(self) -> float:
        """A second."""
        return self.seen / max(time.monotonic() - self.begun, TICK)

    def minutes(self, steps: int) -> float:
        """For so many steps more."""
        return (time.monotonic() - self.begun) / self.steps * steps / 60


def _log(trainer: Trainer, records: list[dict[str, float]], pace: Pace, say: Callable[[str], None]) -> None:
    """The means of the last steps as a line of metrics.jsonl and as one for people; then none is left."""
    told = means(records)
    records.clear()
    finite = {key: value for key, value in told.items() if math.isfinite(value)}  # JSON has no word for the others
    line: dict[str, Any] = {"step": trainer.step, **finite, "pictures_per_second": pace.pictures()}
    with trainer.attempts(f"no line in metrics.jsonl at step {trainer.step}"):
        append(trainer.folder / "metrics.jsonl", line)
    figures = "  ".join(f"{key} {value:.4g}" for key, value in told.items() if key != PICTURES)
    left = pace.minutes(trainer.numbers.steps - trainer.step)
    say(f"step {trainer.step}/{trainer.numbers.steps}  {figures}  {pace.pictures():.1f} pictures/s  {left:.1f} min left")
