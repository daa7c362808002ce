"""Rows A10 and A12 with smaller counts, and that their experiments can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults import kinds


def test_a10() -> None:
    """A third of the fixtures, in a process of its own."""
    figure = kinds.a10(30)
    assert figure.good, figure
    assert "30 of 30" in figure.reached


def test_there_are_enough_fixtures_and_each_is_its_own() -> None:
    fixtures = list(kinds._fixtures())
    assert len(fixtures) >= 80 and len({each.name for each in fixtures}) == len(fixtures)
    assert {each.code for each in fixtures} == {"E3006", "E3007"}


def test_a10_sees_a_file_that_is_loaded_and_memory_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box's own tensors are no fixture: they load; and the bound on memory is felt."""
    box = {"name": "box", "code": "E3006", "said": "x"}
    assert not kinds._fits(kinds.Fixture(box["name"], {}, box["code"], box["said"]), {"code": "", "said": "it was loaded", "grew": 0})
    fixture = next(kinds._fixtures())
    monkeypatch.setattr(kinds, "_fixtures", lambda: iter([fixture]))
    monkeypatch.setattr(kinds, "GROWTH", -1)
    assert not kinds.a10().good


def test_a12() -> None:
    figure = kinds.a12(40)
    assert figure.good, figure
    assert figure.reached.startswith("40 loads: 0 imports or other code, 0 files")


def test_a12_sees_an_import_and_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that follows a key of the metadata and looks beside the file would be caught."""
    follow = """
import importlib
from pathlib import Path
load = ldm.load
def follower(name, **rest):
    for value in read_header(name).metadata.values():
        if value.startswith("ldm_evil"):
            importlib.import_module("ldm_evil")
    beside = Path(name).with_name("config.json")
    if beside.exists():
        beside.read_text()
    return load(name, **rest)
ldm.load = follower
"""
    mark = "events = []\n"
    assert mark in kinds.WATCHING
    monkeypatch.setattr(kinds, "WATCHING", kinds.WATCHING.replace(mark, follow + mark, 1))
    figure = kinds.a12(6)
    assert not figure.good and ": 0 imports" not in figure.reached and "ldm_evil" in figure.reached and " 0 files" not in figure.reached


def test_sparse_files_take_no_room(tmp_path: Path) -> None:
    file = kinds.sparse("sd_xl_base_1.0.safetensors", tmp_path / "a.safetensors")
    assert file.stat().st_size > 6_900_000_000 and file.stat().st_blocks * 512 < 2**21
