"""Bytes of a file into memory of our own: parallel reads of small pieces, converted on the way. No file is mapped.

A file that is cut or rewritten afterwards changes nothing; one that changes while it is read is an error.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint.safetensors import Header, stamp
from ldm.errors import InputError

ALIGN = 64  # bytes: where each tensor begins in its module's memory
PIECE = 2**20  # bytes of file that are read and converted at once on the CPU: they stay in the cache between the two
DEVICE_PIECE = 2**24  # bytes of file that travel to another device at once
TASK = 2**25  # bytes of file that a worker takes at a time
WORKERS = 8
HUGE = 2**22  # bytes: allocations from here on ask for huge pages


@dataclass(frozen=True)
class Copy:
    """`start` and what follows in the file, of `dtype`, fills `target` (1-D, contiguous)."""

    start: int
    dtype: torch.dtype
    target: Tensor

    @property
    def nbytes(self) -> int:
        return self.target.numel() * self.dtype.itemsize


def allocate(nbytes: int, device: torch.device) -> Tensor:
    """One flat allocation (nbytes,) uint8, in huge pages where the system has them: a quarter of the page faults' time is left."""
    if device.type != "cpu" or nbytes < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no file behind it
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def read(header: Header, copies: Sequence[Copy], progress: Callable[[int], None] | None = None) -> None:
    """Carry out all copies. `progress(n)` says that n more bytes of the file are read, from the caller's thread.

    Raises InputError when the file cannot be read or is not the one that the header was read from, before or after.
    """
    before = torch.get_num_threads()
    workers = min(WORKERS, max(os.cpu_count() or 1, 2))
    with _Source(header) as source, ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        source.check()
        try:
            for count in pool.map(source.read, _tasks(copies)):
                if progress is not None:
                    progress(count)
        finally:
            torch.set_num_threads(before)  # a worker's setting is the default of threads to come
        source.check()


def _tasks(copies: Sequence[Copy]) -> list[list[Copy]]:
    """Pieces in the order of the file, in lists of about TASK bytes."""
    pieces = itertools.chain.from_iterable(_pieces(copy) for copy in sorted(copies, key=lambda copy: copy.start))
    tasks: list[list[Copy]] = []
    room = 0
    for piece in pieces:
        if room < piece.nbytes:
            tasks.append([])
            room = TASK
        tasks[-1].append(piece)
        room -= piece.nbytes
    return tasks


def _pieces(copy: Copy) -> Iterator[Copy]:
    count = (PIECE if copy.target.device.type == "cpu" else DEVICE_PIECE) // copy.dtype.itemsize
    for i, target in enumerate(copy.target.split(count)):
        if target.numel():
            yield Copy(copy.start + i * count * copy.dtype.itemsize, copy.dtype, target)


class _Source:
    """An open file that must stay as its header was read; `read` may be called from several threads."""

    def __init__(self, header: Header) -> None:
        self.path: Path = header.path
        self.stamp = header.stamp
        self.local = threading.local()

    def __enter__(self) -> _Source:
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be opened ({error.strerror}): check its permissions") from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def check(self) -> None:
        if stamp(os.fstat(self.descriptor)) != self.stamp:
            raise InputError(f"{self.path}: the file changed while it was being read: run again when it is written")

    def read(self, pieces: Sequence[Copy]) -> int:
        for piece in pieces:
            self._read_one(piece)
        return sum(piece.nbytes for piece in pieces)

    def _read_one(self, piece: Copy) -> None:
        target = piece.target
        if target.device.type == "cpu" and target.dtype == piece.dtype:
            self._fill(target.view(torch.uint8), piece.start)
            return
        scratch = self._scratch(piece.nbytes, pinned=target.device.type == "cuda")
        self._fill(scratch, piece.start)
        values = scratch.view(piece.dtype)
        if target.device.type == "cpu":
            target.copy_(values)
            return
        target.copy_(values.to(target.device, non_blocking=True))
        if target.device.type == "cuda":
            torch.cuda.current_stream(target.device).synchronize()  # the scratch is written again

    def _scratch(self, nbytes: int, *, pinned: bool) -> Tensor:
        """The thread's own buffer, at least as large as a piece; the other threads read while this one is on its way to the device."""
        held: Tensor | None = getattr(self.local, "scratch", None)
        if held is None or held.numel() < nbytes:
            held = self.local.scratch = torch.empty(max(nbytes, PIECE), dtype=torch.uint8, pin_memory=pinned)
        return held[:nbytes]

    def _fill(self, memory: Tensor, start: int) -> None:
        """All of `memory` (uint8, on the CPU) from the file at `start`."""
        view = memory.numpy().data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.descriptor, [view[done:]], start + done)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read at byte {start + done:,} ({error.strerror}): check the disk") from None
            if count == 0:
                raise InputError(f"{self.path}: the file changed while it was being read (it now ends at byte {start + done:,}): run again")
            done += count
