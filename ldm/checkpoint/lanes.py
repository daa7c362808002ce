"""The way of weights from a thread's reads to another device: one buffer is filled while another travels."""

from __future__ import annotations

import torch
from torch import Tensor


class Lane:
    """Of one thread, to any device: a buffer is filled, then sent, which is waited for."""

    def __init__(self, nbytes: int) -> None:
        self._buffer = torch.empty(nbytes, dtype=torch.uint8)

    def buffer(self, nbytes: int) -> Tensor:
        """Memory (nbytes,) to read into."""
        return self._buffer[:nbytes]

    def send(self, values: Tensor, target: Tensor) -> Tensor:
        """Put `values`, which stand in the buffer given last, into `target`, in its dtype; what remains there is whether all are finite."""
        target.copy_(values)
        return finite(target)

    def finish(self) -> None:
        """Wait until all has arrived."""


class CudaLane(Lane):
    """To a GPU, from pinned memory, on a stream of its own: what is sent is waited for when its buffer's turn comes again."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._left = [torch.cuda.Event(blocking=True) for _ in self._buffers]
        self._stream = torch.cuda.Stream(device)
        self._at = 0

    def buffer(self, nbytes: int) -> Tensor:
        self._at = (self._at + 1) % len(self._buffers)
        self._left[self._at].synchronize()
        return self._buffers[self._at][:nbytes]

    def send(self, values: Tensor, target: Tensor) -> Tensor:
        with torch.cuda.stream(self._stream):
            there = target if values.dtype == target.dtype else torch.empty_like(values, device=target.device)
            there.copy_(values, non_blocking=True)
            self._left[self._at].record(self._stream)
            if there is not target:
                target.copy_(there)
            return finite(target)

    def finish(self) -> None:
        self._stream.synchronize()


def lane(device: torch.device, nbytes: int) -> Lane:
    """A thread's lane to a device, for pieces of up to `nbytes`."""
    return CudaLane(nbytes, device) if device.type == "cuda" else Lane(nbytes)


def finite(values: Tensor) -> Tensor:
    """Whether all are: NaN is the largest of all."""
    return values.abs().amax().isfinite()
