"""CUDA graphs, from outside: a module's call is recorded once a shape, then replayed, its kernels back to back without Python between.

What is recorded reads fixed places alone: inputs of its own, into which each call's are copied, and the weights where they stood. So
nothing of a call is baked in but its shapes; graphs are dropped where a weight is written to or stands elsewhere; and what Python does on
the way, as hooks do, is not replayed: where there are any, and wherever else a graph would be in the way, calls are made as they are.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ldm import ops
from ldm.ops import choice
from ldm.runtime.notes import note
from ldm.runtime.recording import Cuda, Recorder

if TYPE_CHECKING:
    from ldm.models.prepared import Prepared
    from ldm.models.unet import UNet
    from ldm.models.vae import VAE

KEPT = 8  # graphs a module: the last shapes that were met

Run = Callable[..., Tensor]
Forward = Callable[[Tensor, "Prepared", int], Tensor]
_OFF = ContextVar("ldm_runtime_graph_off", default=False)


@contextmanager
def off() -> Iterator[None]:
    """Replay nothing, in this thread or task alone."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


class Graphs:
    """The graphs of one module. Several threads may call: while one of them has the graphs, the others' calls are made as they are."""

    def __init__(self, module: nn.Module, recorder: Recorder, name: str) -> None:
        self._recorder, self._name, self.device = recorder, name, recorder.device
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Graph | None] = OrderedDict()  # None: a shape that was met once
        self._weights, self._failed, self._crowded = Weights(module), False, False

    def ready(self, module: nn.Module) -> bool:
        """To be asked before a run: whether the module may be replayed. Graphs of weights that have changed are dropped."""
        if self._weights.changed():
            with self._lock:
                self._kept.clear()
                self._weights, self._failed = Weights(module), False
        return self._weights.still()

    def forget(self) -> None:
        """Drop all graphs, and what they hold of the device's memory."""
        with self._lock:
            self._kept.clear()

    def __call__(self, run: Run, *args: Any) -> Tensor:
        """`run(*args)`, where tensors stand in dataclasses, lists and tuples; of one shape the second call is recorded, to be replayed."""
        if _may_replay() and self._recorder.free() and self._lock.acquire(blocking=False):
            try:
                out = self._replayed(run, args)
            finally:
                self._lock.release()
            if out is not None:
                return out
        return run(*args)

    def _replayed(self, run: Run, args: Sequence[Any]) -> Tensor | None:
        """None where there is no graph: this is the first call of its shape, or one of a module that cannot be recorded."""
        if self._failed:
            return None
        tensors: list[Tensor] = []
        key = (_described(args, tensors), tuple(sorted(choice.named().items())))
        met, found = key in self._kept, self._kept.pop(key, None)
        self._kept[key] = found
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        if not met:
            return None
        with self._recorder.turn():
            graph = found or self._recorded(key, run, args)
            return None if graph is None else graph(tensors)

    def _recorded(self, key: Hashable, run: Run, args: Sequence[Any]) -> _Graph | None:
        if not self._recorder.room():
            self._say_crowded()
            return None
        try:
            with torch.inference_mode(mode=False), torch.no_grad():  # or its places could not be filled outside
                made = self._kept[key] = _Graph(self._recorder, run, args)
            return made
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        self._failed = True
        note(f"{self._name}: no CUDA graph can be recorded ({said}): it runs without one, slower", RuntimeWarning)
        return None

    def _say_crowded(self) -> None:
        """Once a module."""
        if not self._crowded:
            note(f"{self._name}: too little of the GPU's memory is free for a CUDA graph: it runs without one, slower")
        self._crowded = True


