"""Rows B2, B3, B7, B8, B9 and B13 at reduced counts, and that each experiment can miss its goal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.guard import Guard
from ldm.diffusion.prediction import Prediction
from ldm.errors import InputError, LdmError, NumericError
from ldm.models.unet import UNet
from scripts.faults import Figure, numbers, same, tiny


@pytest.mark.parametrize(("row", "count"), [("b2", 40), ("b3", 400), ("b7", 40), ("b8", 20), ("b9", 4), ("b13", 90)])
def test_row(row: str, count: int) -> None:
    figure: Figure = getattr(numbers, row)(count)
    assert figure.good, figure


def test_the_full_counts_are_those_of_the_goals() -> None:
    assert len(numbers.grid()) >= 2000
    assert len({what for what, _, _ in numbers.grid()}) >= 2000
    assert {name for name, _, _ in numbers.injections()} == set(tiny.NAMES)
    assert len(numbers.injections()) >= 1000


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_a_part_is_spread_over_the_whole(count: int) -> None:
    part = tiny.some(range(20), count)
    assert len(part) == min(count, 20) and sorted(set(part)) == part
    assert tiny.some(range(20), None) == list(range(20))


def blind(self: Guard, step: object) -> None:
    """A guard that sees nothing."""


def test_b2_misses_without_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "see", blind)
    monkeypatch.setattr(Guard, "_look", lambda self, x, words: None)
    assert not numbers.b2(4).good


def test_b3_tells_what_is_not_finite_or_not_refused_in_words() -> None:
    def failing() -> torch.Tensor:
        raise ZeroDivisionError("division by zero")

    def wordless() -> torch.Tensor:
        raise LdmError("no")

    assert tiny.outcome(lambda: torch.tensor([1.0, float("nan")])) == "not finite, or far away"
    assert tiny.outcome(lambda: torch.tensor([1e4]), within=10) == "not finite, or far away"
    assert tiny.outcome(failing).startswith("ZeroDivisionError") and "without words" in tiny.outcome(wordless)
    assert not tiny.tally(tiny.Counter(["finite", "ZeroDivisionError: x"]))[1]


def test_b7_misses_where_epsilon_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MODELS", [("v", True)])
    monkeypatch.setattr("ldm.diffusion.table.LAST_ALPHA", 0.0)  # as the paper has it: no sigma is finite
    assert not numbers.b7(6).good


@pytest.mark.parametrize("number", [1, 2])
def test_text_that_is_not_finite_is_found_before_the_first_step(number: int) -> None:
    pipeline = tiny.tiny()
    pipeline.towers = copy.deepcopy(pipeline.towers)
    pipeline.towers[number - 1].text_model.embeddings.position_embedding.weight[40, 3] = torch.nan
    with pytest.raises(NumericError, match=rf"^text encoding: non-finite in tower {number} of 2 for the (negative )?prompt: try"):
        pipeline.generate("a cat", "a dog", **tiny.SMALL)


def test_b8_and_b9_miss_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "elsewhere", lambda count, threads: [str(len(threads))] * count)
    assert not same.b8(8).good
    monkeypatch.setattr(same, "batch_alike", lambda size, name, profile: [True, False])
    assert not same.b9(1).good


@pytest.mark.parametrize("size", [2, 4, 8])
def test_b9_misses_batches_that_are_evaluated_in_one_pass(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Prediction.__init__

    def at_once(self: Prediction, unet: UNet, context: Tensor, vector: Tensor, *, count: int, **more: Any) -> None:
        prepare(self, unet, context, vector, count=count, **more)
        self.text = unet.prepare(context.to(self.dtype), self.vector, []).repeat(count)
        self.passes, self.repeats = 1, count

    assert all(same.batch_alike(size, "euler", "comfyui"))
    monkeypatch.setattr(Prediction, "__init__", at_once)
    assert not all(same.batch_alike(size, "euler", "comfyui"))


def test_b13_wants_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: object, **job: object) -> None:
        raise InputError("cfg: wrong")

    monkeypatch.setattr(tiny.Pipeline, "generate", generate)
    assert not numbers.b13(3).good
