"""The C library's memory: how much of what is freed stays with the process. Elsewhere than with glibc nothing happens here."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 2**27  # bytes that stay at the end of the heap, at most: less than that, and pages come and go all the time
MAPPED = 2**24  # bytes from which on an allocation is always given back
TIGHT = 2**22  # the same where memory has a limit: measured, a quarter more time for small maps, and nothing is left to chance


def settle(mapped: int = MAPPED) -> None:
    """Two limits that would grow with what is freed, to where what stays is up to chance: between 0.1 and 0.6 GB after a decode."""
    _call("mallopt", MMAP_THRESHOLD, mapped)
    _call("mallopt", TRIM_THRESHOLD, KEPT)


def trim() -> None:
    """Give back what can be given back."""
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process
        getattr(ctypes.CDLL(None), name)(*numbers)
