"""The one function that saves safetensors: streamed, by temporary name and rename, so never into a file that somebody reads."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ldm.checkpoint.safetensors import BITS
from ldm.errors import InputError
from ldm.files import write_atomic

if TYPE_CHECKING:
    import torch

Buffer = bytes | bytearray | memoryview
Given = tuple[str, str, tuple[int, ...], Buffer | Callable[[], Buffer]]  # the fields of an Item
HASH = "modelspec.hash_sha256"
NO_HASH = "0x" + 64 * "0"


class Item(NamedTuple):
    """A tensor to write: its bytes (little-endian, C order), or a function that gives them when their turn comes."""

    name: str
    dtype: str  # "F16", "F32" ...
    shape: tuple[int, ...]
    data: Buffer | Callable[[], Buffer]


def save(
    path: str | os.PathLike[str],
    tensors: Iterable[Given],
    metadata: Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
    pad: int = 8,
    digest: bool = False,
) -> Path:
    """Write a safetensors file and return its path: what `content` says, by way of `write_atomic`.

    Raises InputError for a tensor that is not what it says, or when the path exists and `overwrite` is false.
    """
    path = Path(path)
    try:
        return write_atomic(path, content(tensors, metadata, pad=pad, digest=digest), overwrite=overwrite)
    except FileExistsError:
        raise InputError(f"{path}: exists already: choose another name, or overwrite it explicitly") from None


def content(
    tensors: Iterable[Given],
    metadata: Mapping[str, str] | None = None,
    *,
    pad: int = 8,
    digest: bool = False,
) -> Callable[[BinaryIO], None]:
    """What writes the whole of a safetensors file into an open one; the tensors are in the order of `ordered`.

    `metadata` is written as it is (ModelSpec's keys, `ldm.family`); spaces bring the data to a multiple of `pad` bytes, 1: as old official
    files. `digest` adds ModelSpec's hash of the tensors' bytes, which is put in its place when all are written.
    Of a file that is made of others, `licences.carried` says what it has to carry on.
    """
    items = ordered(tensors)
    start = head(items, {**(metadata or {}), **({HASH: NO_HASH} if digest else {})}, pad)

    def write(file: BinaryIO) -> None:
        found = hashlib.sha256()
        file.write(start)
        for item in items:
            _write_one(file, item, found.update if digest else None)  # its bytes are let go before the next are made
        if digest:
            file.seek(start.index(f'"{HASH}":"{NO_HASH}"'.encode()) + len(HASH) + 6)  # behind "HASH":"0x
            file.write(found.hexdigest().encode())

    return write


def ordered(tensors: Iterable[Given]) -> list[Item]:
    """The tensors in the order in which they are written: by width of dtype, then by name, as the reference orders them."""
    rank = {dtype: i for i, dtype in enumerate(reversed(BITS))}  # the widest first
    return sorted((Item(*tensor) for tensor in tensors), key=lambda item: (rank[item.dtype], item.name))


def head(items: list[Item], metadata: dict[str, str], pad: int) -> bytes:
    """Everything before the data: the length and the JSON."""
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for item in items:
        if item.name in table:
            raise InputError(f"tensor {item.name!r}: given twice: a file has each name once")
        table[item.name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [at, at + _nbytes(item)]}
        at += _nbytes(item)
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % pad)
    return len(text).to_bytes(8, "little") + text


def _nbytes(item: Item) -> int:
    return math.prod(item.shape) * BITS[item.dtype] // 8


def _write_one(file: BinaryIO, item: Item, told: Callable[[memoryview], object] | None) -> None:
    view = memoryview(item.data() if callable(item.data) else item.data)
    if view.nbytes != _nbytes(item):
        raise InputError(f"tensor {item.name!r}: {view.nbytes:,} bytes do not hold {item.dtype} {item.shape}: give them in C order")
    if view.nbytes:  # a view with a zero in its shape cannot be cast
        file.write(view.cast("B"))
        if told is not None:
            told(view.cast("B"))


def tensor_items(state: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> list[Item]:
    """A state_dict for `save`, floats in `dtype` where one is given; each tensor is converted when its turn comes."""
    return [_item(name, tensor, dtype) for name, tensor in state.items()]


def _item(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> Item:
    import torch

    target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def data() -> Buffer:
        flat = tensor.detach().to(device="cpu", dtype=target).contiguous().view(-1)
        return flat.view(torch.uint8).numpy().data

    return Item(name, names()[target], tuple(tensor.shape), data)


def names() -> dict[torch.dtype, str]:
    """safetensors' names of torch's dtypes."""
    import torch

    return {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
