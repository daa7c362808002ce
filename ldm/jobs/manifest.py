"""manifest.jsonl: one line a picture, written when the picture is on the disk. What it says is done is not done again.

    {"digest": "3f...", "seed": 7, "path": "00001-7.png", "sha256": "9a...", "bytes": 1234, "state": "done", "index": 0, "timings": {}}

Several processes append to one file: each line is one write at the end of the file, under a lock, then fsync. A line that was torn by
a power cut or a full disk is passed over in reading and closed by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.checks import validate
from ldm.errors import LdmError
from ldm.files import lock, make_folder, sync_folder
from ldm.limits import SEEDS
from ldm.options import KNOBS, Job

NAME = "manifest.jsonl"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
_TYPES: dict[str, type] = {
    **dict.fromkeys(("digest", "path", "sha256", "state"), str),
    **dict.fromkeys(("seed", "bytes", "index"), int),
    "timings": dict,
}


@dataclass(frozen=True)
class Entry:
    """One picture. `path`: in the folder of the manifest, "/" between; `sha256`, `bytes`: of the file; `timings`: seconds by stage."""

    digest: str
    seed: int
    path: str = ""
    sha256: str = ""
    bytes: int = 0
    state: str = DONE
    index: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)


def digest(job: Job, model: str, index: int = 0, extra: Mapping[str, Any] | None = None) -> str:
    """sha256 of what makes one picture: the job's saved fields, which model, and the place among equal ones.

    Text and numbers in one spelling, so that 5 and 5.0 are one guidance scale. A seed that is drawn later counts as such.
    """
    job = validate(job)
    made = {name: getattr(job, name) for name, knob in KNOBS.items() if knob.saved}
    made["cfg"] = None if job.cfg is None else float(job.cfg)
    made |= {name: None if made[name] == -1 else made[name] for name in SEEDS}
    made["overrides"] = dict(job.overrides or {})
    if made["speed"] == "exact":
        del made["speed"]  # its digest is that of the time before there were tiers
    whole = {**made, **(extra or {}), "model": model, "index": index}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, allow_nan=False).encode()).hexdigest()


def digests(jobs: Sequence[Job], model: str, extras: Sequence[Mapping[str, Any]] = ()) -> list[list[str]]:
    """For each job the digests of its pictures; equal jobs are told apart by their order, whatever stands between them."""
    met: dict[str, int] = {}
    made: list[list[str]] = []
    for at, job in enumerate(jobs):
        extra = extras[at] if extras else {}
        first = digest(job, model, 0, extra)
        before = met.get(first, 0)
        met[first] = before + job.batch
        made.append([digest(job, model, before + place, extra) for place in range(job.batch)])
    return made


def read_entry(line: bytes) -> Entry | None:
    """The entry of a line; None for anything that is not one."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not {"digest", "seed"} <= set(values):
        return None
    known = {each.name: values[each.name] for each in fields(Entry) if each.name in values}
    if any(type(value) is not _TYPES[name] for name, value in known.items()) or not _inside(known.get("path", "")):
        return None
    times = known.get("timings", {}).values()
    return Entry(**known) if all(type(each) in (int, float) and math.isfinite(each) for each in times) else None


def _inside(path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in path


def write_entry(entry: Entry) -> bytes:
    """The line of an entry, with its newline."""
    return json.dumps(asdict(entry), allow_nan=False).encode() + b"\n"


class Manifest:
    """The manifest of one folder. `damaged`: lines that could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.damaged = folder, folder / NAME, 0
        self._entries: dict[str, Entry] = {}
        self._held: dict[str, str] = {}  # path: sha256
        self._place, self._file = 0, (0, 0)
        self.refresh()

    def refresh(self) -> None:
        """Read what has been appended since the last time, by whichever process."""
        try:
            with open(self.path, "rb") as file:
                self._follow(os.fstat(file.fileno()))
                file.seek(self._place)
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise LdmError(f"cannot read {self.path}: {error.strerror or error}: choose another folder", "E5001") from error
        for line in lines[:-1]:  # behind the last newline stands nothing, or a line that is being written or was torn
            self._place += len(line) + 1
            self._take(line)

    def _follow(self, info: os.stat_result) -> None:
        """Begin again when another file has taken the place of the one that was read, or it was cut."""
        if (info.st_dev, info.st_ino) != self._file or info.st_size < self._place:
            self._entries, self._held, self._place, self.damaged = {}, {}, 0, 0
            self._file = (info.st_dev, info.st_ino)

    def _take(self, line: bytes) -> None:
        entry = read_entry(line)
        if entry is None:
            self.damaged += line != b""
        elif entry.state == DONE:
            self._entries[entry.digest] = entry
            self._held[entry.path] = entry.sha256

    def done(self, digest: str) -> Entry | None:
        """The entry of a picture that is done, and whose file is still there in its whole length."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        try:
            return entry if os.stat(self.folder / entry.path).st_size == entry.bytes else None
        except OSError:
            return None

    def names(self, made: Entry) -> bool:
        """Whether the last entry with this path is of the same bytes: the picture there is then known."""
        return self._held.get(made.path) == made.sha256

    def append(self, entry: Entry) -> None:
        """Write a line to the disk; LdmError where the disk refuses, with nothing half written."""
        try:
            make_folder(self.folder)
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                _append(descriptor, write_entry(entry))
            finally:
                os.close(descriptor)
            if fresh:
                sync_folder(self.folder)
        except OSError as error:
            raise LdmError(f"cannot write {self.path}: {error.strerror or error}: make room or choose another folder", "E5001") from error


def _append(descriptor: int, line: bytes) -> None:
    lock(descriptor, wait=True)
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    whole = b"\n" + line if torn else line
    if os.write(descriptor, whole) != len(whole):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)
