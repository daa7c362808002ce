"""The one way to write a file: temporary name in the same folder, fsync, rename, fsync of the folder; and a look at one that never waits.

A reader sees the old file, or the whole new one, or none; never a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".ldm.part"  # how the name of a temporary file ends


def beginning(path: str | os.PathLike[str], most: int) -> bytes:
    """The first `most` bytes of a regular file; none of a pipe, a device or a folder, which is not waited for. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
            _publish(temporary, target, overwrite)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return path


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
    """Bring the names in a folder to the disk."""
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
