"""The one way to write a file: temporary name in the same folder, fsync, rename, fsync of the folder; and a look at one that never waits.

A reader sees the old file, or the whole new one, or none; never a part.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".ldm.part"  # how the name of a temporary file ends
# For reading, without waiting for a pipe's other end. Windows has bytes to ask for instead, and neither preadv, pread nor fchmod.
READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_SEEKING = threading.Lock()


def read_into(descriptor: int, memory: memoryview, offset: int) -> int:
    """Fill `memory` with what an open file has from `offset` on; the number of bytes, from several threads at once. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return io.FileIO(descriptor, closefd=False).readinto(memory)


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes of an open file from `offset` on, as `read_into`."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)


def name_of(path: str | Path) -> str:
    """A file's own name as text, whatever bytes it is made of."""
    return os.fsencode(Path(path).name).decode("utf-8", "replace")


def beginning(path: str | os.PathLike[str], most: int) -> bytes:
    """The first `most` bytes of a regular file; none of a pipe, a device or a folder, which is not waited for. Raises OSError."""
    descriptor = os.open(path, READ)
    try:
        return os.read(descriptor, most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def write_atomic(path: Path, write: Callable[[BinaryIO], object], *, overwrite: bool) -> Path:
    """Call `write(file)` and put the result at `path`.

    Raises FileExistsError when `path` exists and `overwrite` is false (the check and the naming are one step, so two
    processes cannot both succeed), and OSError from the disk, or when `path` is a pipe or a device; then nothing is left behind. A link
    that is overwritten stays a link: the file that it names is replaced. While the temporary file is open it is locked, so that
    `jobs.leftovers` can tell one whose writer was killed.
    """
    target = Path(os.path.realpath(path)) if overwrite else path
    if overwrite and target.exists() and not (target.is_file() or target.is_dir()):  # a rename would put a file in the place of a device
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    descriptor, temporary = _temporary(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
            _publish(temporary, target, overwrite)
    finally:
        with contextlib.suppress(OSError):  # `jobs.leftovers` removes it later
            temporary.unlink(missing_ok=True)
    _sync_name(target, overwrite)
    return path


def _sync_name(target: Path, overwrite: bool) -> None:
    try:
        sync_folder(target.parent)
    except OSError:
        if not overwrite:
            target.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Make `folder` with its parents, on the disk; OSError where the disk refuses."""
    fresh = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(fresh):
        sync_folder(each.parent)


def _temporary(target: Path) -> tuple[int, Path]:
    """A new file beside `target`, open and locked."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=PART)  # up to 4 bytes a character
        locked = lock(descriptor)
        if locked is None or (locked and os.fstat(descriptor).st_nlink):
            return descriptor, Path(name)
        os.close(descriptor)  # taken for a leftover in the moment before it was locked


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file for as long as it is open, or its process lives: False where another one has it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def _umask() -> int:
    """What new files lack of mode 666; asked of the system where it tells, since setting it would concern all threads for a moment."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    current = os.umask(0)
    os.umask(current)
    return current


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # fails when the name is taken, which rename does not
    except FileExistsError:
        raise
    except OSError:  # file systems without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; OSError where the disk fails at it. Some systems cannot open a folder, or sync one."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)
