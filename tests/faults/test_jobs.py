"""Kills, crowds, hostile prompt files and hostile names, fewer than `python -m scripts.faults C4 C7 D2 D8` makes."""

from __future__ import annotations

import random

import pytest

from scripts.faults import hostile, jobs


def test_kills_lose_double_and_break_nothing() -> None:
    figure = jobs.c4_fake(4)
    assert figure.good, figure


def test_a_crowd_in_one_folder_overwrites_nothing() -> None:
    figure = jobs.c7(25)
    assert figure.good, figure


def test_fuzzed_prompt_files_have_an_answer() -> None:
    chance = random.Random(20)
    found = [problem for _ in range(5000) for problem in jobs._uncaught(jobs.fuzzed(chance))]
    assert found == []


@pytest.mark.parametrize("name", jobs.PATHOLOGICAL)
def test_pathological_prompt_files_take_linear_time(name: str) -> None:
    """The bounds are the row's with room for a busy machine; what is quadratic has exponent 2."""
    milliseconds, exponent = jobs.growth(*jobs.PATHOLOGICAL[name], 20_000, 160_000)
    assert milliseconds <= 100
    assert exponent <= 1.5


def test_hostile_names_stay_inside() -> None:
    figure = jobs.d8(60)
    assert figure.good, figure
    assert len(hostile.payloads()) >= 200


def test_the_figures_can_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_uncaught", lambda content: ["x"])
    monkeypatch.setattr(jobs, "PATHOLOGICAL", {"a": ("text", lambda n: "a")})
    assert not jobs.d2(1).good
    monkeypatch.setattr(hostile, "escaped", lambda path, folder: True)
    assert not jobs.d8(2).good
