"""Which weights are not finite: a quick look at each piece while it is in the cache, an exact count of those that raise a doubt."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ldm.errors import FileError, listed

if TYPE_CHECKING:
    from ldm.checkpoint.safetensors import Header

LARGEST = {torch.float16: 0x7BFF, torch.bfloat16: 0x7F7F}  # bits of the largest finite value; those of Inf and NaN are above
SIGN = 2**15
WIDER = {torch.float16: "use --dtype bfloat16 or float32", torch.bfloat16: "use --dtype float32"}


@dataclass(frozen=True)
class Fault:
    """Values of one piece that are not finite: the tensor's name in the file, the flat index of the first there, how many."""

    name: str
    first: int
    count: int
    dtype: torch.dtype  # that the weights were to have
    stored: bool  # not finite in the file already, not by rounding to `dtype`


def doubtful(values: Tensor) -> bool:
    """Whether a 1-D tensor on the CPU may hold a value that is not finite: False is certain, True is to be counted."""
    largest = LARGEST.get(values.dtype)
    if largest is None:  # Inf and NaN outlive every sum; large finite values may overflow it
        return not math.isfinite(values.sum().item())
    bits = values.view(torch.int16).numpy()  # by sign: as signed numbers the positive ones are above, as unsigned the negative
    return bool(bits.max() > largest or bits.view(np.uint16).max() > largest + SIGN)


def count(name: str, at: int, values: Tensor, target: Tensor) -> Fault | None:
    """The exact count of a piece that begins at flat index `at` of its tensor: `values` stand in the file, `target` was made of them."""
    stored = True
    bad = ~torch.isfinite(values)
    if not bad.any():
        stored, bad = False, ~torch.isfinite(target).cpu()
    found = bad.nonzero()
    return Fault(name, at + int(found[0]), len(found), target.dtype, stored) if len(found) else None


def refuse(header: Header, faults: Iterable[Fault]) -> None:
    """Raises FileError E3008 when there are faults; those that the file has itself are told before those of the chosen dtype."""
    found = list(faults)
    damaged = [fault for fault in found if fault.stored]
    if damaged:
        what = f"weights contain {_values(damaged)} in {_tensors(header, damaged)}"
        raise FileError(f"{header.path}: {what}: the file is damaged, download it again", "E3008")
    if found:
        dtype = found[0].dtype
        what = f"weights contain {_values(found)} in {_tensors(header, found)}, because {str(dtype).removeprefix('torch.')} is too narrow"
        raise FileError(f"{header.path}: {what}: {WIDER.get(dtype, 'use another file')}", "E3008")


def _values(faults: list[Fault]) -> str:
    total = sum(fault.count for fault in faults)
    return f"{total:,} non-finite value{'s' * (total > 1)}"


def _tensors(header: Header, faults: list[Fault]) -> str:
    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    for fault in faults:
        counts[fault.name] = counts.get(fault.name, 0) + fault.count
        first[fault.name] = min(first.get(fault.name, fault.first), fault.first)
    return listed([f"{name} (first of {counts[name]:,} at index {_index(header, name, first[name])})" for name in sorted(counts)], ", ")


def _index(header: Header, name: str, flat: int) -> list[int]:
    return [int(i) for i in np.unravel_index(flat, header.tensors[name].shape)]
