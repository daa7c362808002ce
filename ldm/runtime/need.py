"""How much memory a job needs, counted before anything is allocated: the real modules run on the meta device, which holds no bytes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn

from ldm.checkpoint.memory import check_memory, fits, free_memory, size
from ldm.devices import name_of
from ldm.diffusion.profiles import Profile
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.options import Job
from ldm.runtime import heap
from ldm.runtime.footprint import OnCPU
from ldm.runtime.tracking import Tracker
from ldm.text import prompt, script
from ldm.text.conditioning import CHUNKS_AT_ONCE
from ldm.text.course import common_length
from ldm.text.tokenizer import LENGTH

# On the CPU more is resident than tensors hold: glibc keeps what was freed below its mapping threshold, and the libraries their code.
# Measured as the peak of a fresh process's resident memory, torch 2.15, one thread: `python -m scripts.needs`, docs/reliability.md.
PLENTY = 32  # tensors of the largest size and width at once: nothing holds as many beside a UNet's skip connections
KEPT = 4  # times a convolution's weights, at most, stay in memory beside them on the CPU (`ldm.ops.conv`)
SMALLER = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of the sides: what the advice tries
STEP = 64  # its sides are multiples of that


@dataclass(frozen=True)
class Plan:
    """What the need of a job depends on."""

    family: Family
    width: int
    height: int
    rows: int  # of one evaluation of the UNet
    dtype: torch.dtype
    vae_dtype: torch.dtype
    device: str = "cpu"
    chunks: int = 1  # of 77 tokens
    batch: int = 1  # pictures among the rows
    fp8: bool = False  # the tier has weights of its own
    int8: torch.dtype | None = None  # in which the UNet is read before its linear layers are 8 bits, and so they are

    @property
    def precision(self) -> str:
        return "int8" if self.int8 else name_of(self.dtype)

    def __str__(self) -> str:
        return f"{self.width}x{self.height} in {self.precision}" + (f" in a batch of {self.batch}" if self.batch > 1 else "")

    def of(self, batch: int) -> Plan:
        """The same with fewer pictures at once."""
        return replace(self, rows=self.rows // self.batch * batch, batch=batch)


class Peak(NamedTuple):
    """Bytes at the peak of a stage, and what stays in memory beside its weights, by their names."""

    bare: int
    kept: Mapping[str, int]

    @property
    def total(self) -> int:
        return self.bare + sum(self.kept.values())

    @property
    def anew(self) -> int:
        """Where nothing stays, and one thing at a time is made when it is called for."""
        return self.bare + max(self.kept.values(), default=0)


@dataclass(frozen=True)
class Need:
    """Bytes: of the weights, at the peak of each stage beside them, and of what is let go before the first."""

    weights: int
    parts: tuple[Peak, Peak, Peak]
    loading: int = 0

    @property
    def text(self) -> int:
        return self.parts[0].bare

    @property
    def unet(self) -> int:
        return self.parts[1].total

    @property
    def vae(self) -> int:
        """What the UNet keeps is there still."""
        return self.parts[2].total + sum(self.parts[1].kept.values())

    @property
    def stage(self) -> int:
        """The most that a stage needs; they come one after the other."""
        return max(self.text, self.unet, self.vae)

    @property
    def total(self) -> int:
        return self.weights + max(self.loading, self.stage)

    @property
    def anew(self) -> int:
        """The most that a stage needs where convolutions keep nothing of their weights."""
        return max(part.anew for part in self.parts)

    @property
    def least(self) -> int:
        return self.weights + max(self.loading, self.anew)


def plan_of(
    job: Job,
    rules: Profile,
    family: Family,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    int8: bool = False,
    stored: torch.dtype | None = None,
) -> Plan:
    """The plan of a finished job, of which the CPU evaluates every picture alone; `stored`: the UNet's dtype in its file.

    Raises InputError where prompt and negative together are too long.
    """
    told, away = script.of(job, rules)
    parts = [*told, *(away or ())]
    lengths = [max(prompt.length(texts, rules) for texts in part.texts) * LENGTH for part in parts]
    chunks = common_length(lengths) // LENGTH
    sides, batch = (int(job.width or 0), int(job.height or 0)), 1 if device.type == "cpu" else job.batch
    read = stored or dtype if int8 else None
    return Plan(family, *sides, len(parts) * batch, dtype, vae_dtype, str(device), chunks, batch, job.speed == "fp8", read)


def need(plan: Plan) -> Need:
    """The need of a job. A new plan is counted in some tenths of a second (the first in a process in two), a known one at once."""
    return _need(replace(plan, device=plan.device.partition(":")[0]))


@lru_cache(maxsize=256)
@torch.no_grad()
def _need(plan: Plan) -> Need:
    unet, vae, towers = _modules(plan.family, plan.dtype, plan.vae_dtype)
    z, shape = (plan.height // plan.family.downscale, plan.width // plan.family.downscale), unet.shape
    on: dict[str, Any] = {"device": "meta", "dtype": plan.dtype}

    def text() -> None:
        for tower in towers:
            tower(torch.zeros(min(plan.chunks, CHUNKS_AT_ONCE), tower.shape.length, device="meta", dtype=torch.long))

    def step() -> None:
        context = torch.zeros(plan.rows, LENGTH * plan.chunks, shape.context_dim, **on)
        vector = torch.zeros(plan.rows, shape.vector_dim, **on) if shape.vector_dim else None
        unet(torch.zeros(plan.rows, shape.in_channels, *z, **on), unet.prepare(context, vector, [0.0]), 0)

    def decode() -> None:
        vae.decode(torch.zeros(1, vae.shape.z_channels, *z, device="meta", dtype=plan.vae_dtype)).float()

    stages = ((text, None), (step, unet), (decode, vae))
    first, second, third = (_peak(stage, plan.device, network) for stage, network in stages)
    return Need(_weights(plan), (first, second, third), loading(plan))


def bands(plan: Plan) -> Peak:
    """What decoding needs in bands of rows, by `tiles`."""
    return _bands(replace(plan, device=plan.device.partition(":")[0]))


@lru_cache(maxsize=256)
@torch.no_grad()
def _bands(plan: Plan) -> Peak:
    from ldm.runtime import tiles

    vae, down = networks(plan)[1], plan.family.downscale
    z = torch.zeros(1, vae.shape.z_channels, plan.height // down, plan.width // down, device="meta", dtype=plan.vae_dtype)
    return _peak(lambda: tiles.decode(vae, z).float(), plan.device, vae)


def networks(plan: Plan) -> tuple[UNet, VAE, list[CLIPText]]:
    """The plan's networks, without their bytes."""
    return _modules(plan.family, plan.dtype, plan.vae_dtype)


