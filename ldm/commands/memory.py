"""Memory that ran out in the middle of the work, said in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ldm.checkpoint.memory import free_memory
from ldm.commands.progress import size
from ldm.errors import MemoryNeedError


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Turns the errors with which torch, numpy and Python say that memory is out into a MemoryNeedError: "`what` ...: `remedy`"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_about_memory(error):
            raise
        raise MemoryNeedError(f"{what}: not enough memory{_amounts(str(error))}: {remedy}") from error


def _is_about_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return re.search(r"can't allocate memory|out of memory|cannot allocate memory", str(error), re.IGNORECASE) is not None


def _amounts(message: str) -> str:
    """What was asked for and what is free, as far as they are known."""
    asked = re.search(r"tried to allocate ([0-9.]+) (\w+)", message, re.IGNORECASE)
    if asked is None:
        return ""
    free = re.search(r"of which ([0-9.]+ \w+) is free", message)
    amount = size(int(asked[1])) if asked[2] == "bytes" and asked[1].isdigit() else f"{asked[1]} {asked[2]}"
    left = free_memory() if asked[2] == "bytes" else None
    rest = free[1] if free else size(left) if left is not None else ""
    return f" ({amount} more asked for" + (f", {rest} free)" if rest else ")")
