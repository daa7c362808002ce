"""Safetensors files made by hand, right and wrong, and headers from the manifests of public files."""

from __future__ import annotations

import json
import lzma
import math
from functools import cache
from pathlib import Path
from typing import Any

from ldm.checkpoint.safetensors import BITS, Entry, Header

MANIFESTS = Path(__file__).parent.parent / "data" / "manifests.json.xz"


def raw(table: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this JSON (an object, or text as it is), whatever it says."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[Any], start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@cache
def manifests() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(lzma.decompress(MANIFESTS.read_bytes()))
    return table


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {tensor: tuple(shape) for tensor, (_, *shape) in manifests()[name]["tensors"].items()}


def header(name: str, metadata: dict[str, str] | None = None) -> Header:
    """What read_header gives for a public file, its tensors in the order of their names."""
    tensors, at = {}, 1000
    for tensor, (dtype, *shape) in manifests()[name]["tensors"].items():
        size = math.prod(shape) * BITS[dtype] // 8
        tensors[tensor] = Entry(dtype, tuple(shape), at, at + size)
        at += size
    return Header(Path(name), at, 1000, tensors, metadata or {}, (0, 0, at, 0))
