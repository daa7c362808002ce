"""Signals at any instant and runs that go on and on, with the command `ldm sample` and the model in the box. Rows C3 and C10.

`python -m scripts.faults.process` is a process that has torch and the command loaded and forks itself for every line of its stdin:
the command without its start-up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ldm.files import PART
from ldm.jobs.claims import FOLDER
from ldm.jobs.manifest import NAME, read_entry
from scripts.faults import Figure

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SEEDS = range(1, 7)
STEPS = 4
WORDS = f"sample -p cat -s 1-6 -W 64 -H 64 --steps {STEPS} --sampler euler --no-hash".split()
SIGNALS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
SAID = r"ldm: (interrupted|terminated)( at step [0-9]+ of [0-9]+| after the last step)?(: ([0-9]+) of 6 pictures (is|are) saved)?"
FRESH = 5  # of so many runs one is a new process, the others are forks


@dataclass
class Run:
    """One run of the command: its exit code, the processor time it took in all, and what it said."""

    code: int
    seconds: float
    out: str
    err: str


class Fresh:
    """A command line as a process of its own."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.log = log
        with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
            options: dict[str, Any] = {"cwd": ROOT, "env": ONE_THREAD, "stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            self.pid = subprocess.Popen([sys.executable, "-c", _MAIN, *words], **options).pid

    def end(self) -> Run:
        _, status, usage = os.wait4(self.pid, 0)
        return Run(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, *_texts(self.log))


# a shell's background jobs ignore SIGINT, and what they start with them
_MAIN = "import signal, runpy; signal.signal(signal.SIGINT, signal.SIG_DFL); runpy.run_module('ldm', run_name='__main__', alter_sys=True)"


class Lane:
    """A loaded process that forks; one run at a time."""

    def __init__(self) -> None:
        words = [sys.executable, "-m", "scripts.faults.process"]
        self.server = subprocess.Popen(words, cwd=ROOT, env=ONE_THREAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, words: Sequence[str], log: Path) -> Forked:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([list(words), str(log)]) + "\n")
        self.server.stdin.flush()
        return Forked(self, int(self.answer()), log)

    def answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def close(self) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


@dataclass
class Forked:
    lane: Lane
    pid: int
    log: Path

    def end(self) -> Run:
        code, seconds = json.loads(self.lane.answer())
        return Run(code, seconds, *_texts(self.log))


def _texts(log: Path) -> tuple[str, str]:
    return Path(f"{log}.out").read_text(), Path(f"{log}.err").read_text()


def serve() -> None:
    """The loaded process."""
    import ldm.commands.sample
    import ldm.pipeline  # noqa: F401

    for line in sys.stdin:
        words, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_command(words, log)
        print(pid, flush=True)
        _, status, usage = os.wait4(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]), flush=True)


def _be_command(words: list[str], log: str) -> None:
    """What the forked process does until its end."""
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for number, end in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{log}.{end}", os.O_CREAT | os.O_WRONLY, 0o666), number)
        from ldm.commands import program

        sys.argv = ["ldm", *words]
        code = program()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


@dataclass
class Tally:
    """What came of many signals."""

    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds from the signal to the end
    wall: list[float] = field(default_factory=list)
    resumed: int = 0


def c3(count: int | None = None) -> Figure:
    """SIGINT or SIGTERM at `count` random instants of runs of six pictures."""
    chance, tally = random.Random(3), Tally()
    lane = Lane()
    try:
        with tempfile.TemporaryDirectory() as name:
            spans = {}
            for at, start in enumerate((Fresh, lane.start)):
                began = time.perf_counter()
                whole = start([*WORDS, "-o", f"{name}/whole{at}"], Path(name) / "log").end()
                spans[at] = time.perf_counter() - began
            expected = {entry.seed: entry.sha256 for entry in _entries(Path(name) / "whole0")}
            if whole.code or sorted(expected) != list(SEEDS) or _shas(Path(name) / "whole0") != _shas(Path(name) / "whole1"):
                return Figure("six pictures", f"{whole}", False)
            for at in range(count or 500):
                forked = at % FRESH != 0
                with tempfile.TemporaryDirectory() as place:
                    _signal(Path(place), lane if forked else None, chance, spans[forked], expected, tally, resume=at % 3 == 1)
    finally:
        lane.close()
    return _figure(tally)


def _figure(tally: Tally) -> Figure:
    times = sorted(tally.processor) or [0.0]
    ends = ", ".join(f"{number} {how}" for how, number in tally.ends.most_common())
    reached = f"{sum(tally.ends.values())} signals: {ends}; {len(tally.problems)} problems {tally.problems[:3] or ''}; "
    reached += f"processor time to the end {times[len(times) // 2]:.2f} s in the middle, {times[-1]:.2f} s at most "
    reached += f"(wall {max(tally.wall, default=0):.2f} s); {tally.resumed} resumed whole"
    return Figure("0 problems, 2 s of processor time", reached, not tally.problems and times[-1] <= 2)


