"""The header of a safetensors file, without torch: what is in the file and where, or a sentence that says why it is not one.

Format: safetensors README and `tensor.rs`: 8 bytes N (little-endian), N bytes of JSON, the data. This reader trusts offsets alone (official
files are not aligned: sd_xl_base_1.0 starts its data at byte 402,444) and is stricter than the reference, which accepts duplicate names.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unicodedata import category

from ldm.errors import InputError

MAX_HEADER = 16 * 2**20  # bytes; sd_xl_base_1.0 has 402,436
MAX_TENSORS = 100_000  # sd_xl_base_1.0 has 2,515
MAX_NAME = 512  # bytes
MAX_RANK = 8
MAX_DIM = 2**48
BITS = {
    "BOOL": 8,
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}  # of one value; names and order are those of safetensors 0.8


class Entry(NamedTuple):
    """One tensor: `start` and `end` are offsets in the file, not in its data section."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    path: Path
    size: int  # bytes of the whole file
    data_start: int  # offset of the data section
    tensors: dict[str, Entry]  # in the order of the JSON
    metadata: dict[str, str]
    stamp: tuple[int, int, int]  # see `stamp`


def read_header(path: str | os.PathLike[str]) -> Header:
    """The checked header of a file. Raises InputError, which names the file, what is wrong with it and what to do."""
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: {_absent(path, error)}") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file"
            raise InputError(f"{path}: is {kind}: name a .safetensors file")
        return _parse(path, descriptor, info)
    finally:
        os.close(descriptor)


