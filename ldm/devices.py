"""Devices and dtypes by the names that a user gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ldm.errors import InputError, near_matches

if TYPE_CHECKING:
    from ldm.models.shapes import Family


class Place(NamedTuple):
    """Where a model is put, and in which dtypes."""

    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    int8: bool = False  # the UNet's linear layers are in 8 bits; the rest computes in `dtype`


def place_for(family: Family, device: str | torch.device = "auto", dtype: str = "auto", vae_dtype: str = "auto") -> Place:
    """What the names mean for a family: "auto" is float32 on the CPU, bfloat16 on CUDA, and for the VAE what the family asks for.

    "int8" is for the CPU: there float32, with the UNet's linear layers in 8 bits. Raises InputError.
    """
    found, int8 = device_named(device), dtype == "int8"
    if int8 and found.type != "cpu":
        raise InputError(f"dtype int8 is for the CPU, and this run is on {found}: take --device cpu, or --dtype bfloat16")
    kind = dtype_named("float32" if int8 else dtype, torch.bfloat16 if found.type == "cuda" else torch.float32, more=("int8",))
    return Place(found, kind, dtype_named(vae_dtype, torch.float32 if family.vae_dtype == "float32" else kind), int8)


def device_named(name: str | torch.device) -> torch.device:
    """ "auto", "cpu", "mps", "cuda" or "cuda:N". Raises InputError for a device that this torch does not see."""
    name = str(name)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise InputError(f"device {name!r} is not known: use auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    kind, _, number = name.partition(":")
    if int(number or 0) >= seen[kind]:
        raise InputError(
            f"device {name}: this torch ({torch.__version__}) sees {seen[kind]} of that kind: use cpu or install another build", "E8001"
        )
    return torch.device(name)


def dtype_named(name: str | torch.dtype, auto: torch.dtype, more: Sequence[str] = ()) -> torch.dtype:
    """ "auto", "float32", "bfloat16" or "float16"; InputError for anything else, which also names what `more` there is."""
    known = {"auto": auto, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(name).removeprefix("torch.")
    if name not in known:
        raise InputError(f"dtype {name!r} is not known: {near_matches(name, [*known, *more])}")
    return known[name]


def dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def wider(dtype: torch.dtype) -> list[torch.dtype]:
    """`dtype` and those after it, each of greater range or precision than the one before."""
    order = [torch.float16, torch.bfloat16, torch.float32]
    return order[order.index(dtype) :] if dtype in order else [dtype]
