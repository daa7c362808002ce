"""Devices and dtypes by the names that a user gives them."""

from __future__ import annotations

import torch
from torch import nn

from ldm.errors import InputError, near_matches


def device_named(name: str) -> torch.device:
    """ "auto", "cpu", "mps", "cuda" or "cuda:N". Raises InputError for a CUDA device that this torch does not see."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name}: this torch ({torch.__version__}) sees no CUDA device: use cpu or install a CUDA build of torch")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is not known: use auto, cpu, cuda or cuda:N") from None


def dtype_named(name: str, auto: torch.dtype) -> torch.dtype:
    """ "auto", "float32", "bfloat16" or "float16"; InputError for anything else."""
    known = {"auto": auto, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"dtype {name!r} is not known: {near_matches(name, list(known))}")
    return known[name]


def dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def wider(dtype: torch.dtype) -> list[torch.dtype]:
    """`dtype` and those after it, each of greater range or precision than the one before."""
    order = [torch.float16, torch.bfloat16, torch.float32]
    return order[order.index(dtype) :]
