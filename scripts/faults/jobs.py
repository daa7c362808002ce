"""Many jobs in one folder: kills, crowds, hostile prompt files and hostile names. Rows C4, C7, D2 (prompt files) and D8."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ldm import flags, values
from ldm.diffusion import names
from ldm.errors import InputError
from ldm.files import PART
from ldm.jobs import prompts
from ldm.jobs.claims import FOLDER
from ldm.jobs.manifest import NAME as MANIFEST
from ldm.jobs.manifest import Manifest, digests, read_entry
from ldm.options import Job
from scripts.faults import Figure, worker

ROOT = Path(__file__).parents[2]
JOBS = 140  # of a batch: 168 pictures
Command = Callable[[Path], list[str]]  # the words of a worker's command line for a folder
Pictures = dict[str, str]  # digest to sha256 of the picture, of every picture of a batch that nobody interrupts


def fake_worker(folder: Path) -> list[str]:
    return [sys.executable, "-m", "scripts.faults.worker", "batch", str(folder), str(JOBS)]


def fake_pictures() -> Pictures:
    made = zip(worker.jobs(JOBS), digests(worker.jobs(JOBS), "fake"), strict=True)
    return {each: _sha256(worker.picture((job.seed or 0) + place)) for job, places in made for place, each in enumerate(places)}


def real_worker(jobs: Path) -> Command:
    """`ldm sample` with the model in the box, small pictures of one step."""
    words = f"-m ldm sample --from-file {jobs} -W 64 -H 64 --steps 1 --sampler euler --no-hash -q --resume -o".split()
    return lambda folder: [sys.executable, *words, str(folder)]


def real_pictures(jobs: Path, count: int) -> Pictures:
    """Write the prompt file, and make its pictures once in peace."""
    made = [{"prompt": job.prompt, "seed": job.seed, "batch": job.batch} for job in worker.jobs(count)]
    jobs.write_text("".join(f"{json.dumps(each)}\n" for each in made), encoding="utf-8")
    folder = jobs.with_name("peace")
    _finish(_start(real_worker(jobs), folder))
    entries = [read_entry(line) for line in (folder / MANIFEST).read_bytes().splitlines()]
    return {entry.digest: _sha256((folder / entry.path).read_bytes()) for entry in entries if entry}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def c4(count: int | None = None, jobs: int = JOBS) -> Figure:
    """kill -9 at `count` random moments of batches that two `ldm sample` make together."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "jobs.jsonl"
        start = time.perf_counter()
        expected = real_pictures(file, jobs)
        if len(expected) != sum(job.batch for job in worker.jobs(jobs)):
            return Figure("every picture is made", f"{len(expected)} are", False)
        return kills(count or 200, real_worker(file), expected, rounds=(2, 4, 6, 8), span=time.perf_counter() - start)


def c4_fake(count: int | None = None) -> Figure:
    """The same with a stand-in for the model, which takes a hundredth of the time."""
    return kills(count or 200, fake_worker, fake_pictures(), rounds=(1, 1, 2, 3))


def kills(count: int, command: Command, expected: Pictures, *, rounds: Sequence[int], span: float = 0.0) -> Figure:
    """Two processes at a time; every killed one is started again at once. `span`: seconds of a batch, measured where 0."""
    done, batches, wrong, left, dirty = 0, 0, dict.fromkeys(("lost", "doubled", "corrupt", "left over"), 0), 0, random.Random(4)
    while done < count:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "pictures"
            start = time.perf_counter()
            many, parts = _kill_batch(folder, command, dirty, span, min(count - done, dirty.choice(rounds)))
            span = span or time.perf_counter() - start
            done, left, batches = done + many, left + parts, batches + 1
            for problem, times in _problems(folder, expected).items():
                wrong[problem] += times
    reached = f"{done} kills in {batches} batches of {len(expected)} pictures, {batches * len(expected)} in all: " + ", ".join(
        f"{times} {problem}" for problem, times in wrong.items()
    )
    return Figure("0 lost, 0 doubled, 0 corrupt, 0 left over", f"{reached} ({left} met on the way)", not any(wrong.values()))


def _kill_batch(folder: Path, command: Command, chance: random.Random, span: float, most: int) -> tuple[int, int]:
    """(kills, temporary files met after them) of one batch; one of no known span is not killed."""
    kills = left = 0
    running = [_start(command, folder) for _ in range(2)]
    while span and kills < most:
        time.sleep(chance.uniform(0.02, span * 0.8))
        living = [each for each in running if each.poll() is None]
        if not living:
            break
        for victim in living if chance.random() < 0.2 else [chance.choice(living)]:
            victim.send_signal(signal.SIGKILL)
            kills += victim.wait() == -signal.SIGKILL
        left += len(list(folder.glob(f".*{PART}")))
        running = [each if each.poll() is None else _start(command, folder) for each in running]
    for each in running:
        _finish(each)
    _finish(_start(command, folder))  # what the last kill left is for the next start
    return kills, left


