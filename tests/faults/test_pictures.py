"""Rows D5, D6, D7 and G6, each with a reduced count, and the proof that the experiments can see what they look for."""

from __future__ import annotations

import pytest

from scripts.faults import pictures as rows


@pytest.mark.parametrize(("row", "count"), [("d5", 2000), ("d6", 300), ("d7", 3000), ("g6", 24)])
def test_the_row_reaches_its_goal(row: str, count: int) -> None:
    figure = getattr(rows, row)(count)
    assert figure.good, str(figure)


def test_the_watch_sees_what_is_run() -> None:
    seen = rows._watch()
    eval("1 + 1")
    assert {"compile", "exec"} <= set(seen)
    seen.append("done")
    before = len(seen)
    eval("1 + 1")
    assert len(seen) == before


def test_a_reader_that_raises_misses_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(texts: object) -> object:
        raise KeyError("x")

    read = rows.foreign.read
    calls = iter(range(10**6))
    monkeypatch.setattr(rows.foreign, "read", lambda texts: read(texts) if next(calls) < 100 else broken(texts))
    assert not rows.d7(100).good
