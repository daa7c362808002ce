"""What a GPU does for a CUDA graph: room, order, and the recording itself. Not run on a GPU yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

ROOM = 2**32  # bytes that must be free for another graph: it keeps its intermediate results to itself
_RECORDING = threading.Lock()  # one at a time in a process: the allocator gives no memory back meanwhile


class Recorder(Protocol):
    """The device's part of the graphs of one module."""

    device: torch.device

    def free(self) -> bool:
        """Whether the caller records nothing here himself."""

    def room(self) -> bool:
        """Whether another graph may be kept."""

    def turn(self) -> AbstractContextManager[None]:
        """A block whose work on the device comes after that of the block before, whichever stream that was on."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """What replays `run`, and the tensor that it then fills anew."""


class Cuda:
    """Of a GPU: recorded on a stream of their own, in one pool of memory, so they must be replayed one at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._stream, self._over, self._pool = torch.cuda.Stream(), torch.cuda.Event(), torch.cuda.graph_pool_handle()

    def free(self) -> bool:
        return not torch.cuda.is_current_stream_capturing()

    def room(self) -> bool:
        from ldm.checkpoint.memory import free_memory

        free = free_memory(self.device)
        return free is None or free >= ROOM

    @contextmanager
    def turn(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._over)
            try:
                yield
            finally:
                self._over.record(stream)

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """`run` is called twice: first as it is, so that whatever is made at a first call on this stream is there when it is recorded."""
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            run()
        with _RECORDING:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            graph, out = self._recorded(run)
        before.wait_stream(self._stream)
        return graph.replay, out

    def _recorded(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """As torch.cuda.graph does it, which would stay on this stream where it fails."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # other threads may go on
                out = run()
                graph.capture_end()
            except BaseException:
                with suppress(Exception):
                    graph.capture_end()
                self._mend()
                raise
        return graph, out

    def _mend(self) -> None:
        """After a recording that failed torch before 2.12 believes that it goes on (pytorch/pytorch#180395): its allocator would give no
        memory back, its generator no numbers. The pool is closed for it, and a recording that succeeds ends the other.
        """
        with suppress(Exception):  # it is closed
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
        with suppress(Exception):
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=self.device)
            graph.capture_end()
