"""Weights that are in memory while they work: blocks of a network come from its file one after the other, the next while one works.

The network is wrapped from outside: the calls of the blocks in turn, and the call of the network around them. Results are those of
weights that stay, to the bit. Callers of several threads wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.loading import DTYPES, Part, Place, copies, flat_size, last_channels, views
from ldm.checkpoint.reading import allocate, read
from ldm.checkpoint.safetensors import Header
from ldm.runtime.paths import Member

State = dict[str, Tensor]


class Block:
    """Weights of a module that come and go together."""

    def __init__(self, part: Part, member: Member, places: Sequence[Place]) -> None:
        self.places = places
        self.dtype = part.dtype
        self.size = flat_size(places, part.dtype)
        self.held: State | None = None  # as the file has them
        spots = {place.name: place.name.rpartition(".") for place in places}
        self.spots = {name: (part.module.get_submodule(owner), leaf) for name, (owner, _, leaf) in spots.items()}
        self.empty = {name: owner._parameters[leaf] for name, (owner, leaf) in self.spots.items()}

    def hold(self, header: Header, dtype: torch.dtype) -> None:
        """Keep them in `dtype`, which is the file's."""
        self.held = views(allocate(flat_size(self.places, dtype), torch.device("cpu")), self.places, dtype)
        read(header, copies(self.places, self.held))

    def enter(self, state: State) -> None:
        for name, (owner, leaf) in self.spots.items():
            owner._parameters[leaf] = nn.Parameter(state[name], requires_grad=False)

    def leave(self) -> None:
        for name, (owner, leaf) in self.spots.items():
            owner._parameters[leaf] = self.empty[name]


class Chain:
    """Blocks in the order in which they work. Two of them are in memory: the one that works, and the next."""

    def __init__(self, header: Header, blocks: Sequence[Block], device: torch.device, lock: Any) -> None:
        self.header, self.blocks, self.lock = replace(header, young=False), blocks, lock  # the load has seen to its youth
        self.transfer = Transfer(device)
        self.pool = ThreadPoolExecutor(1, "ldm-weights")  # one thread: what is asked first is read first
        self.slots: list[Tensor] = []
        self.ahead: tuple[int, Future[State]] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Room for the blocks, once for the calls inside each other."""
        with self.lock:
            outer = not self.slots
            try:
                if outer:
                    self._open()
                yield
            finally:
                if outer:
                    self._close()

    @contextmanager
    def present(self, n: int) -> Iterator[None]:
        """Block n in memory; the next is read meanwhile."""
        with self.running():
            state = self._take(n)
            try:
                self.blocks[n].enter(state)
                if n + 1 < len(self.blocks):
                    self.ahead = n + 1, self._ask(n + 1)
                yield
            finally:
                self.blocks[n].leave()
                self.transfer.mark()

    def _open(self) -> None:
        largest = max(block.size for block in self.blocks)
        with torch.inference_mode(mode=False):
            self.slots = [allocate(largest, self.transfer.device) for _ in self.blocks[:2]]
            self.transfer.open(largest)

    def _close(self) -> None:
        """What is still being read is waited for, so that its memory goes too."""
        asked, self.ahead = self.ahead, None
        try:
            if asked is not None and not asked[1].cancel():
                wait([asked[1]])
        finally:
            self.slots = []
            self.transfer.close()

    def _take(self, n: int) -> State:
        asked, self.ahead = self.ahead, None
        if asked is None or asked[0] != n:
            if asked is not None:
                wait([asked[1]])
            asked = n, self._ask(n)
        try:
            return asked[1].result()
        except BaseException:
            self.ahead = asked  # `_close` waits for it
            raise

    def _ask(self, n: int) -> Future[State]:
        return self.pool.submit(_bring, self.header, self.blocks[n], self.slots[n % len(self.slots)], self.transfer)


class Transfer:
    """From the file to a GPU: by way of pinned memory, on a stream of its own. Not measured. To the CPU there is no way to go."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pinned: Tensor | None = None
        self.free: Any = None  # when what worked last has left its slot

    def open(self, size: int) -> None:
        if self.side is not None:
            self.pinned = torch.empty(2 * size, dtype=torch.uint8, pin_memory=True)  # a file may be twice as wide as what it becomes
            self.mark()

    def close(self) -> None:
        self.pinned = None

    def mark(self) -> None:
        """The slot that was in use can be written, as soon as the work that is asked for so far is done."""
        if self.side is not None:
            self.free = torch.cuda.current_stream(self.device).record_event()

    def send(self, source: State, target: State) -> None:
        """On the worker's thread, which waits until all is there."""
        self.side.wait_event(self.free)
        with torch.cuda.stream(self.side):
            for name, tensor in target.items():
                tensor.copy_(source[name].to(self.device, non_blocking=True))
            last_channels(target)
        self.side.synchronize()


def _bring(header: Header, block: Block, slot: Tensor, transfer: Transfer) -> State:
    """The weights of a block in `slot` (bytes,), in the dtype in which they compute."""
    state = views(slot[: block.size], block.places, block.dtype)
    if block.held is not None:
        for name, tensor in state.items():
            tensor.copy_(block.held[name])
    elif transfer.pinned is None:
        read(header, copies(block.places, state))
    else:
        source = views(transfer.pinned, block.places, _sent_in(block))
        read(header, copies(block.places, source))
        transfer.send(source, state)
    return state


def _sent_in(block: Block) -> torch.dtype:
    """The file's dtype where it has one of the usual width, or else that of the block."""
    found = {DTYPES[place.entry.dtype] for place in block.places}
    first = found.pop()
    return block.dtype if found or first.itemsize > 4 else first