class _Graph:
    """One recording, with the places that it reads."""

    def __init__(self, recorder: Recorder, run: Run, args: Sequence[Any]) -> None:
        self._places: list[Tensor] = []
        placed = [_placed(each, self._places) for each in args]
        self._known: list[_Known] = [_UNKNOWN] * len(self._places)
        self._replay, self._out = recorder.record(partial(run, *placed))

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The result with these in the places; what stands there since the last call is not copied again."""
        fresh = [at for at, tensor in enumerate(tensors) if not _knows(self._known[at], tensor)]
        if fresh:
            torch._foreach_copy_([self._places[at] for at in fresh], [tensors[at] for at in fresh])
        for at in fresh:
            self._known[at] = _UNKNOWN if tensors[at].is_inference() else (weakref.ref(tensors[at]), _version(tensors[at]))
        self._replay()
        return self._out.clone()


_Known = tuple[Callable[[], Tensor | None], int]  # a tensor while it lives, and how often it had been changed
_UNKNOWN: _Known = (lambda: None, 0)


class Weights:
    """What a module is made of and where its weights stand; to be asked once a run, so the way to all of them is kept."""

    def __init__(self, module: nn.Module) -> None:
        inside = list(module.modules())
        self._held: list[dict[str, Any]] = [held for each in inside for held in (each._parameters, each._buffers, each._modules)]
        self._hooks = [hooks for each in inside for hooks in (each._forward_hooks, each._forward_pre_hooks)]
        self._seen = self._look()

    def changed(self) -> bool:
        return self._look() != self._seen

    def still(self) -> bool:
        """Whether all are in memory, not to come when their turn does, and no hook looks on."""
        return (0, 0) not in self._seen and not any(self._hooks) and not _has_any_global_hook()

    def _look(self) -> list[tuple[int, int]]:
        """Where each stands, and how often it was written to: what an operation keeps that was made of it is then made again, elsewhere."""
        things = [thing for held in self._held for thing in held.values()]
        return [(thing.data_ptr(), _version(thing)) if isinstance(thing, Tensor) else (id(thing), 0) for thing in things]


_ALL: weakref.WeakKeyDictionary[nn.Module, Graphs] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def forward(unet: UNet) -> Forward:
    """`unet(x, prepared, i)` for one run, replayed where that can be."""
    graphs = _graphs(unet, "UNet")
    if graphs is None:
        return unet

    def evaluated(x: Tensor, prepared: Prepared) -> Any:
        return unet(x, prepared, 0)

    return lambda x, prepared, i: graphs(evaluated, x, replace(prepared, shifts=[prepared.shifts[i]]))


def decoded(vae: VAE, z: Tensor) -> Tensor:
    """`vae.decode(z)`, replayed where that can be."""
    graphs = _graphs(vae, "VAE")
    return vae.decode(z) if graphs is None else graphs(vae.decode, z)


def forget() -> None:
    """Drop the graphs of all modules: their memory is wanted, or their weights go."""
    for graphs in list(_ALL.values()):
        graphs.forget()


def _graphs(module: nn.Module, name: str) -> Graphs | None:
    """The module's graphs; None where it stands on no GPU, or Python looks on."""
    device = next(module.parameters()).device
    if device.type != "cuda":
        return None
    with _MAKING:
        found = _ALL.get(module)
        if found is None or found.device != device:
            found = _ALL[module] = Graphs(module, Cuda(device), name)
    return found if found.ready(module) else None


def _may_replay() -> bool:
    """Whether a replay would be what the caller asks for: nobody counts or changes what runs, and nobody wants gradients of it."""
    seen = torch._C._len_torch_dispatch_stack() or torch.is_autocast_enabled("cuda")
    return not (seen or torch.is_grad_enabled() or _OFF.get() or ops.use_reference())


def _described(value: Any, tensors: list[Tensor]) -> Hashable:
    """All of a value but its tensors' contents; the tensors are added to the list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.stride(), value.dtype
    return tuple([_described(each, tensors) for each in _parts(value)]) if _has_parts(value) else value


def _placed(value: Any, places: list[Tensor]) -> Any:
    """The same value with tensors of its own, which are added to the list."""
    if isinstance(value, Tensor):
        places.append(torch.empty_like(value).copy_(value))
        return places[-1]
    if not _has_parts(value):
        return value
    parts = [_placed(each, places) for each in _parts(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **dict(zip([field.name for field in fields(value)], parts, strict=True)))
    return type(value)(parts)


def _has_parts(value: Any) -> bool:
    return isinstance(value, list | tuple) or is_dataclass(value)


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [getattr(value, field.name) for field in fields(value)]


def _knows(known: _Known, tensor: Tensor) -> bool:
    """Whether it is this one, not changed since; one of inference mode does not tell, and is never known."""
    return known[0]() is tensor and known[1] == _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
