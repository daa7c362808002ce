"""Conditioning over a run: which rows each call gets, and that the network is told them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.errors import InputError
from ldm.runtime import evaluation
from ldm.text.conditioning import Conditioning
from ldm.text.course import Course, Strand, scenes, sides


def cond(value: float, chunks: int = 1) -> Conditioning:
    return Conditioning(torch.full((1, 77 * chunks, 4), value), torch.full((1, 2), value))


A, B, C, N = cond(1), cond(2), cond(3, 2), cond(0)


def values(rows: Conditioning) -> list[float]:
    return rows.vector[:, 0].tolist()


def test_one_conditioning_is_one_scene() -> None:
    made = scenes(Course.of(A), Course.of(N), 3, "uncond-first")
    assert (made.at, made.pictures, [values(rows) for rows in made.rows]) == ([0], 3, [[0, 1]])
    assert values(scenes(Course.of(A), Course.of(N), 1, "cond-first").rows[0]) == [1, 0]
    assert values(scenes(Course.of(A), None, 1, "cond-first").rows[0]) == [1]


def test_what_changes_and_what_stands_beside() -> None:
    course = Course((Strand((A, B), (0, 1, 0)), Strand((C,), (0, 0, 0), 0.5)))
    made = scenes(course, Course((Strand((N, B), (0, 0, 1)),)), 2, "uncond-first")
    assert made.at == [0, 1, 2]
    assert [values(rows) for rows in made.rows] == [[0, 1, 3], [0, 2, 3], [2, 1, 3]]
    assert made.rows[0].context.shape == (3, 154, 4)
    assert course.weights == (1.0, 0.5)
    assert scenes(course, None, 2, "uncond-first").at == [0, 1, 0]


def test_rows_that_do_not_fit() -> None:
    two = Conditioning(torch.zeros(2, 77, 4), torch.zeros(2, 2))
    assert scenes(Course.of(two), Course.of(N), 4, "uncond-first").pictures == 2
    with pytest.raises(InputError, match="3 pictures"):
        scenes(Course.of(two), Course.of(N), 3, "uncond-first")


def test_the_other_side_is_there_where_guidance_needs_it() -> None:
    assert sides(A, N, 1.0) == (Course.of(A), None)
    assert sides(A, N, 5.0)[1] == Course.of(N)
    assert sides(A, N, 1.0, both=True)[1] == Course.of(N)
    heavy = Course((Strand((A,), weight=0.5),))
    assert sides(heavy, N, 1.0) == (heavy, Course.of(N))
    for given, cfg in ((A, 5.0), (heavy, 1.0)):
        with pytest.raises(InputError, match="give uncond"):
            sides(given, None, cfg)


class Told:
    """A prediction that answers with its rows, and says which steps it was prepared for."""

    made: list[tuple[float, list[float]]]

    def __init__(self, rows: Conditioning, ts: list[float]) -> None:
        self.value = float(rows.vector[0, 0])
        Told.made.append((self.value, ts))

    def __call__(self, x: Any, t: float) -> float:
        return self.value

    def rows(self, picked: Any) -> Any:
        return lambda x, t: (self.value, picked)


def test_each_call_has_its_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    Told.made = []
    monkeypatch.setattr(evaluation, "prediction", lambda unet, rows, count, ts, kind: Told(rows, ts))
    made = scenes(Course((Strand((A, B, C), (0, 1, 0, 2)),)), None, 2, "uncond-first")
    network: Any = SimpleNamespace()
    directed = evaluation.Directed(network, made, [9.0, 8.0, 7.0, 6.0, 5.0])
    x = torch.zeros(1)
    assert [directed(x, 0.0) for _ in range(6)] == [1, 2, 1, 3, 3, 3]  # the last goes on
    assert Told.made == [(1, [9.0, 7.0]), (2, [8.0]), (3, [6.0, 5.0])]
    alone: Any = directed.rows([1])
    assert [alone(x, 0.0)[0] for _ in range(4)] == [1, 2, 1, 3]  # from its own beginning
    assert len(Told.made) == 3


def test_few_scenes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    Told.made = []
    monkeypatch.setattr(evaluation, "prediction", lambda unet, rows, count, ts, kind: Told(rows, ts))
    many = tuple(cond(k) for k in range(9))
    directed = evaluation.Directed(SimpleNamespace(), scenes(Course((Strand(many, (*range(9), 8, 0)),)), None, 1, ""), [])  # type: ignore[arg-type]
    for _ in range(11):
        directed(torch.zeros(1), 0.0)
    assert [value for value, _ in Told.made] == [*range(9), 0]
    assert len(directed._made) == evaluation.KEPT
