"""The loop: resuming is bit-identical, the moving average obeys its law, a bad step is never applied."""

from __future__ import annotations

import errno
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import InputError, LdmError, MemoryNeedError, NumericError
from ldm.models.shapes import Family
from ldm.train import sealed
from ldm.train.data import Composer
from ldm.train.loop import Limits, Pace, Trainer, train
from ldm.train.optim import EMA, build_optimizer, learning_rate
from ldm.train.recipe import Optim, Recipe
from ldm.train.stages import run_stage, stage_trainer
from ldm.train.state import load_state, save_state


class Line:
    """A task of two parameters: fit 2 x + 1."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Linear(1, 1)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(4, 1, generator=torch.Generator().manual_seed(step))
        return (self.module(x) - (2 * x + 1)).square().mean(), {}


def stop_after(steps: int) -> Limits:
    calls: list[int] = []
    return Limits(stop=lambda: len(calls) >= steps or bool(calls.append(1)))  # type: ignore[func-returns-value]


def newest(folder: Path) -> dict[str, Tensor]:
    found = load_state(folder, pytest.fail)
    assert found is not None
    return found[1]


def test_every_stage_resumes_bit_for_bit(trained: Path, family: Family, recipe: Recipe, composer: Composer, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for stage in ("vae", "towers", "unet"):
        assert run_stage(stage, recipe, composer, broken, resume=True, limits=stop_after(3)) == 3
        assert run_stage(stage, recipe, composer, broken, resume=True, limits=Limits()) == 6
        whole, resumed = newest(trained / stage), newest(broken / stage)
        assert whole.keys() == resumed.keys()
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_a_run_is_not_overwritten_without_being_asked(trained: Path, recipe: Recipe, composer: Composer) -> None:
    with pytest.raises(InputError, match="--resume"):
        run_stage("vae", recipe, composer, trained, resume=False, limits=Limits())


def test_the_clock_ends_a_run_in_good_order(recipe: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(Line(), recipe.vae.optim, tmp_path)
    assert train(trainer, Limits(minutes=0.0)) == 0
    assert newest(tmp_path)["model.weight"].equal(trainer.task.module.state_dict()["weight"])


def test_metrics_are_one_json_object_a_line(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "unet" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert {"loss", "lr", "norm", "mse", "pictures_per_second"} <= lines[-1].keys()


def test_a_bad_loss_stops_before_the_weights_change(recipe: Recipe, tmp_path: Path) -> None:
    class Bad(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            value, figures = super().loss(step)
            return value * (math.nan if step == 2 else 1.0), figures

    trainer = Trainer(Bad(), recipe.vae.optim, tmp_path)
    trainer.advance()
    trainer.advance()
    before = {name: value.clone() for name, value in trainer.task.module.state_dict().items()}
    with pytest.raises(NumericError, match="step 2"):
        trainer.advance()
    assert all(torch.equal(before[name], value) for name, value in trainer.task.module.state_dict().items())


def test_the_moving_average_obeys_its_law() -> None:
    module, wanted = nn.Linear(1, 1, bias=False), 0.0
    nn.init.zeros_(module.weight)
    ema = EMA(module, 0.6)
    for step in range(1, 20):
        nn.init.constant_(module.weight, float(step))
        ema.update(module, step)
        decay = min(0.6, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * step
    assert float(ema.mean["weight"]) == pytest.approx(wanted, rel=1e-5)


def test_the_learning_rate_grows_then_falls_to_its_final_share(recipe: Recipe) -> None:
    numbers = recipe.unet.optim  # warmup 2 of 6 steps
    rates = [learning_rate(step, numbers) / numbers.lr for step in range(8)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert rates[6:] == pytest.approx([numbers.final] * 2)


def test_embeddings_norms_and_biases_do_not_decay(recipe: Recipe) -> None:
    module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, others = build_optimizer(module, recipe.unet.optim).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (recipe.unet.optim.weight_decay, 0.0)


def test_what_is_left_when_a_run_ends_is_logged_too(recipe: Recipe, tmp_path: Path) -> None:
    trainer = Trainer(Line(), recipe.vae.optim, tmp_path)
    train(trainer, replace(stop_after(3), log_every=2))
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2, 3]


class Steep(Line):
    """Whose gradients overflow in float16 but for the smallest scale, or at every one."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        value, figures = super().loss(step)
        value.register_hook(lambda gradient: gradient if gradient.abs().max() <= self.largest else gradient * math.inf)
        return value, figures


def halves(task: Line, numbers: Optim, folder: Path) -> Trainer:
    return Trainer(task, numbers, folder, precision="float16")


