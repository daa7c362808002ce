"""The memory of a run before it is made: the peak of each stage, and the first way to keep the weights that stays under a limit.

What is counted is what `need` counts, and the weights that a path has in memory meanwhile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path as File
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.checkpoint.memory import RESERVE, free_memory, size
from ldm.devices import dtype_of, name_of
from ldm.errors import InputError, MemoryNeedError, shown
from ldm.models.shapes import Family
from ldm.ops import conv
from ldm.options import Job
from ldm.runtime import heap, need
from ldm.runtime.need import Plan
from ldm.runtime.notes import note
from ldm.runtime.paths import KINDS, LEAST, RESIDENT, Path, absent, holding, members, staying, stored_in
from ldm.runtime.quantise import IN_TURNS
from ldm.values import amount

if TYPE_CHECKING:
    from ldm.checkpoint.safetensors import Header
    from ldm.devices import Place
    from ldm.diffusion.profiles import Profile
    from ldm.runtime.keeping import Keeper

STATUS = File("/proc/self/status")
PROCESS = 400 * 2**20  # bytes of a process that has torch, where the system does not say
LIBRARIES = 40 * 2**20  # that come with the first work: measured by `python -m scripts.needs`
CONTEXT = 640 * 2**20  # bytes of a GPU that CUDA and its libraries take: not measured
PINNED = 2**27  # bytes of main memory on the way to a GPU: not measured
MARGIN = 50  # one part in so many of a limit is left free
ORDER = (RESIDENT, Path(towers=True), Path(towers=True, keys=True), Path(towers=True, keys=True, vae=True), replace(LEAST, blocks=False))
ANEW = "what convolutions make of their weights is made at every call"


@dataclass(frozen=True)
class Stage:
    """Bytes at the peak of one stage."""

    name: str
    ram: int
    vram: int


@dataclass(frozen=True)
class Forecast:
    """What a run will take."""

    plan: Plan
    path: Path
    stages: tuple[Stage, ...]
    process: int  # bytes of main memory that are there before

    @property
    def ram(self) -> int:
        return max(stage.ram for stage in self.stages)

    @property
    def vram(self) -> int:
        return max(stage.vram for stage in self.stages)

    @property
    def total(self) -> int:
        """Of the memory that the device computes in, which is what a limit is about."""
        return self.vram if on_gpu(self.plan) else self.ram

    @property
    def cost(self) -> list[str]:
        """What the path costs, in words."""
        unet, vae, towers = need.networks(self.plan)
        parts = (
            (sum(_moved(tower, self.path, "forward") for tower in towers), "the text towers are read for every text"),
            (_moved(unet, self.path, "keys"), "what makes keys and values of the text is read for every prompt"),
            (_moved(vae, self.path, ""), "the VAE is read for every picture, which it decodes in bands of rows"),
        )
        anew = [ANEW] if self.path.anew and not on_gpu(self.plan) else []
        return [f"{text} ({size(count)})" for count, text in parts if count] + anew + self._turns(unet) or ["everything stays in memory"]

    def _turns(self, unet: nn.Module) -> list[str]:
        blocks, moved = members(unet, self.path, "forward"), _moved(unet, self.path, "forward")
        converted, read = holding(unet, self.path, "forward"), len(blocks) - self.path.kept
        dtype = name_of(self.path.stored) if self.path.stored else ""
        of_all = f"of the UNet's {len(blocks)} blocks are"
        parts = ((read, f"read at every evaluation ({size(moved)})"), (converted, f"converted from {dtype} at every evaluation"))
        return [f"{count} {of_all} {text}" for count, text in parts if count]


def forecast(plan: Plan, path: Path, process: int) -> Forecast:
    """The peaks of a run by a path; `process`: bytes of main memory that this process has before it."""
    counted, (unet, vae, towers), more = need.need(plan), need.networks(plan), need.reduced(plan)
    text, step, decode = counted.parts if not path.vae else (*counted.parts[:2], need.bands(plan))
    held = sum(_weights(each, path) for each in (unet, vae, *towers))
    held, more = (held + more, 0) if plan.int8 else (held, more)
    stay, turn = _beside(unet, path, step.kept)
    moving = {
        "load": need.loading(plan),
        "text": text.bare + max((_turning(each, path, "forward") for each in towers), default=0),
        "unet": more + stay + max(_turning(unet, path, "keys"), _turning(unet, path, "forward") + turn + step.bare),
        "vae": more + stay + _turning(vae, path, "") + (decode.anew if path.anew else decode.total),
    }
    return Forecast(plan, path, tuple(_stage(plan, name, held + count, process) for name, count in moving.items()), process)


def _stage(plan: Plan, name: str, count: int, process: int) -> Stage:
    before = process + (LIBRARIES if name != "load" else 0)
    return Stage(name, before + PINNED, CONTEXT + count) if on_gpu(plan) else Stage(name, before + count, 0)


def on_gpu(plan: Plan) -> bool:
    return plan.device.startswith("cuda")


def resident() -> int:
    """Bytes of main memory that this process has now."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return PROCESS
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), PROCESS)


