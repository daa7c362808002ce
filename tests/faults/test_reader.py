"""Rows A1 to A6 at reduced counts, and that the experiments find what they look for."""

from __future__ import annotations

import ctypes
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint.safetensors import Header, Read, Stamp, parse
from ldm.errors import FileError
from scripts.faults import mutants, reader


@pytest.mark.parametrize(
    ("row", "count"), [("a1", 30_000), ("a2", 60), ("a3", None), ("a4", 6), ("a5", None), ("a6", None)], ids=lambda value: str(value)
)
def test_row(row: str, count: int | None) -> None:
    figure = getattr(reader, row)(count)
    assert figure.good, str(figure)


def test_time_is_that_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does other work misses no goal; a reader that does too much does."""
    passing = itertools.count(step=10**6)
    monkeypatch.setattr(time, "perf_counter", lambda: next(passing))
    assert reader.a1(1000).good
    monkeypatch.setattr(reader, "_spent", lambda: next(passing))
    assert not reader.a1(1000).good
    assert reader._soon(0.5, 0.1, 10) and not reader._soon(0.5, 0.1, None)


def reads_beyond(path: Path, read: Read, size: int, stamp: Stamp) -> Header:
    """A reader that reads one byte too many of a few files."""
    if size % 293 == 0:
        read(size + 1, 0)
    return parse(path, read, size, stamp)


def raises(path: Path, read: Read, size: int, stamp: Stamp) -> Header:
    if size % 29 == 0:
        raise KeyError(size)
    return parse(path, read, size, stamp)


def takes_all(path: Path, read: Read, size: int, stamp: Stamp) -> Header:
    return Header(path, size, 0, {}, {}, stamp)


def takes_nothing(path: Path, read: Read, size: int, stamp: Stamp) -> Header:
    raise FileError(f"{path}: no")


def shifts(path: Path, read: Read, size: int, stamp: Stamp) -> Header:
    """A reader that takes the bytes one place too early."""
    header = parse(path, read, size, stamp)
    tensors = {name: entry._replace(start=entry.start - 1, end=entry.end - 1) for name, entry in header.tensors.items()}
    return Header(path, size, header.data_start, tensors, header.metadata, stamp)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (reads_beyond, {"crashes"}),
        (raises, {"crashes"}),
        (takes_all, {"accepted by us alone", "read differently"}),
        (takes_nothing, {"not reviewed"}),
        (shifts, {"read differently"}),
    ],
)
def test_the_mutants_find_a_broken_reader(broken: Any, found: set[str]) -> None:
    outcome = mutants.examine_all(2000, reader=broken)
    counts = mutants.by_class(outcome)
    assert {name for name in mutants.BAD if counts[name]} == found
    assert outcome.total() == 2000  # those that killed a worker too
    if broken is reads_beyond:
        assert any(name.startswith("crashes: exit code -11 at mutant ") for name in outcome)


def test_mutants_are_the_same_again() -> None:
    seeds = mutants.corpus()
    one, again, other = (list(mutants.block(number, 7, seeds)) for number in (3, 3, 4))
    assert one == again and one != other
    assert len(set(one)) > 900 and max(map(len, one)) <= mutants.ROOM


def test_content_ends_at_the_guard() -> None:
    place = mutants.Guarded()
    address = place.put(b"content")
    assert ctypes.string_at(address, 7) == b"content" and address + 7 == place.end


def test_every_reason_is_met() -> None:
    """A reason that no mutant needs any more would hide what it once allowed."""
    outcome = mutants.examine_all(30_000, seed=1)
    met = {name.partition(": ")[2] for name in outcome if name.startswith("refused by us alone")}
    assert len(set(mutants.REVIEWED) - met) <= 2, set(mutants.REVIEWED) - met  # the rarest are a few in a hundred thousand