def test_in_float16_steps_that_overflow_are_left_out_and_the_run_goes_on_to_the_bit(recipe: Recipe, tmp_path: Path) -> None:
    numbers = replace(recipe.vae.optim, steps=12)
    whole = halves(Steep(2.0**12), numbers, tmp_path / "whole")
    before = {name: value.clone() for name, value in whole.task.module.state_dict().items()}
    for _ in range(4):  # 2^16 to 2^13
        assert not math.isfinite(whole.advance()["norm"])
    assert all(torch.equal(before[name], value) for name, value in whole.task.module.state_dict().items())
    whole.save()
    assert train(whole, Limits(log_every=3)) == 12
    assert any(not torch.equal(before[name], value) for name, value in whole.task.module.state_dict().items())
    part = halves(Steep(2.0**12), numbers, tmp_path / "part")
    for _ in range(7):
        part.advance()
    part.save()
    rest = halves(Steep(2.0**12), numbers, tmp_path / "part")
    assert rest.resume() and train(rest, Limits()) == 12
    states = [newest(tmp_path / name) for name in ("whole", "part")]
    assert states[0].keys() == states[1].keys() and "scaler.scale" in states[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_is_not_finite_stays_out_of_the_log(recipe: Recipe, tmp_path: Path) -> None:
    """JSON has no word for it."""
    train(halves(Steep(2.0**14), replace(recipe.vae.optim, steps=4), tmp_path), Limits(log_every=1))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]
    assert ["norm" in line for line in found] == [False, False, True, True]


def test_in_float16_gradients_that_are_never_finite_end_the_run(recipe: Recipe, tmp_path: Path) -> None:
    trainer = halves(Steep(0.0), replace(recipe.vae.optim, steps=100), tmp_path)
    with pytest.raises(NumericError, match=r"step 16: .*and resume, or begin anew with precision bfloat16 or float32; if"):
        train(trainer, Limits())