def choose(plan: Plan, stored: torch.dtype | None, limit: int, process: int) -> Forecast:
    """The first way that stays under `limit` bytes; `stored` is the dtype of the UNet in its file, in which main memory can hold it.

    Raises MemoryNeedError where none does: it says the least that would do.
    """
    room = limit - limit // MARGIN
    for path in ORDER:
        found = forecast(plan, path, process)
        if found.total <= room:
            return found
    narrow = stored is not None and stored.itemsize < plan.dtype.itemsize and not on_gpu(plan)
    streamed = replace(LEAST, stored=stored if narrow else None)
    counts = range(len(members(need.networks(plan)[0], streamed, "forward")) + 1)
    kept = bisect_right(counts, room, key=lambda kept: forecast(plan, replace(streamed, kept=kept), process).total) - 1
    if kept >= 0:
        return forecast(plan, replace(streamed, kept=kept), process)
    least = forecast(plan, replace(streamed, kept=0), process).total * MARGIN // (MARGIN - 1)
    what = f"{plan} needs {size(least)} of memory, whatever is read from the file in turns, and {size(limit)} are allowed"
    raise MemoryNeedError(f"{what}: take --max-memory {-(-least // 2**20)}MiB, or a smaller width and height", "E4001")


def way(
    header: Header, family: Family, place: Place, max_memory: int | str | None, jobs: Sequence[Job]
) -> tuple[Path, int | None, int]:
    """The path of a model that makes `jobs` under `max_memory`, that limit in bytes, and what this process has before.

    Without jobs the family's own size is taken. Raises InputError, MemoryNeedError.
    """
    heap.settle(heap.MAPPED if max_memory is None else heap.TIGHT)
    if max_memory is None:
        return RESIDENT, None, 0
    limit = _bytes(max_memory)
    found = forecasts(header, family, place, limit, jobs or [Job()])
    lightest = max(found, key=lambda each: (*(getattr(each.path, name) for name in KINDS), -each.path.kept))
    if lightest.path != RESIDENT:
        note(f"max_memory {size(limit)}: {'; '.join(lightest.cost)}")
    hold(place.device, limit)
    return lightest.path, limit, lightest.process


def forecasts(header: Header, family: Family, place: Place, limit: int | None, jobs: Sequence[Job]) -> list[Forecast]:
    """Of jobs, each other than the ones before: by the first path under `limit`, or with everything in memory.

    Raises InputError for weights in 8 bits that would have to take turns, MemoryNeedError.
    """
    from ldm.resolve import resolve

    if place.int8 and limit is not None:
        raise InputError("dtype int8 and max_memory: weights that are read when their turn comes are not in 8 bits: give one of the two")

    stored = stored_in(header)
    plans = list(dict.fromkeys(need.plan_of(*resolve(job, family), family, **place._asdict(), stored=stored) for job in jobs))
    if limit is None:
        process = resident()
        return [forecast(plan, RESIDENT, process) for plan in plans]
    for plan in plans:
        forecast(plan, LEAST, 0)  # what counting brings into memory is there when the model comes
    process, free = resident(), free_memory(place.device)
    room = limit if free is None else min(limit, free - RESERVE + (CONTEXT if place.device.type == "cuda" else process))
    found = [choose(plan, stored, room, process) for plan in plans]
    if any(each.path.keys for each in found) and any(each.plan.fp8 for each in found):
        raise InputError(f"speed fp8 and max_memory {size(limit)}: {IN_TURNS}")
    return found