def _signal(
    place: Path, lane: Lane | None, chance: random.Random, span: float, expected: dict[int, str], tally: Tally, *, resume: bool
) -> None:
    """One run, its signal, and what is there afterwards."""
    folder, number = place / "pictures", chance.choice(list(SIGNALS))
    words = [*WORDS, "-o", str(folder), *chance.choice(([], ["--resume"]))]
    run = lane.start(words, place / "log") if lane else Fresh(words, place / "log")
    time.sleep(chance.uniform(0, span))
    before, sent = _processor(run.pid), time.perf_counter()
    with contextlib.suppress(ProcessLookupError):
        os.kill(run.pid, number)
    end = run.end()
    how = _how(end, number)
    tally.ends[how] += 1
    if how == "stopped" and before is not None:
        tally.processor.append(end.seconds - before)
        tally.wall.append(time.perf_counter() - sent)
    tally.problems += [f"{how}: {problem}: {end}" for problem in _wrong(folder, end, how, number, expected)]
    if resume and lane and how == "stopped":
        again = lane.start([*words, "--resume"], place / "again").end()
        tally.resumed += 1
        whole = again.code == 0 and sorted(_shas(folder)) == sorted(expected.values()) and not _left(folder)
        tally.problems += [] if whole else [f"not resumed: {again} {os.listdir(folder)}"]


def _processor(pid: int) -> float | None:
    """Seconds of processor time so far; None where the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _how(end: Run, number: int) -> str:
    if end.code == -number:
        return "before the command began"
    return "ended before" if end.code == 0 else "stopped"


def _wrong(folder: Path, end: Run, how: str, number: signal.Signals, expected: dict[int, str]) -> Iterator[str]:
    """What is not as it should be after a signal."""
    code, word = SIGNALS[number]
    entries, shas = _entries(folder), _shas(folder)
    if how == "stopped" and end.code != code:
        yield f"exit code {end.code}"
    if how == "stopped":
        found = re.fullmatch(SAID, end.err.splitlines()[-1]) if end.err else None
        if found is None or found[1] != word or (found[4] is None and shas) or (found[4] is not None and int(found[4]) != len(shas)):
            yield "other words"
    if "Traceback" in end.err or "error" in end.err:
        yield "an error is shown"
    if _left(folder):
        yield f"left over: {_left(folder)}"
    if sorted(shas) != sorted(expected[entry.seed] for entry in entries) or sorted(shas) != sorted(entry.sha256 for entry in entries):
        yield "pictures that are not whole, or not in the manifest"
    if sorted(end.out.split()) != sorted(str(folder / entry.path) for entry in entries):
        yield "other paths are printed"
    if how == "ended before" and len(shas) != len(expected):
        yield "it ended with pictures missing"


def _entries(folder: Path) -> list[Any]:
    try:
        lines = (folder / NAME).read_bytes().splitlines()
    except OSError:
        return []
    return [read_entry(line) for line in lines]


def _shas(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.png"))]


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*") if path.name.endswith(PART) or path.name == FOLDER]


def c10(count: int | None = None) -> Figure:
    """`count` tiny pictures of one pipeline by way of one saver, and a twentieth as many models loaded and closed."""
    pictures = count or 10_000
    with tempfile.TemporaryDirectory() as name:
        before = _open_files()
        slope = _kib_per_picture(Path(name), pictures)
        switches, grown = max(pictures // 20, 2), 0.0
        points = list(_switches(Path(name), switches))
        grown = _slope(points[len(points) // 10 :])
        more = _open_files() - before
    wide = 1.0 if pictures >= 5000 else 200.0  # a short run's memory has not settled
    reached = f"{pictures} pictures: {slope:.2f} KiB a picture; {switches} models: {grown:.1f} KiB a model; {more} more open files"
    return Figure("1 KiB a picture, 0 files", reached, slope <= wide and more <= 0)


def _kib_per_picture(folder: Path, count: int) -> float:
    from ldm.commands.making import make_one
    from ldm.commands.saving import Saver
    from ldm.jobs.fields import Task
    from ldm.options import Job
    from scripts.faults.tiny import tiny

    small = Job(prompt="cat", width=32, height=24, steps=1, sampler="euler", output=str(folder / "pictures"), quiet=True, no_hash=True)
    tasks = [Task(replace(small, seed=seed), "a test") for seed in range(count)]
    points: list[tuple[int, float]] = []
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        saver = Saver(tiny(), small, tasks)
        with saver.watched():
            for at, task in enumerate(tasks):
                saver.save(task, at, *make_one(saver.pipeline, task))
                points.append((at, _rss()))
    assert saver.saved == count
    return _slope(points[count // 5 :])


def _switches(folder: Path, count: int) -> Iterator[tuple[int, float]]:
    """(number, KiB) after each model that was loaded, used and closed."""
    import ldm
    from scripts import synthetic

    path = synthetic.write(folder / "tiny.safetensors", synthetic.tiny())
    for at in range(count):
        pipeline = ldm.load(path)
        pipeline.generate("cat", width=64, height=64, steps=1, seed=1, sampler="euler")
        pipeline.close()
        yield at, _rss()


def _rss() -> float:
    """KiB of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1024


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _slope(points: Sequence[tuple[int, float]]) -> float:
    """Of the straight line through the points, by least squares."""
    middle = [sum(each) / len(points) for each in zip(*points, strict=True)]
    across = sum((x - middle[0]) ** 2 for x, _ in points)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / across if across else 0.0


if __name__ == "__main__":
    serve()