def test_a_step_without_its_pictures_leaves_the_state_before_it(recipe: Recipe, tmp_path: Path) -> None:
    class Gone(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            if step == 2:
                raise InputError("batch 2: no picture of it can be opened any more: put the pictures back and resume")
            return super().loss(step)

    trainer = Trainer(Gone(), recipe.vae.optim, tmp_path)
    with pytest.raises(InputError, match="put the pictures back"):
        train(trainer, Limits())
    found = load_state(tmp_path, pytest.fail)
    assert found is not None and found[0] == 2


def test_a_run_that_diverged_goes_on_from_an_earlier_state(recipe: Recipe, tmp_path: Path) -> None:
    """The state before the bad step has gone too far already: slower or not, its loss is what it is."""

    class Far(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            value, figures = super().loss(step)
            weight = self.module.get_parameter("weight")
            return value * (math.inf if abs(weight.item()) > 50 else 1.0), figures

    def begun(rate: float) -> Trainer:
        trainer = Trainer(Far(), replace(recipe.vae.optim, steps=6, warmup=0, lr=rate, weight_decay=0.0), tmp_path)
        trainer.resume()
        return trainer

    with pytest.raises(NumericError, match=r"step 1: .*lower the learning rate and resume; if that comes to the same, first remove"):
        train(begun(100.0), Limits(save_seconds=0))
    assert [path.stem for path in sorted(tmp_path.glob("state-*.json"))] == ["state-00000001"]
    with pytest.raises(NumericError, match="step 1"):
        train(begun(1e-3), Limits())
    (tmp_path / "state-00000001.json").unlink()
    assert train(begun(1e-3), Limits()) == 6


@pytest.mark.parametrize(("seconds", "took", "wanted"), [(0.0, 2.0, [*range(1, 10)]), (30.0, 0.01, [3, 6, 9]), (30.0, 2.0, [3, 7, 9])])
def test_states_that_take_long_to_write_are_written_seldom(
    seconds: float, took: float, wanted: list[int], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock by which a step takes 12 seconds."""
    clock, saved = [0.0], list[int]()
    trainer = Trainer(Line(), replace(recipe.vae.optim, steps=9), tmp_path)

    def save() -> list[Path]:
        trainer.saved = trainer.step
        saved.append(trainer.step)
        clock[0] += took
        return []

    def step(*_: object) -> None:
        clock[0] += 12.0

    monkeypatch.setattr("ldm.train.loop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(trainer, "save", save)
    train(trainer, Limits(save_seconds=seconds, seen=step))
    assert saved == wanted


class Full(Line):
    """Whose memory runs out at one batch."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB, of which 1.00 GiB is free")
        return super().loss(step)


def test_where_memory_runs_out_the_last_whole_step_is_saved(recipe: Recipe, tmp_path: Path) -> None:
    numbers, said = replace(recipe.vae.optim, accumulate=2, steps=6), list[str]()
    whole = Trainer(Line(), numbers, tmp_path / "whole")
    train(whole, Limits())
    trainer = Trainer(Full(5), numbers, tmp_path / "run")
    with pytest.raises(
        MemoryNeedError, match=r"step 2: out of memory \(2.00 GiB more asked for, 1.00 GiB free\): take a smaller opt"
    ) as caught:
        train(trainer, Limits(say=said.append))  # amid the batches of step 2
    assert caught.value.code == "E4002" and said[-1] == f"the state of step 2 is in {tmp_path / 'run'}"
    assert all(parameter.grad is None for parameter in trainer.task.module.parameters())
    rest = Trainer(Line(), numbers, tmp_path / "run")
    assert rest.resume() and rest.step == 2 and train(rest, Limits()) == 6
    states = [newest(tmp_path / name) for name in ("whole", "run")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("amid", ["the first step", "the change of the weights"])
def test_what_is_of_no_whole_step_is_not_saved(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amid: str) -> None:
    trainer = Trainer(Full(0) if amid == "the first step" else Line(), recipe.vae.optim, tmp_path)
    change = trainer.scaler.step

    def half(*given: torch.optim.Optimizer) -> object:
        change(*given)
        if trainer.step == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return None

    monkeypatch.setattr(trainer.scaler, "step", half)
    with pytest.raises(MemoryNeedError, match=r"step [03]: out of memory"):
        train(trainer, Limits())
    assert list(tmp_path.iterdir()) == []


def test_a_watcher_that_fails_costs_no_step(recipe: Recipe, tmp_path: Path) -> None:
    def broken(trainer: Trainer, _figures: object) -> None:
        if trainer.step == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(Trainer(Line(), recipe.vae.optim, tmp_path), Limits(seen=broken))
    assert [path.stem for path in tmp_path.glob("state-*.json")] == ["state-00000003"]


@pytest.mark.parametrize(
    ("good", "remedy"), [(2, "then continue with --resume from state-00000002"), (0, "then begin again: no state was")]
)
def test_a_state_that_cannot_be_written_is_named_with_the_one_before_it(
    good: int, remedy: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, asked = sealed.write_atomic, list[Path]()

    def full(path: Path, *given: Any, **more: Any) -> Path:
        asked.append(path)
        if len(asked) > 2 * good:
            raise OSError(errno.EFBIG, "File too large")
        return write(path, *given, **more)

    monkeypatch.setattr(sealed, "write_atomic", full)
    path = tmp_path / f"state-{good + 1:08}.safetensors"
    with pytest.raises(LdmError, match=f"cannot write {path}: File too large: make room, {remedy}") as caught:
        train(Trainer(Line(), recipe.vae.optim, tmp_path), Limits(save_seconds=0))
    assert caught.value.code == "E5001" and asked.count(path) == 1
    assert Trainer(Line(), recipe.vae.optim, tmp_path).resume() == bool(good)


def test_a_state_that_is_there_is_not_written_again(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a run at its end, which may be asked for its file alone, is in order."""
    train(Trainer(Line(), recipe.vae.optim, tmp_path), Limits())

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sealed, "write_atomic", full)
    trainer = Trainer(Line(), recipe.vae.optim, tmp_path)
    assert trainer.resume() and train(trainer, Limits()) == 6
    trainer.numbers = replace(trainer.numbers, steps=7)
    with pytest.raises(LdmError, match="with --resume from state-00000006"):
        train(trainer, Limits())


def test_an_error_is_not_hidden_by_another_one_from_saving(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Line):
        def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
            if step == 2:
                raise RuntimeError("CUDA error: the first")
            return super().loss(step)

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: the second")

    monkeypatch.setattr("ldm.train.loop.save_state", broken)
    said: list[str] = []
    with pytest.raises(RuntimeError, match="the first"):
        train(Trainer(Broken(), recipe.vae.optim, tmp_path), Limits(say=said.append))
    assert said == ["the state of step 2 is not saved: CUDA error: the second"]


def test_a_state_of_a_stage_on_another_one_is_told_as_that(trained: Path, recipe: Recipe, composer: Composer) -> None:
    """Also where it is met only because the newest one is damaged."""
    (trained / "towers" / "state-00000006.safetensors").write_bytes(b"cut")
    save_state(trained / "towers", 5, {"model.w": torch.zeros(1)}, origin="another")
    with pytest.raises(InputError, match=r"state-00000005\.json: built on another VAE"):
        stage_trainer("towers", recipe, composer, trained, resume=True, limits=Limits())


def test_the_pace_can_be_told_on_a_clock_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.train.loop.time.monotonic", lambda: 1.0)
    pace = Pace()
    pace.add(4)
    assert math.isfinite(pace.pictures()) and pace.minutes(10) == 0


def test_without_a_state_a_run_that_goes_on_says_that_it_begins(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    assert not Trainer(Line(), recipe.vae.optim, tmp_path, said.append).resume()
    assert said == [f"no state in {tmp_path}: from step 0"]


def test_the_minutes_are_those_of_the_command(recipe: Recipe, tmp_path: Path) -> None:
    """What came before the first step counts."""
    for passed, wanted in ((601, 0), (0, 6)):
        limits = Limits(minutes=10, begun=time.monotonic() - passed)
        assert train(Trainer(Line(), recipe.vae.optim, tmp_path / str(passed)), limits) == wanted


def test_a_step_counts_as_a_change_of_the_weights(recipe: Recipe, tmp_path: Path) -> None:
    """As what is kept of weights sees it."""
    trainer = Trainer(Line(), recipe.vae.optim, tmp_path)
    before = [parameter._version for parameter in trainer.task.module.parameters()]
    trainer.advance()
    after = [parameter._version for parameter in trainer.task.module.parameters()]
    assert all(one < other for one, other in zip(before, after, strict=True))
