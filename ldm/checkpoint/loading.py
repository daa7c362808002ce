"""Strict filling of modules that were built on the meta device: every tensor of the file has its place, and every place its tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ldm.checkpoint.identity import UNET, VAE
from ldm.checkpoint.leftovers import TEXT_PROJECTION, leftovers
from ldm.checkpoint.memory import check_memory, free_memory
from ldm.checkpoint.reading import ALIGN, Copy, allocate, read
from ldm.checkpoint.rename import open_clip_sources
from ldm.checkpoint.safetensors import Entry, Header
from ldm.errors import FileError, listed
from ldm.models.shapes import Family

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}  # the floats that weights come in

Sources = Mapping[str, tuple[str, int | None]]


@dataclass(frozen=True)
class Part:
    """A module on the meta device and where its tensors stand in the file.

    `sources` maps the module's names to (the file's name after `prefix`, which third of its rows or None); without it the names are equal.
    `absent` are names that stay on the meta device: they are read when they are needed.
    """

    module: nn.Module
    prefix: str
    dtype: torch.dtype
    sources: Sources | None = None
    absent: frozenset[str] = frozenset()

    def source(self, name: str) -> tuple[str, int | None]:
        file_name, third = self.sources[name] if self.sources is not None else (name, None)
        return self.prefix + file_name, third


@dataclass(frozen=True)
class Place:
    """One tensor of a module: its name there, its shape, and where it comes from."""

    name: str
    shape: torch.Size
    file_name: str
    entry: Entry
    third: int | None  # of the rows of the file's tensor
    transposed: bool

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass
class Report:
    """What does not fit, in words."""

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)

    def check(self, header: Header) -> None:
        """Raises FileError with the first tensors of all that do not fit, and the count of each kind."""
        kinds = (
            ("missing", self.missing),
            ("of another shape", self.misshapen),
            ("of a dtype that is not read", self.dtypes),
            ("unknown", self.unknown),
        )
        counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in kinds if lines)
        if not counts:
            return
        lines = [f"{kind}: {line}" for kind, found in kinds for line in found]
        what = f"the tensors do not fit the model ({counts}): {listed(lines)}: use a file of this family in the official layout"
        raise FileError(f"{header.path}: {what}", "E3007")


def family_parts(
    family: Family,
    *,
    unet: nn.Module | None,
    vae: nn.Module | None,
    towers: Sequence[nn.Module],
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> list[Part]:
    """The parts of a full checkpoint, each module with its official prefix; None leaves one out."""
    parts = [
        Part(module, shape.prefix, dtype, open_clip_sources(shape.layers) if shape.layout == "open_clip" else None)
        for module, shape in zip(towers, family.towers, strict=True)
    ]
    parts += [Part(vae, VAE, vae_dtype)] if vae is not None else []
    return parts + ([Part(unet, UNET, dtype)] if unet is not None else [])


def fill(
    header: Header,
    parts: Sequence[Part],
    *,
    device: str | torch.device = "cpu",
    elsewhere: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> None:
    """Read every part's tensors into one flat allocation a module and assign them; the modules are then in eval mode, without gradients.

    `elsewhere` are prefixes whose tensors are not wanted (the checkpoint's VAE beside another one); `progress(n)`: n more bytes are read.
    Raises FileError when a tensor is missing, unknown, misshapen or of a dtype that is not read (E3007), MemoryNeedError before any
    allocation, and what `reading.read` raises.
    """
    device = torch.device(device)
    matched = match(header, parts, elsewhere)
    placed = [[place for place in places if place.name not in part.absent] for part, places in zip(parts, matched, strict=True)]
    sizes = [flat_size(places, part.dtype) for part, places in zip(parts, placed, strict=True)]
    check_memory(sum(sizes), free_memory(device), str(header.path))
    states = [views(allocate(size, device), places, part.dtype) for part, places, size in zip(parts, placed, sizes, strict=True)]
    read(header, [copy for places, state in zip(placed, states, strict=True) for copy in copies(places, state)], progress)
    for part, places, state in zip(parts, placed, states, strict=True):
        _turn(places, state)
        if device.type == "cuda":
            last_channels(state)
        part.module.load_state_dict(state, strict=not part.absent, assign=True)
        part.module.eval().requires_grad_(False)


def match(header: Header, parts: Sequence[Part], elsewhere: Sequence[str] = ()) -> list[list[Place]]:
    """For each part its places, in the order of the module, where weights that are multiplied together (to_q, to_k, to_v) are neighbours.

    Raises FileError unless the whole file is accounted for.
    """
    report, used, placed = Report(), set[str](), []
    for part in parts:
        found = [_place(header, part, name, tensor.shape, report, used) for name, tensor in part.module.state_dict().items()]
        placed.append([place for place in found if place is not None])
    spare = used | leftovers(header.tensors)
    for name, entry in header.tensors.items():
        if name not in spare and not name.startswith(tuple(elsewhere)):
            report.unknown.append(f"{name} {entry.shape}")
    report.check(header)
    return placed


def _place(header: Header, part: Part, name: str, shape: torch.Size, report: Report, used: set[str]) -> Place | None:
    file_name, third = part.source(name)
    wanted = tuple(shape) if third is None else (3 * shape[0], *shape[1:])
    file_name, transposed = _spelling(header, file_name)
    entry = header.tensors.get(file_name)
    if file_name not in used:  # three of the module's tensors can be thirds of one
        _judge(report, file_name, entry, wanted, transposed)
    used.add(file_name)
    return Place(name, shape, file_name, entry, third, transposed) if entry is not None else None


def _judge(report: Report, name: str, entry: Entry | None, wanted: tuple[int, ...], transposed: bool) -> None:
    """Add what is wrong with a tensor of the file."""
    if entry is None:
        report.missing.append(f"{name} {wanted}")
        return
    if (entry.shape[::-1] if transposed else entry.shape) != wanted:
        report.misshapen.append(f"{name} is {entry.shape}, not {wanted}")
    if entry.dtype not in DTYPES:
        report.dtypes.append(f"{name} is {entry.dtype}, not {', '.join(DTYPES)}")


def _spelling(header: Header, name: str) -> tuple[str, bool]:
    """The name as the file has it, and whether the tensor is transposed there: OpenCLIP's `text_projection` (width, projection) is also
    met as a Linear's weight (projection, width)."""
    if name.endswith(".text_projection") and name not in header.tensors:
        for ending in TEXT_PROJECTION:
            if name + ending in header.tensors:
                return name + ending, True
    return name, False


def tensor_bytes(header: Header, parts: Sequence[Part]) -> int:
    """Bytes of the file that `fill` reads for these parts: the total of its progress."""
    names = {part.source(name)[0] for part in parts for name in part.module.state_dict() if name not in part.absent}
    entries = [header.tensors.get(_spelling(header, name)[0]) for name in names]
    return sum(entry.end - entry.start for entry in entries if entry is not None)


def flat_size(places: Sequence[Place], dtype: torch.dtype) -> int:
    """Bytes that `views` needs."""
    return sum(_padded(place.numel * dtype.itemsize) for place in places)


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def views(flat: Tensor, places: Sequence[Place], dtype: torch.dtype) -> dict[str, Tensor]:
    """The module's tensors, uninitialised, one behind the other in `flat` (bytes,)."""
    state, at = {}, 0
    for place in places:
        size = place.numel * dtype.itemsize
        shape = place.shape[::-1] if place.transposed else place.shape
        state[place.name] = flat[at : at + size].view(dtype).view(shape)
        at += _padded(size)
    return state


def copies(places: Sequence[Place], state: Mapping[str, Tensor]) -> list[Copy]:
    """What fills the tensors of `views` from the file."""
    made = []
    for place in places:
        source = DTYPES[place.entry.dtype]
        start = place.entry.start + (place.third or 0) * place.numel * source.itemsize
        made.append(Copy(place.file_name, start, source, state[place.name].view(-1)))
    return made


def _turn(places: Sequence[Place], state: dict[str, Tensor]) -> None:
    """Matrices that the file has transposed."""
    for place in places:
        if place.transposed:
            state[place.name] = state[place.name].t().contiguous()


def last_channels(state: dict[str, Tensor]) -> None:
    """Kernels of convolutions (D, C, 3, 3) with their channels last, in the memory where they lie: all feature maps then follow."""
    for name, tensor in state.items():
        if tensor.dim() == 4 and tensor.shape[2:].numel() > 1:
            turned = tensor.contiguous(memory_format=torch.channels_last)
            state[name] = tensor.as_strided(turned.shape, turned.stride()).copy_(turned)
