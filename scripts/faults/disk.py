"""Disks that refuse, and power that goes, while the command saves its pictures. Rows C5 and C6.

The sampling is a stand-in, which gives a small picture at once: all that touches the disk is the command's own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

import ldm
from ldm.commands import main
from ldm.files import PART
from ldm.jobs.manifest import NAME, read_entry
from ldm.jobs.work import Room
from ldm.models.shapes import load_family
from ldm.options import Job
from ldm.pipeline import Result
from scripts.faults import Figure
from scripts.faults.tiny import some

ROOT = Path(__file__).parents[2]
CALLS = ("mkdir", "open", "pwrite", "write", "ftruncate", "fchmod", "fsync", "link", "replace", "unlink", "rmdir", "file.write")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
EXTENTS = ((False, False), (True, False), (True, True))  # lasting, everywhere
Hook = Callable[[str, Path, Callable[[], Any], Sequence[Any]], Any]  # (call, the path that it concerns, do it, its arguments)


class Stand:
    """Stands where a pipeline stands."""

    def __init__(self) -> None:
        self.family = load_family("sdxl-base")
        self.device, self.dtype, self.unet = torch.device("cpu"), torch.float32, torch.nn.Linear(1, 1)
        self.source, self.vae_source, self.made = "a.safetensors", None, 0

    def load(self, *_words: Any, **_keywords: Any) -> Stand:
        return self

    def run(self, job: Job, on_step: Callable[[Any], Any]) -> Result:
        on_step(None)
        self.made += 1
        seed = int(job.seed or 0)
        values = {"width": 16, "height": 8, "steps": 1, "cfg": 5.0, "sampler": "euler", "schedule": "karras", "sigmas": (9.0, 0.0)}
        job = Job(**{**vars(job), **values, "seed": seed})
        return Result([Image.new("RGB", (16, 8), (seed, 7, 9))], torch.ones(1, 4, 1, 2), [seed], job, None, ["float32"])


class _File:
    """An open file whose writes are seen."""

    def __init__(self, file: Any, path: Path, hook: Hook) -> None:
        self._file, self._path, self._hook = file, path, hook

    def write(self, content: bytes) -> Any:
        return self._hook("file.write", self._path, lambda: self._file.write(content), (self._file.fileno(), content))

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def interposed(hook: Hook) -> Iterator[None]:
    """Every call of the system that writes goes by way of `hook`, with the absolute path that it concerns."""

    def concerned(first: Any) -> Path:
        return Path(os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.path.abspath(os.fsdecode(first)))

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **keywords)
            return hook(name, concerned(args[0]), lambda: real(*args, **keywords), args)

        return call

    fdopen = os.fdopen

    def opened(descriptor: int, *args: Any, **keywords: Any) -> Any:
        path = concerned(descriptor)
        return _File(fdopen(descriptor, *args, **keywords), path, hook)

    with contextlib.ExitStack() as stack:
        for name in CALLS[:-1]:
            stack.enter_context(mock.patch.object(os, name, wrapped(name, getattr(os, name))))
        stack.enter_context(mock.patch.object(os, "fdopen", opened))
        yield


@dataclass
class Said:
    """What a run of the command gave."""

    code: int
    out: list[str]
    err: str
    made: int


def command(words: Sequence[str], hook: Hook | None = None) -> Said:
    """`ldm sample` in this process, with the stand-in."""
    stand, out, err = Stand(), io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(vars(ldm), load=stand.load))
        stack.enter_context(mock.patch("ldm.commands.sample.look_ahead", lambda job, tasks: None))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        if hook is not None:
            stack.enter_context(interposed(hook))
        code = main(["sample", "-p", "x", "--no-hash", *words])
    written = out.buffer
    assert isinstance(written, io.BytesIO)
    return Said(code, written.getvalue().decode().split(), err.getvalue(), stand.made)


@dataclass(frozen=True)
class Fault:
    """The call `name` fails at its `at`-th time, or from then on, in the folder of the pictures or everywhere; "any" is every call."""

    name: str
    at: int
    lasting: bool
    everywhere: bool
    number: int

    def hook(self, folder: Path) -> Hook:
        met = itertools.count()

        def hook(name: str, path: Path, do: Callable[[], Any], _args: Sequence[Any]) -> Any:
            if self.name in (name, "any") and name != "rmdir" and (self.everywhere or path.is_relative_to(folder)):
                time = next(met)
                if time == self.at or (self.lasting and time > self.at):
                    raise OSError(self.number, os.strerror(self.number), str(path))
            return do()

        return hook


WAYS: dict[str, list[str]] = {
    "list": ["-s", "1-3"],
    "resume": ["-s", "1-3", "--resume"],
    "one": ["-s", "1"],
    "overwrite": ["-s", "1", "--overwrite"],
}
FILES = {"overwrite": "old.png"}  # what -o names in the folder; otherwise the folder itself


def _prepared(place: Path, way: str) -> tuple[Path, list[str], dict[str, bytes]]:
    """(folder, words, its old files): a folder with a picture and its line from an earlier run."""
    folder = place / "pictures"
    command(["-s", "9,10", "-o", str(folder)])
    (folder / "old.png").write_bytes(b"old")
    return folder, [*WAYS[way], "-o", str(folder / FILES.get(way, ""))], {path.name: path.read_bytes() for path in folder.iterdir()}


def _count(way: str) -> dict[str, int]:
    """How often each call is made without a fault."""
    with tempfile.TemporaryDirectory() as name:
        folder, words, _ = _prepared(Path(name).resolve(), way)
        met: Counter[str] = Counter()

        def hook(call: str, path: Path, do: Callable[[], Any], _args: Sequence[Any]) -> Any:
            met[call] += path.is_relative_to(folder)
            return do()

        command(words, hook)
    return {**met, "any": sum(met.values())}


def faults(way: str) -> Iterator[Fault]:
    """All of them: each call at each of its times, by each refusal, once or lasting, there or everywhere."""
    for name, times in sorted(_count(way).items()):
        for at, number, extent in itertools.product(range(times), REFUSALS, EXTENTS):
            yield Fault(name, at, *extent, number)


def c5(count: int | None = None) -> Figure:
    """Every call of the saving path refused in turn; then the real command on disks that refuse."""
    cases = some([(way, fault) for way in WAYS for fault in faults(way)], count)
    problems: list[str] = []
    tally: Counter[str] = Counter()
    for way, fault in cases:
        with tempfile.TemporaryDirectory() as name:
            problems += [f"{way} {fault}: {each}" for each in refused(Path(name).resolve(), way, fault, tally)]
    real = [] if count else list(_real())
    problems += real
    reached = f"{len(cases)} refusals: {tally['kept']} pictures kept elsewhere and told, {tally['said']} runs ended with E5001, "
    reached += (
        f"{tally['whole']} unharmed; the command itself on {0 if count else 4} such disks; {len(problems)} problems {problems[:2] or ''}"
    )
    return Figure("0 damaged, 0 lost, 0 said to be done that are not there", reached, not problems)


def refused(place: Path, way: str, fault: Fault, tally: Counter[str]) -> Iterator[str]:
    """What is not as it should be after a run with a fault, and after the next without one."""
    folder, words, old = _prepared(place, way)
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    with mock.patch.object(tempfile, "tempdir", str(elsewhere)):
        said = command(words, fault.hook(folder if not fault.everywhere else place))
    kept = {str(path) for path in elsewhere.glob("*.png")}
    tally["kept"] += len(kept)
    tally["said" if said.code else "whole"] += 1
    yield from _lies(folder, said, old, way)
    if said.code not in (0, 1) or ("E5001" in said.err) != bool(said.code) or re.search("E[0-46-9][0-9]{3}|Traceback", said.err):
        yield f"exit code {said.code}: {said.err}"
    told = set(re.findall("it is kept as (.*)", said.err))
    new = {path.name for path in folder.glob("*.png")} - (set(old) - {FILES.get(way)})
    if told != kept or any(not _whole(Path(path)) for path in kept):
        yield f"kept {kept}, told {told}"
    replaced = way == "overwrite" and not _whole(folder / "old.png")
    there = len(new) - replaced
    twice = fault.name in ("any", "fsync") and (fault.lasting or way == "overwrite")  # a name that could not be synced, nor taken back
    if not fault.everywhere and not said.made <= there + len(kept) <= said.made + said.made * twice:
        yield f"{said.made} made, {there} there, {len(kept)} kept: {said.err}"
    if way != "overwrite":
        yield from _again(folder, old, said, words)


def _lies(folder: Path, said: Said, old: dict[str, bytes], way: str) -> Iterator[str]:
    """Old files that changed, new ones that are not whole, paths and lines of what is not there."""
    for name, content in old.items():
        here = (folder / name).read_bytes() if (folder / name).exists() else b""
        replaceable = name == FILES.get(way) and _whole(folder / name)
        if not (here == content or replaceable or (name == NAME and here.startswith(content))):
            yield f"{name} changed"
    yield from (f"{path} is not whole" for path in folder.glob("*.png") if path.name != "old.png" and not _whole(path))
    yield from (f"{path} was printed" for path in said.out if not _whole(Path(path)))
    for line in (folder / NAME).read_bytes().splitlines():
        entry = read_entry(line)
        if entry is None or hashlib.sha256((folder / entry.path).read_bytes()).hexdigest() != entry.sha256:
            yield f"a line of the manifest: {line!r}"


def _again(folder: Path, old: dict[str, bytes], said: Said, words: Sequence[str]) -> Iterator[str]:
    """The next run, with --resume, makes what is missing, nothing twice, and leaves nothing over."""
    here = len(list(folder.glob("*.png"))) - sum(name.endswith(".png") for name in old)
    again = command([*words, "--resume"])
    wanted = 3 if "1-3" in words else 1
    total = len(list(folder.glob("*.png"))) - sum(name.endswith(".png") for name in old)
    if again.code or total != wanted or again.made != wanted - here:
        yield f"again: {again}, {here} before, {total} after: {said.err}"
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    if left:
        yield f"left over: {left}"


def _whole(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.size == (16, 8)
    except (OSError, SyntaxError):
        return False


def _real() -> Iterator[str]:
    """The command with the model in the box: a limit of 4 kB a file, a folder that vanishes, one that takes no files, a full stdout."""
    words = ["sample", "-p", "cat", "-s", "1-3", "-W", "64", "-H", "64", "--steps", "1", "--sampler", "euler", "--no-hash", "-q", "-o"]
    ours = [sys.executable, "-m", "ldm", *words]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        options: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "TMPDIR": name}}

        def small() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

        end = subprocess.run([*ours, str(place / "a")], stdout=subprocess.PIPE, preexec_fn=small, check=False, **options)
        if (end.returncode, end.stdout, end.stderr.count("E5001")) != (1, "", 3) or any((place / "a").iterdir()):
            yield f"a limit of files' sizes: {end} {list((place / 'a').iterdir())}"
        with subprocess.Popen([*ours, str(place / "b")], stdout=subprocess.PIPE, **options) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            shutil.rmtree(place / "b")
            rest = process.stdout.read().split()
        if process.returncode not in (0, 1) or not first or any(not Path(path).is_file() for path in rest):
            yield f"a folder that vanished: {process.returncode} {rest}"
        end = subprocess.run([*ours, "/proc/none"], stdout=subprocess.PIPE, check=False, **options)
        if end.returncode != 1 or end.stderr.count("E5001") != 3 or end.stdout or len(list(place.glob("ldm-*.png"))) != 3:
            yield f"/proc: {end}"
        with open("/dev/full", "w") as full:
            end = subprocess.run([*ours, str(place / "c")], stdout=full, check=False, **options)
        if end.returncode != 1 or len(list((place / "c").glob("*.png"))) != 3:
            yield f"a full stdout: {end}"


@dataclass
class Disk:
    """What has been asked of a disk, in order; from it, what it may hold when the power goes."""

    ops: list[tuple[Any, ...]] = field(default_factory=list)
    nodes: dict[Path, int] = field(default_factory=dict)
    fresh: Iterator[int] = field(default_factory=itertools.count)

    def hook(self, name: str, path: Path, do: Callable[[], Any], args: Sequence[Any]) -> Any:
        there = path.exists()
        done = do()
        if name == "open" and not there:
            self.nodes[path] = next(self.fresh)
            self.ops.append(("name", path, self.nodes[path]))
        elif name in ("write", "file.write", "pwrite") and path in self.nodes:
            content = args[1]
            self.ops.append(("write", self.nodes[path], bytes(content)))
        elif name == "ftruncate" and path in self.nodes:
            self.ops.append(("cut", self.nodes[path], args[1]))
        elif name == "fsync":
            self.ops.append(("sync folder", path) if path.is_dir() else ("sync", self.nodes[path]))
        elif name in ("link", "replace"):
            target = Path(os.path.abspath(args[1]))
            self.nodes[target] = self.nodes[path]
            self.ops.append(("name", target, self.nodes[path]))
            if name == "replace":
                self.ops.append(("unname", path))
        elif name in ("unlink", "rmdir"):
            self.ops.append(("unname", path))
        elif name == "mkdir":
            self.ops.append(("name", path, -1))
        return done


def crash(ops: Sequence[tuple[Any, ...]], *, names: str, data: str) -> dict[Path, bytes | None]:
    """The tree after a loss of power; None: a folder. names, data: "synced" alone, or all as "asked"; data "torn": half the last write."""
    asked: dict[Path, int] = {}
    synced: dict[Path, int] = {}
    content: dict[int, bytes] = {}
    sure: dict[int, bytes] = {}
    torn: dict[int, bytes] = {}
    for op in ops:
        match op:
            case ("name", path, node):
                asked[path] = node
            case ("unname", path):
                asked.pop(path, None)
            case ("write", node, more):
                before = content.get(node, b"")
                content[node], torn[node] = before + more, before + more[: len(more) // 2]
            case ("cut", node, size):
                content[node] = torn[node] = content.get(node, b"")[:size]
            case ("sync", node):
                sure[node] = torn[node] = content.get(node, b"")
            case ("sync folder", folder):
                synced = {path: node for path, node in synced.items() if path.parent != folder}
                synced |= {path: node for path, node in asked.items() if path.parent == folder}
    held = {"asked": content, "synced": sure, "torn": torn}[data]
    return {path: None if node < 0 else held.get(node, b"") for path, node in (synced if names == "synced" else asked).items()}


STATES = [(names, data) for names in ("synced", "asked") for data in ("synced", "asked", "torn")]


def c6(count: int | None = None) -> Figure:
    """What the command asks of the disk while it saves `count` pictures, and every loss of power on the way."""
    pictures = count or 12
    problems: list[str] = []
    states = ordered = 0
    for more in ([], ["--resume"]):
        with tempfile.TemporaryDirectory() as name:
            folder, disk = Path(name).resolve() / "a" / "pictures", Disk()
            said = command(["-s", f"1-{pictures}", "-o", str(folder), *more], disk.hook)
            assert said.code == 0 and len(said.out) == pictures, said
            whole = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}
            wrong = list(unordered(disk.ops))
            problems += wrong
            ordered += pictures - len(wrong)
            for end in range(len(disk.ops) + 1):
                for names, data in STATES:
                    states += 1
                    tree = crash(disk.ops[:end], names=names, data=data)
                    problems += [f"{end} {names} {data}: {each}" for each in after(tree, folder, whole)]
    reached = f"{ordered} of {2 * pictures} commits in order; {states} losses of power: {len(problems)} problems {problems[:2] or ''}"
    return Figure("order in all commits, 0 corrupt after every prefix", reached, not problems)


def unordered(ops: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    """Pictures that have a name before their bytes are on the disk, or a line in the manifest before their name is."""
    for at, op in enumerate(ops):
        if op[0] == "name" and op[1].suffix == ".png" and not op[1].name.endswith(PART):
            writes = [k for k, each in enumerate(ops[:at]) if each[0] == "write" and each[1] == op[2]]
            syncs = [k for k, each in enumerate(ops[:at]) if each == ("sync", op[2])]
            lines = [k for k, each in enumerate(ops) if each[0] == "write" and op[1].name.encode() in each[2] and k > at]
            named = [k for k, each in enumerate(ops) if each == ("sync folder", op[1].parent) and k > at]
            if not (writes and syncs and writes[-1] < syncs[-1] and lines and named and named[0] < lines[0]):
                yield f"{op[1].name} is not in order"


def after(tree: dict[Path, bytes | None], folder: Path, whole: set[str]) -> Iterator[str]:
    """What is corrupt in a tree, and what the next run would make twice; it is built on the disk for that."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name) / "pictures"
        here.mkdir()
        for path, content in sorted(tree.items()):
            if not path.is_relative_to(folder) or not all(each in tree for each in path.parents if each.is_relative_to(folder)):
                continue
            target = here / path.relative_to(folder)
            if content is None:
                target.mkdir(exist_ok=True)
            else:
                target.write_bytes(content)
        there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in here.glob("*.png")}
        yield from (f"{path} is corrupt" for path, sha in there.items() if sha not in whole)
        lines = (here / NAME).read_bytes().split(b"\n")[:-1] if (here / NAME).exists() else []
        for entry in map(read_entry, lines):
            if entry is None or there.get(entry.path) != entry.sha256:
                yield f"a line of the manifest is wrong: {entry}"
        room = Room(here)
        if any(not room.manifest.names(entry) for entry in _known(there, room)):
            yield "a picture is there that the next run would make again"
        left = [path.name for path in here.iterdir() if path.name.startswith(".")]
        if left:
            yield f"left over: {left}"


def _known(there: dict[str, str], room: Room) -> Iterator[Any]:
    from ldm.jobs.manifest import Entry

    yield from (Entry("", 0, path, sha) for path, sha in there.items())