def _start(command: Command, folder: Path) -> subprocess.Popen[str]:
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(folder), cwd=ROOT, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"a worker failed: {said[-2000:]}")


def _problems(folder: Path, expected: dict[str, str]) -> dict[str, int]:
    """How many pictures are lost, doubled or not what they should be, and what else lies there."""
    manifest = Manifest(folder)
    entries = {each: manifest.done(each) for each in expected}
    here = {path.relative_to(folder).as_posix(): _sha256(path.read_bytes()) for path in folder.rglob("*.png")}
    paths = [entry.path for entry in entries.values() if entry]
    lines = (folder / MANIFEST).read_bytes().count(b'"done"')
    return {
        "lost": sum(entry is None or entry.path not in here for entry in entries.values()),
        "doubled": max(len(here) - len(set(paths)), len(paths) - len(set(paths)), lines - len(expected), 0),
        "corrupt": sum(entry is not None and here.get(entry.path) != expected[each] for each, entry in entries.items()) + manifest.damaged,
        "left over": len(list(folder.rglob(f".*{PART}"))) + (folder / FOLDER).exists(),
    }


def c7(count: int | None = None) -> Figure:
    """Eight processes write `count` pictures each into one folder, all with the same seeds."""
    each = count or 500
    with tempfile.TemporaryDirectory() as name:
        words = [[sys.executable, "-m", "scripts.faults.worker", "names", name, str(each), f"m{mark}"] for mark in range(8)]
        for process in [_start(lambda _, word=word: word, Path(name)) for word in words]:
            _finish(process)
        files = [path.read_bytes() for path in Path(name).iterdir()]
    wanted = {worker.picture(seed) + f"m{mark} {seed}".encode() for seed in range(each) for mark in range(8)}
    lost = len(wanted - set(files))
    reached = f"{len(files)} files of 8 processes, {lost} overwritten, {len(files) - 8 * each} more than asked for"
    return Figure(f"{8 * each} files, 0 overwritten", reached, lost == 0 and len(files) == 8 * each)


_BITS = (
    *("a cat", " ", "  ", "\t", " --", "--", "-", "\n", "\r\n", "\r", "#", "\ufeff", "\0", "\xff", "é", "\U0001f431", "\ud7ff", "\u2028"),
    *('"', "'", "\\", '\\"', ",", ";", ":", "=", "{", "}", "[", "]", "(", ")", "{}", "[]", '{"', '"}', '": ', "null", "true", "NaN"),
    *(" --w ", " --h ", " --d ", " --s ", " --l ", " --n ", " --ss ", " --ow ", " --ct ", " --t ", " --f ", " --am ", " --stpes "),
    *("--prompt ", "--negative_prompt ", "--seed ", "--steps ", "--sampler_name ", "--cfg_scale ", "--n_iter 2", "--batch_size "),
    *('"prompt": ', '"seed": ', '"sigmas": ', '"overrides": ', '"width": ', '"sampler": ', '"profile": ', "prompt,seed\n", "prompt;cfg\n"),
    *("1", "-1", "64", "512", "7.5", "1,2,5-9", "9-5", "0-99", "1e999", "18446744073709551616", "1" * 50, "euler_a", "DPM++ 2M Karras"),
    *("k_", "rng=cpu", "--tiling "),
)


def fuzzed(chance: random.Random) -> bytes:
    """A file that is nearly one of prompts; one in ten with bytes that are anything."""
    text = "".join(chance.choices(_BITS, k=chance.randint(0, 12))).encode()
    if chance.random() < 0.1 and text:
        at = chance.randrange(len(text))
        text = text[:at] + chance.randbytes(chance.randint(1, 4)) + text[at:]
    return text


def _uncaught(content: bytes) -> list[str]:
    """The errors, by every reader of prompt files, that are not InputErrors of one line."""
    found = []
    text = content.decode(errors="replace")
    calls: list[Callable[[], object]] = [
        *(lambda kind=kind: prompts.parse(content, "file", kind, Job()) for kind in ("text", "jsonl", "csv")),
        *(lambda part=part: part(text) for part in (names.sampler, names.schedule)),
        lambda: flags._parse("--seed", values.seeds, text),
    ]
    for call in calls:
        try:
            call()
        except InputError as error:
            found += [f"{content!r}: two lines"] if "\n" in str(error) else []
        except Exception as error:
            found.append(f"{content!r}: {type(error).__name__}")
    return found