def plenty(plan: Plan) -> int:
    """Bytes that a job never exceeds beside its weights, by a closed formula: where they are free there is nothing to count."""
    unet, vae, pixels = plan.family.unet, plan.family.vae, plan.width * plan.height
    wide, cells = unet.model_channels * max(unet.channel_mult), pixels // plan.family.downscale**2
    step = plan.rows * wide * plan.dtype.itemsize  # of one position
    blocks = (2 * unet.num_res_blocks + 1) * sum(unet.transformer_depth) + unet.middle_depth
    maps = [pixels // 4**level * vae.ch * max(vae.ch_mult[level : level + 2]) for level in range(len(vae.ch_mult))]
    tower = max(tower.mlp + tower.width for tower in plan.family.towers) * min(plan.chunks, CHUNKS_AT_ONCE)
    skips = (unet.num_res_blocks + 2) * len(unet.channel_mult)
    kernels = [weight for network in networks(plan)[:2] for weight in network.parameters() if weight.dim() == 4 and weight.shape[-1] == 3]
    kept = sum(KEPT * weight.nbytes for weight in kernels) if plan.device == "cpu" else 0
    return kept + heap.KEPT + max(
        (PLENTY + skips) * step * (cells + LENGTH) + 3 * blocks * step * LENGTH * plan.chunks,
        PLENTY // 4 * max(maps) * plan.vae_dtype.itemsize,
        PLENTY // 2 * tower * LENGTH * plan.dtype.itemsize,
    )


def _weights(plan: Plan) -> int:
    unet, vae, towers = _modules(plan.family, plan.dtype, plan.vae_dtype)
    return sum(each.nbytes for module in (unet, vae, *towers) for each in module.parameters()) + reduced(plan)


def reduced(plan: Plan) -> int:
    """Bytes that weights in 8 bits add to the model's own; less than 0 where they stand in the place of those."""
    from ldm.runtime.quantise import added

    return added(networks(plan)[0], "int8" if plan.int8 else "fp8") if plan.int8 or plan.fp8 else 0


def loading(plan: Plan) -> int:
    """Bytes of weights that are let go when they are 8 bits."""
    return sum(each.numel() for each in networks(plan)[0].parameters()) * plan.int8.itemsize if plan.int8 else 0


@lru_cache(maxsize=8)
def _modules(family: Family, dtype: torch.dtype, vae_dtype: torch.dtype) -> tuple[UNet, VAE, list[CLIPText]]:
    """The family's networks without their bytes."""
    with torch.device("meta"):
        return UNet(family.unet).to(dtype), VAE(family.vae).to(vae_dtype), [CLIPText(shape).to(dtype) for shape in family.towers]


def _peak(run: Callable[[], object], device: str, network: nn.Module | None = None) -> Peak:
    counter = OnCPU() if device == "cpu" else Tracker()
    with counter:
        run()
    if not isinstance(counter, OnCPU):
        return Peak(counter.peak, {})
    names = {id(weight): name for name, weight in network.named_parameters()} if network is not None else {}
    return Peak(counter.peak + min(heap.KEPT, counter.small_peak), {names[key]: nbytes for key, nbytes in counter.kept.items()})


def check_job(plan: Plan) -> None:
    """Before the model is loaded: raises MemoryNeedError unless weights and job fit what is free; it says what would."""
    free = free_memory(plan.device)
    if fits(_weights(plan) + max(plenty(plan), loading(plan)), free):
        return
    counted = need(plan)
    parts = f"{size(counted.weights)} of weights, {size(counted.anew)} to compute"
    check_memory(counted.least, free, f"{plan} ({parts})", lambda: _advice(plan, free, lambda plan: need(plan).least))


def check_run(plan: Plan, held: int = 0) -> bool:
    """With the weights in memory: raises MemoryNeedError unless the job fits what is free beside them.

    It is said whether it fits with all that convolutions keep of their weights, of which `held` bytes are in memory already.
    """
    free = free_memory(plan.device)
    if free is None or fits(plenty(plan), free):
        return True
    counted, room = need(plan), free + held
    if fits(max(counted.stage, max(part.bare for part in counted.parts) + held), room):
        return True
    check_memory(counted.anew, room, str(plan), lambda: _advice(plan, room, lambda plan: need(plan).anew, half=False))
    return False


def _advice(plan: Plan, free: int | None, amount: Callable[[Plan], int], half: bool = True) -> str:
    """The first change that fits: a smaller batch, half precision, both; then the largest smaller picture, one at a time."""
    starts = [plan, replace(plan, dtype=torch.bfloat16, int8=None)] if half and plan.dtype == torch.float32 else [plan]
    batches = [[start.of(k) for k in range(1, start.batch)] for start in starts]
    changes = [*batches[:1], *([start] for start in starts[1:]), *batches[1:], *(_smaller(start.of(1)) for start in starts)]
    for each in (_largest(choice, free, amount) for choice in changes if choice):
        if fits(amount(each), free):
            return f"take {_change(plan, each)} ({size(amount(each))}), or close other programs"
    turns = "take --max-memory, " if half else ""  # before the load
    return f"{turns}close other programs or take another machine: even {each} needs {size(amount(each))}"


def _largest(plans: Sequence[Plan], free: int | None, amount: Callable[[Plan], int]) -> Plan:
    """The last of the growing plans that fits, or the first."""
    return plans[max(bisect_left(plans, True, key=lambda each: not fits(amount(each), free)) - 1, 0)]


def _smaller(plan: Plan) -> Sequence[Plan]:
    """From the smallest on; the plan itself where none is smaller."""
    sides = [tuple(max(STEP, int(side * share) // STEP * STEP) for side in (plan.width, plan.height)) for share in SMALLER]
    return [replace(plan, width=w, height=h) for w, h in sides if w <= plan.width and h <= plan.height] or [plan]


def _change(plan: Plan, other: Plan) -> str:
    words = [f"batch {other.batch}"] if other.batch != plan.batch else []
    words += [f"dtype {name_of(other.dtype)}"] if other.dtype != plan.dtype else []
    words += [f"width {other.width} and height {other.height}"] if (other.width, other.height) != (plan.width, plan.height) else []
    return " and ".join(words)
