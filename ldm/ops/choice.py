"""Which implementation of an operation runs: the one measured fastest on this GPU at this shape, unless the caller names one.

    with ops.choice.using(attention="triton"):
        ...

The tables are configs/tuning/NAME.toml, one a GPU by its name, written by `python -m scripts.bench --tune`: for each operation the
shapes, each with the name of what to take. Without a table, or a shape in it, the operation takes its own default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

Table = Mapping[str, Mapping[str, str]]  # by operation and shape

_NAMED: ContextVar[Mapping[str, str]] = ContextVar("ldm_ops_choice", default={})  # noqa: B039 (never changed in place)


@contextmanager
def using(**named: str) -> Iterator[None]:
    """Take these implementations, by operation, in this thread or task alone."""
    token = _NAMED.set({**_NAMED.get(), **named})
    try:
        yield
    finally:
        _NAMED.reset(token)


def named() -> Mapping[str, str]:
    """What the caller has named, by operation."""
    return _NAMED.get()


def chosen(op: str, shape: str, device: torch.device, default: str) -> str:
    """The name of the implementation of `op` at `shape` (the operation's own words, such as "self 1024 64") on `device`."""
    named = _NAMED.get().get(op)
    if named is not None:
        return named
    return table(device).get(op, {}).get(shape, default) if device.type == "cuda" else default


@cache
def table(device: torch.device) -> Table:
    """What was measured on a GPU of this name; nothing where no table is kept."""
    from ldm import resources

    name = slug(torch.cuda.get_device_name(device))
    return resources.read_toml("tuning", name) if name in resources.names("tuning") else {}


def slug(name: str) -> str:
    """A GPU's name as a file's: "NVIDIA H200" is "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
