"""From a plan to a file in the Hub's cache. With `plans` the one place of ldm that opens a connection, and only when it is asked to.

The bytes are received here, because the Hub's own client (2.4) throws away what a broken download has got when its process ends, and
does not compare the digest. A file takes its name in the cache only when its digest is the one that the Hub has told, and its header is
that of a safetensors file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ldm
from ldm.checkpoint.safetensors import read_header
from ldm.errors import FileError, InputError, LdmError
from ldm.files import lock, sync_folder, write_atomic
from ldm.hub.names import repo_folder
from ldm.hub.plans import FAILED, TIMEOUT, Plan, explain, library, make_plan

TRIES = 5  # without a byte more, before a download is given up
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another a little later
Progress = Callable[[int, int], object]  # bytes more, bytes in all


class _Changed(Exception):
    """The server sends another file than the one that was planned."""


def fetch(plan: Plan, progress: Progress = lambda more, total: None, pause: Callable[[float], object] = time.sleep) -> Path:
    """The planned file in the cache, checked; what an earlier run has got is used. `pause` waits some seconds before a next try.

    Raises FileError E3010 where the digest stays wrong, LdmError E9001 where the connection fails and E5001 where the disk does.
    """
    for _ in range(3):
        try:
            return _fetch(plan, progress, pause)
        except _Changed:
            warnings.warn(f"{plan.name}: the file on the Hub has changed: starting again", stacklevel=2)
            plan.part.unlink(missing_ok=True)
            plan = make_plan(plan.name, plan.cache)
        except OSError as error:
            raise _disk(plan, error) from error
    raise LdmError(f"{plan.name}: the file on the Hub changes with every request: try again later", FAILED)


def _fetch(plan: Plan, progress: Progress, pause: Callable[[float], object]) -> Path:
    if plan.blob.is_file():
        if digest(plan.blob, plan.etag) == plan.etag:
            return _link(plan)
        warnings.warn(f"{plan.name}: the file in the Hub's cache is damaged: downloading it again", stacklevel=3)
        plan.blob.unlink()
    plan.blob.parent.mkdir(parents=True, exist_ok=True)
    with _held(plan) as file:
        if not plan.blob.is_file():
            _check_room(plan)
            _fill_checked(plan, file, progress, pause)
            _check_header(plan)
            os.fsync(file)
            os.replace(plan.part, plan.blob)
            sync_folder(plan.blob.parent)
        plan.part.unlink(missing_ok=True)  # of a process that came second
    return _link(plan)


@contextmanager
def _held(plan: Plan) -> Iterator[int]:
    """The descriptor of the part, which no other process has; after another has finished it, that of the file."""
    while True:
        file = os.open(plan.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if lock(file) is False:
                raise LdmError(f"{plan.name}: another process is downloading it: wait until it is done", FAILED)
            if plan.blob.is_file() or (plan.part.exists() and os.path.samestat(os.fstat(file), plan.part.stat())):
                yield file
                return
        finally:
            os.close(file)


def _check_room(plan: Plan) -> None:
    need, free = plan.size - plan.have, plan.free
    if need > free:
        both = f"{plan.name}: {need / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free in {plan.cache}"
        raise LdmError(f"{both}: make room, or choose another place with HF_HUB_CACHE", "E5001")


def _fill_checked(plan: Plan, file: int, progress: Progress, pause: Callable[[float], object]) -> None:
    """Receive the file until its digest is right: what came in pieces gets a second chance, from nothing."""
    for _ in range(2):
        resumed = os.fstat(file).st_size > 0
        requests = _fill(plan, file, progress, pause)
        if digest(plan.part, plan.etag) == plan.etag:
            return
        os.ftruncate(file, 0)
        progress(-plan.size, plan.size)
        if requests == 1 and not resumed:
            break
    plan.part.unlink()
    what = f"{plan.name}: what was received has another digest than the Hub says ({plan.etag[:12]}...)"
    raise FileError(f"{what}: it was changed on the way and is thrown away: try again, or from another network", "E3010")


def _fill(plan: Plan, file: int, progress: Progress, pause: Callable[[float], object]) -> int:
    """Receive what is missing, with as many requests as it takes; how many they were."""
    hub, requests, idle, most = library(), 0, 0, os.fstat(file).st_size
    progress(most, plan.size)
    while (have := os.fstat(file).st_size) != plan.size:
        failure: Exception | None = None
        try:
            _receive(plan, file, have if have < plan.size else 0, hub, progress)
        except hub.errors.HTTPError as error:
            failure = error
        more, most = os.fstat(file).st_size > most, max(os.fstat(file).st_size, most)
        requests, idle = requests + 1, 0 if more else idle + 1
        if idle >= TRIES or not _passes(failure):
            raise _failed(plan, file, failure, hub)
        if os.fstat(file).st_size != plan.size:
            pause(min(2.0**idle, 30.0))
    return requests


def _passes(failure: Exception | None) -> bool:
    """Whether another try may go better."""
    status = getattr(getattr(failure, "response", None), "status_code", None)
    return status is None or status in PASSING


def _failed(plan: Plan, file: int, failure: Exception | None, hub: Any) -> LdmError:
    kept = f"{os.fstat(file).st_size:,} of {plan.size:,} bytes are kept, run it again to go on"
    if failure is None or not hasattr(failure, "response"):
        text = f" ({type(failure).__name__}: {str(failure)[:120]})" if failure else ""
        return LdmError(f"{plan.name}: the connection breaks off{text}: {kept}", FAILED)
    told = explain(failure, plan.name, hub)
    return type(told)(f"{told}; {kept}", told.code)


def _receive(plan: Plan, file: int, have: int, hub: Any, progress: Progress) -> None:
    """One request: the bytes from `have` on, or all where the server does not know ranges."""
    headers = hub.utils.build_hf_headers(library_name="ldm", library_version=ldm.__version__) | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with hub.utils.get_session().stream("GET", plan.url, headers=headers, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:
            os.ftruncate(file, 0)
            return
        if answer.status_code >= 400:
            hub.utils.hf_raise_for_status(answer)
        at = _start(plan, answer)
        if at > have:
            raise _Changed
        progress(at - os.fstat(file).st_size, plan.size)
        os.ftruncate(file, at)
        for piece in answer.iter_raw():
            at += len(piece)
            if at > plan.size:
                raise _Changed
            _append(file, piece, at - len(piece))
            progress(len(piece), plan.size)


def _start(plan: Plan, answer: Any) -> int:
    """Where the body of an answer begins in the file; raises _Changed where it is of another file."""
    for each in (*answer.history, answer):
        told = each.headers.get("X-Linked-Etag") or (None if answer.history else each.headers.get("ETag"))
        if told is not None and told.removeprefix("W/").strip('"') != plan.etag:
            raise _Changed
    if answer.status_code != 206:
        return 0
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", answer.headers.get("Content-Range", ""))
    if match is None or int(match[2]) != plan.size:
        raise _Changed
    return int(match[1])


def _append(file: int, piece: bytes, at: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def digest(path: Path, etag: str) -> str:
    """The digest of a file of the kind that `etag` is: sha256 in hex, or git's of a blob."""
    blob = f"blob {path.stat().st_size}\0".encode()
    made = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(blob, usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(2**22):
            made.update(piece)
    return made.hexdigest()


def _check_header(plan: Plan) -> None:
    """Refuse a file that is named as safetensors and is something else."""
    try:
        read_header(plan.part)
    except InputError as error:
        plan.part.unlink()
        raise FileError(str(error).replace(str(plan.part), str(plan.name)), error.code) from None


def _link(plan: Plan) -> Path:
    """Give the file its name in the cache, and the branch its commit."""
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    if not (plan.path.exists() and plan.path.samefile(plan.blob)):
        plan.path.unlink(missing_ok=True)
        try:
            plan.path.symlink_to(os.path.relpath(plan.blob, plan.path.parent))
        except OSError:  # a file system without symbolic links
            os.link(plan.blob, plan.path)
    if plan.name.revision != plan.commit:
        ref = repo_folder(plan.name.repo, plan.cache) / "refs" / plan.name.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, lambda file: file.write(plan.commit.encode()), overwrite=True)
    return plan.path


def _disk(plan: Plan, error: OSError) -> LdmError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room and run it again to go on" if full else "choose another place with HF_HUB_CACHE"
    kept = f" after {plan.have:,} of {plan.size:,} bytes, which are kept" if full else ""
    return LdmError(f"cannot write {error.filename or plan.cache}: {error.strerror or error}{kept}: {remedy}", "E5001")
