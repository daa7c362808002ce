"""Pictures that are encoded while the next ones are made: what is written, said and kept is what it was, in the order it had."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ldm import pictures
from ldm.commands import saving
from ldm.commands.stopping import Stop
from ldm.errors import InputError
from ldm.runtime import encoding
from scripts.faults import disk
from scripts.faults.disk import command

pytestmark = pytest.mark.usefixtures("folder")
ENCODE = pictures.encode


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(saving, "threads_for", lambda device: 2)


def encoded(monkeypatch: pytest.MonkeyPatch, way: Callable[[int], None]) -> None:
    """`way` is called, in whichever thread, with the seed of each picture that is to be encoded."""

    def encode(picture: Any, *words: Any) -> pictures.Encoded:
        way(picture.getpixel((0, 0))[0])
        return ENCODE(picture, *words)

    monkeypatch.setattr(pictures, "encode", encode)


def stepping(monkeypatch: pytest.MonkeyPatch, way: Callable[[int], None]) -> None:
    """`way` is called with the seed when a picture's first step is done; then come nine more."""
    run = disk.Stand.run

    def stepped(self: disk.Stand, job: Any, on_step: Callable[[Any], Any]) -> Any:
        for step in range(10):
            if step == 1:
                way(int(job.seed or 0))
            on_step(None)
        return run(self, job, on_step)

    monkeypatch.setattr(disk.Stand, "run", stepped)


def manifest(where: str) -> list[int]:
    found = next(path for path in Path(where).iterdir() if path.suffix == ".jsonl")
    return [json.loads(line)["seed"] for line in found.read_text().splitlines()]


@pytest.mark.parametrize("more", [[], ["--resume"], ["--format", "json"]])
def test_what_is_left_and_said_is_what_it_was(more: Sequence[str], threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture's encoding is the last to end."""
    others = threading.Semaphore(0)

    def slow(seed: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            if seed == 1:
                assert others.acquire(timeout=30)
            else:
                others.release()

    encoded(monkeypatch, slow)
    beside = command(["-s", "1-4", "-o", "beside", *more])
    monkeypatch.setattr(saving, "threads_for", lambda device: 0)
    plain = command(["-s", "1-4", "-o", "plain", *more])
    assert (beside.code, plain.code) == (0, 0)
    assert manifest("beside") == manifest("plain")
    assert sorted(path.name for path in Path("beside").iterdir()) == sorted(path.name for path in Path("plain").iterdir())
    for path in Path("plain").glob("*.png"):
        assert Path("beside", path.name).read_bytes() == path.read_bytes()
    if "json" not in more:
        assert [Path(each).name for each in beside.out] == [Path(each).name for each in plain.out]
        assert [line.split()[1] for line in beside.err.splitlines() if "saved" in line] == beside.out


def test_a_picture_is_written_at_a_step_of_the_next(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def look(seed: int) -> None:
        if seed == 3:
            seen.append(manifest("out"))

    stepping(monkeypatch, look)
    settle, waited = saving.Saver.settle, []

    def patient(self: saving.Saver, bar: Any) -> None:
        if self.beside._waiting and not waited:
            encoding.wait([self.beside._waiting[0][0]])
            waited.append(1)
        settle(self, bar)

    monkeypatch.setattr(saving.Saver, "settle", patient)
    assert command(["-s", "1-3", "-o", "out"]).code == 0
    assert seen[0][:1] == [1] and manifest("out") == [1, 2, 3]


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_signal_keeps_what_is_made(more: Sequence[str], threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the third is made and the first two are being encoded: they are written, and counted."""
    stop, claimed = threading.Event(), list[str]()
    encoded(monkeypatch, lambda seed: stop.wait(30) and None)

    def come(seed: int) -> None:
        if seed == 3:
            claimed.extend(os.listdir("out/.ldm-claims") if more else ())
            stop.set()
            raise Stop

    stepping(monkeypatch, come)
    said = command(["-s", "1-5", "-o", "out", *more])
    assert said.code == 130 and "2 of 5 pictures are saved" in said.err
    assert manifest("out") == [1, 2] and len(said.out) == 2
    assert not Path("out", ".ldm-claims").exists()
    assert len(claimed) == (3 if more else 0)  # nobody else takes what is not written yet


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_an_encoding_that_fails_ends_the_run_with_its_error_and_the_others_are_there(
    more: Sequence[str], threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(seed: int) -> None:
        if seed == 2:
            raise InputError("a text that cannot come back")

    encoded(monkeypatch, failing)
    said = command(["-s", "1-4", "-o", "out", *more])
    assert said.code == 2 and "E2000: a text that cannot come back" in said.err
    assert manifest("out") == [1, 3, 4] and len(said.out) == 3
    assert not Path("out", ".ldm-claims").exists()


def test_a_disk_that_refuses_one_is_said_and_the_exit_code_tells(threads: None) -> None:
    refuse = disk.Fault("file.write", 1, False, False, 28)
    said = command(["-s", "1-3", "-o", "out"], refuse.hook(Path("out").absolute()))
    assert said.code == 1 and said.err.count("E5001") == 1
    assert manifest("out") == [1, 3] and len(said.out) == 2


def test_the_bar_goes_away_for_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from ldm.commands.progress import Bar

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Bar("sampling", False, 3) as bar:
        bar.step(None)
        with bar.away():
            terminal.write("saved a.png\n")
    before, _, after = terminal.getvalue().partition("saved a.png\n")
    assert before.rpartition("\r")[2].strip() == "" and "sampling" in after