def stamp(info: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is replaced, cut or rewritten: inode, size, time of modification in ns."""
    return info.st_ino, info.st_size, info.st_mtime_ns


def _absent(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        here = ", ".join(sorted(each.name for each in path.parent.glob("*.safetensors"))[:5]) if path.parent.is_dir() else ""
        return f"no such file: {f'the folder has {here}' if here else 'check the path'}"
    return f"cannot be opened ({error.strerror}): check its permissions"


def _parse(path: Path, descriptor: int, info: os.stat_result) -> Header:
    first = os.pread(descriptor, 512, 0)
    length = int.from_bytes(first[:8], "little")
    if info.st_size < 10 or not 2 <= length <= info.st_size - 8 or first[8:9] != b"{":
        raise InputError(f"{path}: {_kind(first, length, info.st_size)}")
    if length > MAX_HEADER:
        raise InputError(f"{path}: header too large: {length:,} bytes, the limit is {MAX_HEADER:,}: no file of weights needs so much")
    raw = os.pread(descriptor, length, 8)
    try:
        tensors, metadata = _tables(_json(raw), 8 + length)
        _check_cover(tensors, 8 + length, info.st_size)
    except _Fault as fault:
        raise InputError(f"{path}: {fault}") from None
    return Header(path, info.st_size, 8 + length, tensors, metadata, stamp(info))


MAGIC = (
    (b"PK\x03\x04", "a zip archive, probably a pickle (.ckpt, .pt): pickles can run code and are refused, get the .safetensors file"),
    (b"GGUF", "a GGUF file: get the .safetensors version"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: fetch it with `git lfs pull` or download it again"),
    (b"<", "an HTML or XML page, not weights: the download was answered by a web page, download again"),
    *((bytes((0x80, n)), "a Python pickle: pickles can run code and are refused, get the .safetensors file") for n in range(2, 6)),
)  # how other files begin


def _kind(first: bytes, length: int, size: int) -> str:
    """What a file that does not begin as safetensors is, and the remedy."""
    if size == 0:
        return "is empty: download it again"
    for magic, kind in MAGIC:
        if first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(magic):
            return f"is {kind}"
    if not any(first):
        return "begins with zeros: the download did not finish, download it again"
    if size < 10:
        return f"truncated: {size} bytes are too few for a safetensors file: download it again"
    if first[8:9] == b"{" and 8 + length > size:
        return f"truncated: has {size:,} of at least {8 + length:,} bytes: download it again"
    return "is not a safetensors file (8 bytes of length, then a header that must begin with '{'): name a .safetensors file"


class _Fault(Exception):
    """What is wrong in a header, with the remedy; the file's name is put before it."""


def _fault(what: str) -> NoReturn:
    raise _Fault(f"{what}: the file is damaged or was written by a faulty tool, download it again")


def _json(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        table = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_not_integer, parse_constant=_not_integer)
    except UnicodeDecodeError as error:
        _fault(f"the header is not UTF-8 at byte {8 + error.start}")
    except json.JSONDecodeError as error:
        _fault(f"the header is not JSON ({error.msg} at character {error.pos})")
    except RecursionError:
        _fault("the header is nested too deeply")
    if not isinstance(table, dict):
        _fault("the header is not a JSON object")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                _fault(f"duplicate name {name[:MAX_NAME]!r} in the header")
            seen.add(name)
    return table


def _integer(text: str) -> int:
    if text.startswith("-") or len(text) > 19:
        _fault(f"{text[:30]} in the header where a number from 0 to 2^63 is due")
    return int(text)


def _not_integer(text: str) -> NoReturn:
    _fault(f"{text[:30]} in the header is not an integer")


def _tables(table: dict[str, Any], data_start: int) -> tuple[dict[str, Entry], dict[str, str]]:
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _fault("__metadata__ does not map strings to strings")
    if len(table) > MAX_TENSORS:
        raise _Fault(f"{len(table):,} tensors, the limit is {MAX_TENSORS:,}: no file of weights needs so many")
    for name in table:
        _check_name(name)
    return {name: _entry(name, value, data_start) for name, value in table.items()}, metadata


def _check_name(name: str) -> None:
    if not name:
        _fault("a tensor without a name")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        _fault(f"tensor {name[:60]!r}: the name is not Unicode text")
    if size > MAX_NAME or (not name.isprintable() and any(category(letter) == "Cc" for letter in name)):
        _fault(f"tensor {name[:60]!r}: names have at most {MAX_NAME} bytes and no control characters")


def _entry(name: str, value: Any, data_start: int) -> Entry:
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        _fault(f"tensor {name!r}: the fields are not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in BITS:
        raise _Fault(f"tensor {name!r}: unknown dtype {str(dtype)[:30]!r}: the known ones are {', '.join(BITS)}")
    if not _integers(shape) or len(shape) > MAX_RANK or any(dim > MAX_DIM for dim in shape):
        _fault(f"tensor {name!r}: the shape is not a list of at most {MAX_RANK} integers up to 2^48")
    if not _integers(offsets) or len(offsets) != 2:
        _fault(f"tensor {name!r}: data_offsets is not two integers")
    start, end = offsets
    if (end - start) * 8 != reduce(mul, shape, BITS[dtype]):
        _fault(f"tensor {name!r}: {end - start:,} bytes do not hold {dtype} {tuple(shape)}")
    return Entry(dtype, tuple(shape), data_start + start, data_start + end)


def _integers(value: Any) -> bool:
    return type(value) is list and all(type(item) is int for item in value)


def _check_cover(tensors: dict[str, Entry], data_start: int, size: int) -> None:
    """The tensors cover the data section exactly: no hole, no overlap, no byte after the last."""
    end = data_start
    for name, entry in _by_place(tensors.items()):
        if entry.start != end:
            _fault(f"tensor {name!r}: {'a hole' if entry.start > end else 'an overlap'} of {abs(entry.start - end):,} bytes before it")
        end = entry.end
    if size < end:
        raise _Fault(f"truncated: has {size:,} of {end:,} bytes: download it again")
    if size > end:
        _fault(f"{size - end:,} bytes after the last tensor")


def _by_place(items: Iterable[tuple[str, Entry]]) -> list[tuple[str, Entry]]:
    return sorted(items, key=lambda item: (item[1].start, item[1].end))
