"""Counts the bytes that tensors hold, from outside: every allocation that torch makes in a `with` block is seen as it comes and goes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Tracker(TorchDispatchMode):
    """Bytes in storages that were allocated inside: `live` now, `peak` at most. Tensors on the meta device are counted as if real."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.allocations = 0
        self._known: dict[int, weakref.ref[Any]] = {}  # by the storage's identity

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Or torch would import its compiler, which takes longer than a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors((args, kwargs)):
            self._see(tensor, 0)  # made before the block: not of its making
        out = func(*args, **kwargs)
        for tensor in tensors(out):
            self._see(tensor, held(tensor))
        return out

    def _see(self, tensor: Tensor, nbytes: int) -> None:
        storage = tensor if opaque(tensor) else tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key, nbytes))
        if nbytes:
            self.allocated(nbytes)

    def allocated(self, nbytes: int) -> None:
        """A new storage; what is raised here is raised from the operation that asked for it."""
        self.allocations += 1
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def forgotten(self, nbytes: int) -> None:
        """A storage of its own that is gone."""
        self.live -= nbytes

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.pop(key, None)
        self.forgotten(nbytes)


def opaque(tensor: Tensor) -> bool:
    """Whether its bytes are a library's own affair: oneDNN's layouts have no storage to look at."""
    return str(tensor.layout) == "torch._mkldnn"


def held(tensor: Tensor) -> int:
    """Bytes of a tensor's storage."""
    return tensor.numel() * tensor.element_size() if opaque(tensor) else tensor.untyped_storage().nbytes()


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, Mapping):
        yield from tensors(tuple(value.values()))
