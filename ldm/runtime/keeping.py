"""What of a pipeline's weights stays in memory, and the change to a way that takes less."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from ldm.errors import InputError, MemoryNeedError
from ldm.ops import conv
from ldm.runtime import heap, paths, retry
from ldm.runtime.notes import note
from ldm.runtime.paths import LEAST, RESIDENT, Member, Path

if TYPE_CHECKING:
    from ldm.checkpoint.loading import Part, Place
    from ldm.checkpoint.safetensors import Header
    from ldm.runtime.streaming import Block, Chain

AROUND = "around"  # of a call that is surrounded: the manager
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[int, int], None]
Source = tuple["Header", Sequence["Part"], Sequence[str]]  # a file, what is filled from it, and the prefixes of what is left in it


class Keeper:
    """The files of a pipeline's networks, and the path by which their weights are in memory.

    Without sources it keeps networks that were made elsewhere, as they are.
    """

    def __init__(
        self,
        sources: Sequence[Source] = (),
        device: torch.device | None = None,
        path: Path = RESIDENT,
        limit: int | None = None,
        process: int = 0,
    ) -> None:
        self.sources, self.device = sources, device or torch.device("cpu")
        self.path = path
        self.limit, self.process = limit, process  # bytes that the caller allows, and those that the process had before
        self.stored = paths.stored_in(sources[0][0]) if sources else None
        self._lock, self._turns = Lock(), RLock()
        self._users = 0
        self._undo: dict[nn.Module, ExitStack] = {}
        self._alone: dict[nn.Module, Chain] = {}  # networks that are one block
        self._read: list[Hashable] = []

    def fill(self, progress: Progress | None = None) -> None:
        """Read what stays in memory. Raises what `loading.fill` does."""
        for source in self.sources:
            self._fill(source, source[1], progress)
        self._read = self._seen()

    @contextmanager
    def using(self) -> Iterator[None]:
        """The networks are being used: they stay as they are until all users but one are done."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1

    def tried(self, run: Callable[[], T]) -> T:
        """What `run` gives; where memory runs out in it for good, what it gives again when the weights take turns in memory."""
        if self.limit is not None:
            heap.trim()  # what the stage before has freed
        try:
            return self._ran(run)
        except MemoryNeedError as error:
            if error.code != "E4002" or not self.movable or replace(self.path, kept=0, stored=None) == LEAST:
                raise
            said = str(error).partition(": take ")[0]
        note(f"{said}: trying again with weights that are read from the file when their turn comes", RuntimeWarning)
        self.change(LEAST)
        return self._ran(run)

    def _ran(self, run: Callable[[], T]) -> T:
        with conv.anew(self.path.anew and self.device.type == "cpu"):
            return run()

    @property
    def movable(self) -> bool:
        """Whether the weights can be kept in another way: they are those of the file, and nobody else is using them."""
        return bool(self.sources) and self._users <= 1 and self._seen() == self._read

    def change(self, path: Path) -> None:
        """Let go the weights of the networks that `path` keeps in another way, and read again what stays of them."""
        before, self.path = self.path, path

        def differs(part: Part) -> bool:
            return paths.concerning(part.module, path) != paths.concerning(part.module, before)

        other = [[part for part in source[1] if differs(part)] for source in self.sources]
        for part in (part for parts in other for part in parts):
            self._let_go(part.module)
        retry.free_unused()
        for source, parts in zip(self.sources, other, strict=True):
            if parts:
                self._fill(source, parts, None)
        self._read = self._seen()

    def close(self) -> None:
        """Let go all weights, and the limit that was set to the device."""
        from ldm.runtime.plan import hold

        if self.limit is not None:
            hold(self.device, None)
        for _, parts, _ in self.sources:
            for part in parts:
                self._let_go(part.module)

    def check_free(self) -> None:
        """Raises InputError where weights take turns, so that the pipeline must stay where it is."""
        if replace(self.path, anew=False) != RESIDENT:
            raise InputError("a model that is kept under max_memory stays as it was loaded: load it again")

    def present(self, network: nn.Module) -> AbstractContextManager[None]:
        """The whole network in memory, for as long as the block lasts."""
        chain = self._alone.get(network)
        return nullcontext() if chain is None else chain.present(0)

    def _fill(self, source: Source, parts: Sequence[Part], progress: Progress | None) -> None:
        from ldm.checkpoint.loading import fill, match, tensor_bytes

        header, every, elsewhere = source
        left = [*elsewhere, *(part.prefix for part in every if part not in parts)]
        for part in parts:
            part.module.to(part.dtype)  # also what stays on the meta device
        lighter = [replace(part, absent=paths.absent(part.module, self.path)) for part in parts]
        total = tensor_bytes(header, lighter)
        fill(header, lighter, device=self.device, elsewhere=left, progress=progress and (lambda count: progress(count, total)))
        for part, places in zip(parts, match(header, parts, left), strict=True):
            self._wrap(header, part, {place.name: place for place in places})

    def _wrap(self, header: Header, part: Part, places: Mapping[str, Place]) -> None:
        """Make the blocks of a network take turns in memory."""
        from ldm.runtime.streaming import Chain

        undo = self._undo[part.module] = ExitStack()
        for call, members in paths.turns(part.module, self.path):
            blocks = self._blocks(header, part, call, members, places)
            if not blocks:  # all of them stay
                continue
            chain = Chain(header, list(blocks.values()), self.device, self._turns)
            for n, member in enumerate(blocks):
                _surround(undo, member.module, member.call, partial(chain.present, n))
            _surround(undo, part.module, call, chain.running)
            if not call:
                self._alone[part.module] = chain
        if self.limit is not None or self.path != RESIDENT:
            undo.callback(part.module.register_forward_pre_hook(_watch).remove)  # so that no graph is recorded, which keeps memory

    def _blocks(self, header: Header, part: Part, call: str, members: Sequence[Member], places: Mapping[str, Place]) -> dict[Member, Block]:
        """Those that take turns; the first are held as the file has them, or are not among these."""
        from ldm.runtime.streaming import Block

        staying, held = (count(part.module, self.path, call) for count in (paths.staying, paths.holding))
        made = {member: Block(part, member, [places[name] for name in member.names]) for member in members[staying:]}
        for block in list(made.values())[:held]:
            block.hold(header, self.path.stored or block.dtype)
        return made

    def _let_go(self, network: nn.Module) -> None:
        self._undo.pop(network, ExitStack()).close()
        self._alone.pop(network, None)
        network.to("meta")

    def _seen(self) -> list[Hashable]:
        """What another hand in the weights would change."""
        weights = [weight for _, parts, _ in self.sources for part in parts for weight in part.module.parameters()]
        return [(id(weight), weight.data_ptr(), weight._version, weight.dtype) for weight in weights if not weight.is_meta]


def counted(method: F) -> F:
    """A method of a pipeline that uses its networks."""

    @wraps(method)
    def run(self: Any, *args: Any, **keywords: Any) -> Any:
        with self.keeper.using():
            return method(self, *args, **keywords)

    return cast(F, run)


def _surround(undo: ExitStack, module: nn.Module, name: str, manager: Callable[[], AbstractContextManager[None]]) -> None:
    """Make a call of a module run inside of `manager`, until it is undone."""
    if not name:
        return
    plain = getattr(module, name)

    def call(*args: Any, **keywords: Any) -> Any:
        with manager():
            return plain(*args, **keywords)

    setattr(call, AROUND, manager)
    setattr(module, name, call)
    undo.callback(module.__dict__.pop, name)


def around(module: nn.Module, name: str) -> AbstractContextManager[None]:
    """What a call of a module runs inside of, for who makes its work in another way."""
    manager: Callable[[], AbstractContextManager[None]] = getattr(getattr(module, name), AROUND, nullcontext)
    return manager()


def _watch(*_: Any) -> None:
    """A hook that does nothing."""
