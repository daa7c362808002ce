"""Signals, disks that refuse, lost power and long runs, fewer than `python -m scripts.faults C3 C4 C5 C6 C10` makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldm.commands import output
from ldm.commands.stopping import PATIENCE, Stop, Stops
from scripts.faults import disk, jobs, process

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")


def test_signals_at_any_instant() -> None:
    figure = process.c3(4)
    assert figure.good, figure


def test_kills_of_the_command_itself() -> None:
    figure = jobs.c4(1, jobs=6)
    assert figure.good, figure


def test_disks_that_refuse() -> None:
    figure = disk.c5(12)
    assert figure.good, figure


@pytest.mark.parametrize(
    ("way", "name"), [("list", "write"), ("resume", "write"), ("resume", "pwrite"), ("one", "file.write"), ("overwrite", "replace")]
)
def test_the_calls_that_matter_most_are_refused(tmp_path: Path, way: str, name: str) -> None:
    tally: Counter[str] = Counter()
    assert list(disk.refused(tmp_path, way, disk.Fault(name, 0, False, False, 28), tally)) == []
    assert tally["kept"] == (name in ("file.write", "replace"))


def test_a_line_that_the_disk_refused_is_written_by_the_next_run(tmp_path: Path) -> None:
    words = ["-s", "1-3", "-o", str(tmp_path / "pictures")]
    first = disk.command(words, disk.Fault("write", 1, True, False, 28).hook(tmp_path))
    assert (first.code, first.made, first.err.count("E5001"), len(first.out)) == (1, 3, 2, 3)
    again = disk.command([*words, "--resume"])
    assert (again.code, again.made) == (0, 0)
    assert len(list((tmp_path / "pictures").iterdir())) == 4


def test_losses_of_power() -> None:
    figure = disk.c6(1)
    assert figure.good, figure


@pytest.mark.parametrize("missing", ["sync", "sync folder"])
def test_a_sync_that_is_missing_is_found(tmp_path: Path, missing: str) -> None:
    folder, made = tmp_path / "pictures", disk.Disk()
    assert disk.command(["-s", "1,2", "-o", str(folder)], made.hook).code == 0
    ops = [op for op in made.ops if op[0] != missing]
    assert list(disk.unordered(made.ops)) == [] and len(list(disk.unordered(ops))) == 2
    assert list(disk.after(disk.crash(ops, names="asked", data="synced"), folder, set())) != []


def test_a_long_run_holds_no_more_files_and_little_more_memory() -> None:
    figure = process.c10(40)
    assert figure.good, figure


def test_a_signal_waits_while_something_is_written() -> None:
    stops = Stops()
    with pytest.raises(Stop), stops.held():
        stops._come(signal.SIGINT, None)
        with pytest.raises(Stop), stops.free():
            pytest.fail("a signal had come")
        written = True
    assert written


def test_a_signal_whose_stop_was_lost_is_found_at_the_end() -> None:
    stops = Stops()
    with pytest.raises(Stop):
        stops._come(signal.SIGTERM, None)
    with pytest.raises(Stop):
        stops.finish()


def test_a_signal_after_the_end_changes_nothing() -> None:
    stops = Stops()
    stops.finish()
    stops._come(signal.SIGINT, None)
    assert stops.number == 0


SECOND = f"""
    import os, signal, time
    from ldm.commands.stopping import Stops
    stops = Stops()
    stops.install()
    with stops.held():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        print("both waited", flush=True)
        time.sleep({PATIENCE} + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        print("not reached", flush=True)
"""


def test_a_later_second_signal_ends_the_process_there_and_then() -> None:
    words = [sys.executable, "-c", textwrap.dedent(SECOND)]
    end = subprocess.run(words, cwd=process.ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert (end.returncode, end.stdout) == (143, "both waited\n")


def test_the_figures_can_be_missed() -> None:
    expected = dict.fromkeys(process.SEEDS, "0")
    ended = process.Run(130, 1.0, "", "ldm: interrupted at step 2 of 4: 1 of 6 pictures is saved\n")
    assert list(process._wrong(Path("none"), ended, "stopped", signal.SIGINT, expected)) == ["other words"]
    assert "exit code 130" in list(process._wrong(Path("none"), ended, "stopped", signal.SIGTERM, expected))
    assert not process._figure(process.Tally(problems=["x"])).good
    assert not process._figure(process.Tally(processor=[2.5])).good
    assert process._slope([(0, 5.0), (1, 7.0), (2, 9.0)]) == 2


def test_a_disk_that_is_full_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, code in ((output.LEAST - 1, 2), (output.LEAST, 0)):
        monkeypatch.setattr(output.shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(total=2**40, free=free))
        said = disk.command(["-s", "1", "-o", str(tmp_path / "pictures")])
        assert (said.code, said.made, "E5001" in said.err) == (code, int(code == 0), code == 2)


@pytest.mark.parametrize("folder", ["/proc/none", "/proc"])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_folder_that_takes_no_files_costs_no_picture_and_no_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, more: list[str]
) -> None:
    monkeypatch.setattr(disk.tempfile, "tempdir", str(tmp_path))
    said = disk.command(["-s", "1,2", "-o", folder, *more])
    if os.getuid():
        assert (said.code, said.made) == (2, 0)
        return
    assert (said.code, said.out) == (1, [])
    assert len(list(tmp_path.glob("*.png"))) == said.made == (0 if more else 2)
    assert said.err.count("E5001") == (1 if more else 2)