PATHOLOGICAL: dict[str, tuple[str, Callable[[int], str]]] = {
    "one word": ("text", lambda n: "a" * n),
    "dashes": ("text", lambda n: "-" * n),
    "empty options": ("text", lambda n: " --" * (n // 3)),
    "options": ("text", lambda n: "a" + " --n b" * (n // 6)),
    "unknown options": ("text", lambda n: "a" + " --zz b" * (n // 7)),
    "open quote": ("text", lambda n: '--prompt "' + '\\"' * (n // 2)),
    "many quotes": ("text", lambda n: "--prompt " + '"\'"' * (n // 3)),
    "single quotes": ("text", lambda n: "--prompt " + "'" * n),
    "backslashes": ("text", lambda n: "--prompt " + "\\" * n),
    "words": ("text", lambda n: "--prompt" + " a" * (n // 2)),
    "spaces": ("text", lambda n: "a" + " \t" * (n // 2) + "b"),
    "empty lines": ("text", lambda n: "\r" * n + "a"),
    "comments": ("text", lambda n: "#\n" * (n // 2) + "a"),
    "wrong lines": ("text", lambda n: "a --zz\n" * (n // 7)),
    "seeds": ("text", lambda n: "a --d " + "1," * (n // 2)),
    "dashes in seeds": ("text", lambda n: "a --d " + "1-" * (n // 2)),
    "digits": ("text", lambda n: "a --w " + "9" * n),
    "sampler": ("text", lambda n: "a --ss " + "karras " * (n // 7)),
    "file name": ("text", lambda n: "a --f " + "../" * (n // 3)),
    "brackets": ("jsonl", lambda n: "[" * n),
    "objects": ("jsonl", lambda n: '{"a":' * (n // 5)),
    "fields": ("jsonl", lambda n: "{" + ",".join(f'"{at}":1' for at in range(n // 9)) + "}"),
    "long number": ("jsonl", lambda n: '{"seed": ' + "9" * n + "}"),
    "escapes": ("jsonl", lambda n: '{"prompt": "' + "\\u00e9" * (n // 6) + '"}'),
    "sigmas": ("jsonl", lambda n: '{"prompt": "", "sigmas": [' + "1," * (n // 2) + "1]}"),
    "cells": ("csv", lambda n: "prompt\n" + "," * n),
    "header": ("csv", lambda n: ",".join(map(str, range(n // 6))) + "\na"),
    "quotes": ("csv", lambda n: "prompt\n" + '"' * n),
    "open cell": ("csv", lambda n: 'prompt\n"' + "a\n" * (n // 2)),
}


def _seconds(kind: str, content: bytes) -> float:
    def once() -> float:
        start = time.thread_time()
        with contextlib.suppress(InputError):
            prompts.parse(content, "file", kind, Job())
        return time.thread_time() - start

    return min(once() for _ in range(5))


def growth(kind: str, make: Callable[[int], str], small: int = 20_000, large: int = 320_000) -> tuple[float, float]:
    """(ms for 10 KB, exponent of the time over the size) of a pathological input; times below 1 ms count as that."""
    first, last = (max(_seconds(kind, make(size).encode()), 1e-3) for size in (small, large))
    return 1000 * _seconds(kind, make(10_000).encode()), math.log(last / first) / math.log(large / small)


def d2(count: int | None = None) -> Figure:
    """Fuzzed prompt files, and the time that pathological ones take."""
    chance, total = random.Random(2), count or 1_000_000
    uncaught: list[str] = []
    for _ in range(total):
        uncaught += _uncaught(fuzzed(chance))
    times = {name: growth(*each) for name, each in PATHOLOGICAL.items()}
    slow, steep = (max(times, key=lambda name: times[name][at]) for at in (0, 1))
    reached = f"{total} files by 6 readers, {len(uncaught)} uncaught {uncaught[:3] or ''}; {len(times)} pathological inputs: at most "
    reached += f"{times[slow][0]:.1f} ms for 10 KB ({slow}), exponent at most {times[steep][1]:.2f} ({steep})"
    return Figure("0 uncaught; 20 ms for 10 KB, exponent 1.1", reached, not uncaught and times[slow][0] <= 20 and times[steep][1] <= 1.1)


def d8(count: int | None = None) -> Figure:
    """Hostile patterns, hostile words and hostile folders: what is written outside the folder of the pictures."""
    from scripts.faults import hostile

    outside, refused, written, kept = 0, 0, 0, hostile.payloads()
    kept = kept[:: max(len(kept) // (count or len(kept)), 1)]
    for payload in kept:
        for attempt in hostile.ATTEMPTS:
            with tempfile.TemporaryDirectory() as name:
                result = attempt(Path(name), payload)
                outside += hostile.outside(Path(name)) + hostile.escaped(result, Path(name))
                refused, written = refused + (result is None), written + (result is not None)
    reached = f"{len(kept)} payloads in {len(hostile.ATTEMPTS)} ways: {refused} refused, {written} written inside, {outside} outside"
    return Figure("0 files outside of the folder, 200 payloads or more", reached, outside == 0 and (count is not None or len(kept) >= 200))
