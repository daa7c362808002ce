"""Bytes of a file into memory of our own: parallel reads of small pieces, converted on the way. No file is mapped.

A file that is cut or rewritten afterwards changes nothing; one that changes while it is read is an error, and so are values that are
not finite in the dtype that they end in.

What is not seen: a rewrite that puts the file's time back to the nanosecond, and one by way of a shared map whose pages were already
dirty when the reading began. `digests.verify` finds either.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint.finite import Fault, count, doubtful, refuse
from ldm.checkpoint.lanes import Lane, lane
from ldm.checkpoint.safetensors import MAX_HEADER, TICK, Header, read_header, stamp
from ldm.errors import FileError
from ldm.files import READ, read_into

ALIGN = 64  # bytes: where each tensor begins in its module's memory
PIECE = 2**20  # bytes of file that are read and converted at once on the CPU: they stay in the cache between the two
DEVICE_PIECE = 2**23  # bytes of file that travel to another device at once, in each of two buffers a worker
TASK = 2**25  # bytes of file that a worker takes at a time
WORKERS = 8
HUGE = 2**22  # bytes: allocations from here on ask for huge pages


@dataclass(frozen=True)
class Copy:
    """`start` and what follows in the file, a part of the tensor `name`, of `dtype`, fills `target` (1-D, contiguous)."""

    name: str
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

    Raises FileError when the file cannot be read, is not the one that the header was read from, before or after (E3009), or holds values
    that are not finite (E3008).
    """
    before = torch.get_num_threads()
    workers = min(WORKERS, max(os.cpu_count() or 1, 2))
    _rest(copies)
    with _Source(header) as source, ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        source.settle()
        try:
            for nbytes in pool.map(source.read, _tasks(copies)):
                if progress is not None:
                    progress(nbytes)
            faults = [fault for fault in pool.map(source.count, source.doubts()) if fault is not None]
        finally:
            torch.set_num_threads(before)  # a worker's setting is the default of threads to come
        source.check()
    refuse(header, faults)


def _rest(copies: Sequence[Copy]) -> None:
    """Wait for what GPUs may still do in the memory that was allocated: it is filled from other streams."""
    for device in {copy.target.device for copy in copies if copy.target.is_cuda}:
        torch.cuda.synchronize(device)


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
    size = (PIECE if copy.target.device.type == "cpu" else DEVICE_PIECE) // copy.dtype.itemsize
    for i, target in enumerate(copy.target.split(size)):
        if target.numel():
            yield Copy(copy.name, copy.start + i * size * copy.dtype.itemsize, copy.dtype, target)


class _Source:
    """An open file that must stay as its header was read; `read` may be called from several threads."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.path: Path = header.path
        self.local = threading.local()
        self.found: list[tuple[Copy, Tensor | None]] = []  # pieces to be counted; on a device, unless the flag beside them is set
        self.lanes: list[Lane] = []

    def __enter__(self) -> _Source:
        try:
            self.descriptor = os.open(self.path, READ)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be opened ({error.strerror}): check its permissions", "E3001") from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self.arrive()

    def arrive(self) -> None:
        """Wait for what is on its way to a device: its memory may be given back after an error."""
        for each in self.lanes:
            each.finish()

    def settle(self) -> None:
        """`check`; where the header was read too soon for its date to tell, wait for the clock's next tick and look at it again."""
        self.check()
        if self.header.young:
            age = time.time_ns() - self.header.stamp[-1]
            time.sleep(max(TICK - age, 0) / 1e9)
            self._compare()

    def _compare(self) -> None:
        """The header again: it was perhaps read before a change that has the same date."""
        try:
            same = read_header(self.path, max(MAX_HEADER + 1, self.header.data_start)) == self.header
        except FileError:
            same = False
        if not same:
            raise self._changed()

    def check(self) -> None:
        if stamp(os.fstat(self.descriptor)) != self.header.stamp:
            raise self._changed()

    def _changed(self) -> FileError:
        return FileError(f"{self.path}: the file changed while it was being read: run again when it is written", "E3009")

    def read(self, pieces: Sequence[Copy]) -> int:
        for piece in pieces:
            self._read_one(piece)
        return sum(piece.nbytes for piece in pieces)

    def _read_one(self, piece: Copy) -> None:
        target = piece.target
        if target.device.type != "cpu":
            self._read_device(piece)
            return
        values = target if target.dtype == piece.dtype else self._scratch(piece.nbytes).view(piece.dtype)
        self._fill(values.view(torch.uint8), piece.start)
        narrow = values.dtype == target.dtype or values.itemsize < target.itemsize  # a wider dtype holds all values of a narrower one
        doubt = narrow and doubtful(values)  # before the copy, which would drive them from the cache
        if values is not target:
            target.copy_(values)
        if doubt or (not narrow and doubtful(target)):
            self.found.append((piece, None))

    def _read_device(self, piece: Copy) -> None:
        way: Lane | None = getattr(self.local, "lane", None)
        if way is None:
            way = self.local.lane = lane(piece.target.device, DEVICE_PIECE)
            self.lanes.append(way)
        scratch = way.buffer(piece.nbytes)
        self._fill(scratch, piece.start)
        self.found.append((piece, way.send(scratch.view(piece.dtype), piece.target)))  # the flag stays there until all is read

    def doubts(self) -> list[Copy]:
        """The pieces that must be counted, in the order of the file."""
        self.arrive()
        flags = [flag for _, flag in self.found if flag is not None]
        fine = iter(torch.stack(flags).tolist() if flags else ())
        return sorted((piece for piece, flag in self.found if flag is None or not next(fine)), key=lambda piece: piece.start)

    def count(self, piece: Copy) -> Fault | None:
        scratch = self._scratch(piece.nbytes)
        self._fill(scratch, piece.start)
        at = (piece.start - self.header.tensors[piece.name].start) // piece.dtype.itemsize
        return count(piece.name, at, scratch.view(piece.dtype), piece.target)

    def _scratch(self, nbytes: int) -> Tensor:
        """The thread's own buffer, at least as large as a piece."""
        held: Tensor | None = getattr(self.local, "scratch", None)
        if held is None or held.numel() < nbytes:
            held = self.local.scratch = torch.empty(max(nbytes, PIECE), dtype=torch.uint8)
        return held[:nbytes]

    def _fill(self, memory: Tensor, start: int) -> None:
        """All of `memory` (uint8, on the CPU) from the file at `start`."""
        view = memory.numpy().data
        done = 0
        while done < len(view):
            try:
                nbytes = read_into(self.descriptor, view[done:], start + done)
            except OSError as error:
                what = f"cannot be read at byte {start + done:,} ({error.strerror}): check the disk"
                raise FileError(f"{self.path}: {what}", "E3009") from None
            if nbytes == 0:
                what = f"the file changed while it was being read (it now ends at byte {start + done:,}): run again"
                raise FileError(f"{self.path}: {what}", "E3009")
            done += nbytes
