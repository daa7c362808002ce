"""The one way to write a file: temporary name in the same folder, fsync, rename, fsync of the folder.

A reader sees the old file, or the whole new one, or none; never a part.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], object], *, overwrite: bool) -> Path:
    """Call `write(file)` and put the result at `path`.

    Raises FileExistsError when `path` exists and `overwrite` is false (the check and the naming are one step, so two
    processes cannot both succeed), and OSError from the disk; in both cases nothing is left behind. A link that is overwritten stays
    a link: the file that it names is replaced.
    """
    target = Path(os.path.realpath(path)) if overwrite else path
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part")  # up to 4 bytes a character
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        _publish(temporary, target, overwrite)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return path


def _umask() -> int:
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


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
