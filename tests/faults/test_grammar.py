"""Fewer prompts than `python -m scripts.faults D2` reads, and that the figure can be missed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ldm.diffusion.profiles import load_profile
from scripts.faults import Figure, grammar, jobs

PROFILES = [load_profile(name) for name in grammar.NAMES]


def test_fuzzed_prompts_have_an_answer() -> None:
    chance = random.Random(20)
    assert [problem for k in range(6000) for problem in grammar.uncaught(grammar.fuzzed(chance), PROFILES[k % 3])] == []


@pytest.mark.parametrize("name", grammar.PATHOLOGICAL)
def test_pathological_prompts_take_linear_time(name: str) -> None:
    """The bounds are the row's with room for a busy machine; what is quadratic has exponent 2."""
    for rules in PROFILES[:2]:
        milliseconds, exponent = grammar.growth(grammar.PATHOLOGICAL[name], rules, 2_500, 20_000)
        assert milliseconds <= 100
        assert exponent <= 1.5


@pytest.mark.parametrize("name", grammar.HOSTILE)
def test_hostile_prompts_are_answered(name: str) -> None:
    assert max(grammar.answer(grammar.HOSTILE[name], rules) for rules in PROFILES) < 10


def test_the_figure_can_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_given: Any) -> None:
        raise RecursionError

    monkeypatch.setattr(jobs, "d2", lambda count: Figure("", "", True))
    monkeypatch.setattr(grammar, "PATHOLOGICAL", {"a": lambda n: "a"})
    assert grammar.d2(3).good
    monkeypatch.setattr(grammar, "HOSTILE", {"a": "a"})
    monkeypatch.setattr(grammar, "pieces", wrong)
    assert not grammar.d2(3).good
