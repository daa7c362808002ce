"""Temporary files whose writers were killed are removed; those of living ones never."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ldm.files import PART, lock

_NAME = re.compile(rf"\..{{0,40}}\.[a-z0-9_]{{8}}{re.escape(PART)}", re.DOTALL)


def sweep(folder: Path) -> int:
    """Remove what dead writers left in `folder`, not in those below; the number of files. Where there are no locks nothing is removed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    return sum(_remove(folder / name) for name in names if _NAME.fullmatch(name))


def _remove(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone meanwhile, a link, or another user's
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not lock(descriptor):
            return False
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