def check(job: Job, rules: Profile, family: Family, keeper: Keeper, networks: Sequence[nn.Module], device: torch.device) -> None:
    """`check_run` of a finished job; `networks`: the UNet and the VAE."""
    dtype, vae_dtype = map(dtype_of, networks)
    plan = need.plan_of(job, rules, family, device=device, dtype=dtype, vae_dtype=vae_dtype)
    check_run(plan, keeper, [weight for network in networks for weight in network.parameters()])


def check_run(plan: Plan, keeper: Keeper, weights: Sequence[Tensor]) -> None:
    """With the model loaded: raises MemoryNeedError unless the job fits what is free, or the caller's limit.

    Where only a lighter way to keep the weights does, they are kept in that way from now on.
    """
    if keeper.limit is None:
        _check_free(plan, keeper, weights)
        return
    if forecast(plan, keeper.path, keeper.process).total <= keeper.limit:
        return
    found = choose(plan, keeper.stored, keeper.limit, keeper.process)
    if not keeper.movable:
        what = f"{plan} needs {size(found.total)} of memory with weights kept in another way"
        raise MemoryNeedError(f"{what}, and they are in use or were changed: run it alone, or load the model again", "E4001")
    note(f"{plan} under max_memory {size(keeper.limit)}: {'; '.join(found.cost)}")
    keeper.change(found.path)


def _check_free(plan: Plan, keeper: Keeper, weights: Sequence[Tensor]) -> None:
    """Where memory is too short for what convolutions keep of their weights, they keep nothing."""
    anew = not need.check_run(plan, conv.held(weights))
    if anew and not keeper.path.anew:
        note(f"{plan} needs {size(need.need(plan).stage)} of memory, which is more than is free: {ANEW}, which takes longer")
    if anew:
        conv.let_go(weights)
        heap.trim()
    keeper.path = replace(keeper.path, anew=anew or keeper.path.blocks)


def _bytes(given: int | str) -> int:
    try:
        found = amount(given) if isinstance(given, str) else given
    except ValueError as error:
        raise InputError(f"max_memory {shown(given)} is not acceptable: give {error}") from None
    if type(found) is not int or found <= 0:
        raise InputError(f"max_memory {shown(given)} is not acceptable: give bytes, or a size such as 6GiB")
    return found


def hold(device: torch.device, limit: int | None) -> None:
    """Let torch itself refuse what is beyond the limit on a GPU: a second try is then lighter. None: no more. Not measured."""
    if device.type == "cuda":
        everything = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if limit is None else min(1.0, max(limit - CONTEXT, 1) / everything)
        torch.cuda.set_per_process_memory_fraction(share, device)


@lru_cache(maxsize=4096)
def _weights(network: nn.Module, path: Path) -> int:
    """Bytes of a network's weights that stay in memory."""
    state, away = network.state_dict(), absent(network, path)
    held = members(network, path, "forward")[: holding(network, path, "forward")]
    kept = sum(state[name].numel() for member in held for name in member.names) * (path.stored.itemsize if path.stored else 0)
    return kept + sum(weight.nbytes for name, weight in state.items() if name not in away)


def _moved(network: nn.Module, path: Path, call: str) -> int:
    """Bytes of the blocks of a call that are read from the file, as they are in memory."""
    state, kept = network.state_dict(), staying(network, path, call) + holding(network, path, call)
    return sum(state[name].nbytes for member in members(network, path, call)[kept:] for name in member.names)


def _beside(network: nn.Module, path: Path, kept: Mapping[str, int]) -> tuple[int, int]:
    """Bytes that stay beside weights that stay, and the most beside those of one block that takes its turn."""
    if path.anew:
        return 0, max(kept.values(), default=0)
    moving = members(network, path, "forward")[staying(network, path, "forward") :]
    turns = [sum(kept.get(name, 0) for name in member.names) for member in moving]
    return sum(kept.values()) - sum(turns), max(turns, default=0)


@lru_cache(maxsize=4096)
def _turning(network: nn.Module, path: Path, call: str) -> int:
    """Bytes of the blocks that are in memory while one of them works: that one, and the next."""
    state, moving = network.state_dict(), members(network, path, call)[staying(network, path, call) :]
    sizes = [sum(state[name].nbytes for name in member.names) for member in moving]
    return max(sizes, default=0) * min(2, len(sizes))
