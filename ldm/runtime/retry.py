"""Out of memory: how it is recognised, and one more try along a stated path, when everything of the first try is let go."""

from __future__ import annotations

import errno
import gc
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from ldm.checkpoint.memory import free_memory, size
from ldm.errors import MemoryNeedError
from ldm.runtime.notes import note

T = TypeVar("T")
# torch's allocator on the CPU ("can't allocate", "not enough"), C++'s own, the system's, CUDA's, cuBLAS's and cuDNN's
SIGNS = re.compile(r"can't allocate memory|not enough memory|bad_alloc|cannot allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
ADVICE = "take a smaller width and height, a smaller batch, or dtype bfloat16"
AGAIN = "trying again when everything else is let go"


def once_more(stage: str, run: Callable[[], T], again: Callable[[], T], path: str = AGAIN) -> T:
    """What `run` gives; where memory runs out in it, what `again` gives, after a note that says the `path`.

    Raises MemoryNeedError where memory runs out a second time; other errors pass.
    """
    try:
        return run()
    except Exception as error:
        said = _let_go(error)
    # outside the `except`: nothing holds the frames of the first try now
    free_unused()
    note(f"{stage}: out of memory{said}: {path}", RuntimeWarning)
    with named(stage):
        return again()


def down(stage: str, ways: Sequence[tuple[str, Callable[[], T]]]) -> T:
    """What the first of the ways gives; where memory runs out, what the next one does, after a note that has its words."""
    (_, run), *rest = ways
    return once_more(stage, run, partial(down, stage, rest), rest[0][0]) if rest else run()


@contextmanager
def named(stage: str, advice: str = ADVICE) -> Iterator[None]:
    """Raises MemoryNeedError, naming the stage, where memory runs out in the block; other errors pass."""
    try:
        yield
        return
    except Exception as error:
        said = _let_go(error)
    free_unused()
    raise MemoryNeedError(f"{stage}: out of memory{said}: {advice}", "E4002")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, numpy, Python or the system says so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and SIGNS.search(str(error)) is not None


def free_unused() -> None:
    """Give back what nothing refers to any more, and on a GPU what torch keeps for later."""
    from ldm.runtime import graph

    graph.forget()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _let_go(error: Exception) -> str:
    """The amounts that an error of memory names, when its frames hold nothing any more. Any other error is raised."""
    if not is_out_of_memory(error):
        raise error
    said = amounts(str(error))
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__context__
    return said


def amounts(message: str) -> str:
    """ " (what was asked for, what is free)", as far as torch's message says."""
    asked = re.search(r"tried to allocate ([0-9.]+) (\w+)", message, re.IGNORECASE)
    if asked is None:
        return ""
    free = re.search(r"of which ([0-9.]+ \w+) is free", message)
    amount = size(int(asked[1])) if asked[2] == "bytes" and asked[1].isdigit() else f"{asked[1]} {asked[2]}"
    left = free_memory() if asked[2] == "bytes" else None
    rest = free[1] if free else size(left) if left is not None else ""
    return f" ({amount} more asked for" + (f", {rest} free)" if rest else ")")
