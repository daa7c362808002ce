"""The header of a safetensors file, without torch: what is in the file and where, or a sentence that says why it is not one.

Format: safetensors README and `tensor.rs`: 8 bytes N (little-endian), N bytes of JSON, the data. This reader trusts offsets alone (official
files are not aligned: sd_xl_base_1.0 starts its data at byte 402,444) and is stricter than the reference, which accepts duplicate names.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import mul
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn
from unicodedata import category

from ldm.checkpoint.foreign import FORMAT_MAX, SNIFF, absent, faulty, irregular, misbegun
from ldm.errors import FileError
from ldm.files import READ, read_at

MAX_HEADER = 16 * 2**20  # bytes; sd_xl_base_1.0 has 402,436
MAX_TENSORS = 100_000  # sd_xl_base_1.0 has 2,515
MAX_NAME = 512  # bytes
MAX_RANK = 8
MAX_DIM = 2**48
TICK = 10_000_000  # ns: the coarsest clock by which a kernel dates a change; two writes within one tick have one date
MARKS = {b"{": 1, b"[": 2, b'"': 10, b",": 4 + MAX_RANK - 1}  # what the JSON of one tensor has of each, at most
FREE_MARKS = 100_000  # more of each, for the metadata
BITS = {
    "BOOL": 8,
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}  # of one value; names and order are those of safetensors 0.8
FIELDS = {"dtype", "shape", "data_offsets"}
Read = Callable[[int, int], bytes]  # (count, offset): so many bytes of the file, never asked for beyond its end
Stamp = tuple[int, int, int, int]  # see `stamp`


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
    stamp: Stamp
    young: bool = field(default=False, compare=False)  # read so soon after the file's last change that the next may have the same date


def read_header(path: str | os.PathLike[str], max_header: int = MAX_HEADER) -> Header:
    """The checked header of a file. Raises FileError, which names the file, what is wrong with it and what to do.

    A `max_header` above the usual one lifts the limit on tensors too (the header's size bounds them), the format's limit never.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, READ)
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: {absent(path, error)}", "E3001") from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise FileError(f"{path}: {irregular(path, info.st_mode)}", "E3001")
        young = 0 <= time.time_ns() - info.st_mtime_ns < TICK
        return parse(path, partial(_pread, descriptor), info.st_size, stamp(info), max_header, young=young)
    finally:
        os.close(descriptor)


def stamp(info: os.stat_result) -> Stamp:
    """What changes when a file is replaced, cut or rewritten: device, inode, size, time of modification in ns."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def parse(path: Path, read: Read, size: int, stamp: Stamp, max_header: int = MAX_HEADER, *, young: bool = False) -> Header:
    """The checked header of `size` bytes that `read` gives. Raises FileError, which names `path`."""
    try:
        length = _length(read(min(size, SNIFF), 0), size, min(max_header, FORMAT_MAX))
        table = _json(read(length, 8), lifted=max_header > MAX_HEADER)
        metadata = _metadata(table)
        tensors = {name: _entry(_checked(name), value, 8 + length) for name, value in table.items()}
        _check_cover(tensors, 8 + length, size)
    except _Fault as fault:
        raise FileError(f"{path}: {fault}", fault.code) from None
    return Header(path, size, 8 + length, tensors, metadata, stamp, young)


class _Fault(Exception):
    """What is wrong, with the remedy; the file's name is put before it."""

    def __init__(self, message: str, code: str = "E3004") -> None:
        super().__init__(message)
        self.code = code


def _fault(what: str) -> NoReturn:
    raise _Fault(faulty(what))


def _too_large(what: str, limit: str) -> NoReturn:
    raise _Fault(f"header too large: {what}, the limit is {limit}: no file of weights needs so much, --max-header lifts it", "E3005")


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    try:
        found = read_at(descriptor, count, offset)
    except OSError as error:
        raise _Fault(f"cannot be read at byte {offset:,} ({error.strerror}): check the disk", "E3009") from None
    if len(found) < count:
        raise _Fault(f"ends at byte {offset + len(found):,} since it was opened: run again when it is written", "E3009")
    return found


def _length(first: bytes, size: int, limit: int) -> int:
    """The length of the header, which lies inside the file and within the limit and begins with a brace."""
    length = int.from_bytes(first[:8], "little")
    if first[8:9] != b"{" or not 2 <= length <= min(size - 8, FORMAT_MAX):
        raise _Fault(*misbegun(first, length, size))
    if length > limit:
        _too_large(f"{length:,} bytes", f"{limit:,} (--max-header)")
    return length


class _Literal(str):
    """A number that is no integer of the format, as its first characters stand in the file."""


class _Repeated(NamedTuple):
    """In place of an object that has a key twice."""

    key: str


def _json(raw: bytes, *, lifted: bool) -> dict[str, Any]:
    """The header's object."""
    if not lifted:
        _check_marks(raw)
    try:
        text = raw.decode("utf-8")
        del raw  # a header of 16 MB is held once
        table = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_literal, parse_constant=_literal)
    except UnicodeDecodeError as error:
        _fault(f"the header is not UTF-8 at byte {8 + error.start:,}")
    except json.JSONDecodeError as error:
        _fault(f"the header is not JSON at byte {8 + len(text[: error.pos].encode()):,} ({error.msg})")
    except RecursionError:
        _fault("the header is nested too deeply")
    if type(table) is _Repeated:
        _fault(f"duplicate name {_shown(table.key)} in the header")
    if len(table) > MAX_TENSORS + ("__metadata__" in table) and not lifted:
        _too_large(f"{len(table):,} tensors", f"{MAX_TENSORS:,}")
    return table


def _check_marks(raw: bytes) -> None:
    """A header of small lists takes 20 times its bytes when it is parsed, so what it can become is bounded before."""
    for mark, each in MARKS.items():
        limit = each * MAX_TENSORS + FREE_MARKS
        if len(raw) > limit and (count := raw.count(mark)) > limit:
            _too_large(f"{count:,} of {mark.decode()!r}", f"{limit:,} (those of {MAX_TENSORS:,} tensors)")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    table = dict(pairs)
    return table if len(table) == len(pairs) else _Repeated(Counter(key for key, _ in pairs).most_common(1)[0][0])


def _integer(text: str) -> int | _Literal:
    return int(text) if len(text) < 20 and text[0] != "-" else _literal(text)


def _literal(text: str) -> _Literal:
    return _Literal(text[:30])


def _shown(value: Any) -> str:
    """A value of the JSON, short and on one line."""
    if type(value) is str:
        return repr(value[:60])
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, NoneType)):
        return json.dumps(value)
    return str(value) if type(value) is int else f"a{' list' if type(value) is list else 'n object'}"


def _metadata(table: dict[str, Any]) -> dict[str, str]:
    metadata = table.pop("__metadata__", {})
    if type(metadata) is _Repeated:
        _fault(f"duplicate key {_shown(metadata.key)} in __metadata__")
    if type(metadata) is not dict:
        _fault(f"__metadata__ is {_shown(metadata)}, not an object")
    for key, value in metadata.items():
        if type(value) is not str:
            _fault(f"__metadata__: {_shown(key)} is {_shown(value)}, not a string")
        if not (_is_unicode(key) and _is_unicode(value)):
            _fault(f"__metadata__: {_shown(key)} is not Unicode text, it has half of a surrogate pair")
    return metadata


def _is_unicode(text: str) -> bool:
    """No half of a surrogate pair, which JSON's escapes can write."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _checked(name: str) -> str:
    if not name:
        _fault("a tensor without a name")
    if not _is_unicode(name):
        _fault(f"tensor {_shown(name)}: the name is not Unicode text, it has half of a surrogate pair")
    if len(name) > MAX_NAME // 4 and len(name.encode()) > MAX_NAME:
        _fault(f"tensor {_shown(name)}: the name has {len(name.encode()):,} bytes, at most {MAX_NAME} are allowed")
    if not name.isprintable() and any(category(letter) == "Cc" for letter in name):
        _fault(f"tensor {_shown(name)}: the name has a control character")
    return name


def _entry(name: str, value: Any, data_start: int) -> Entry:
    if type(value) is not dict or value.keys() != FIELDS:
        _misfielded(name, value)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in BITS:
        raise _Fault(f"tensor {_shown(name)}: unknown dtype {_shown(dtype)}: the known ones are {', '.join(BITS)}")
    _check_integers(name, "shape", shape)
    _check_integers(name, "data_offsets", offsets)
    if len(shape) > MAX_RANK:
        _fault(f"tensor {_shown(name)}: the shape has {len(shape):,} dimensions, at most {MAX_RANK} are allowed")
    if len(offsets) != 2:
        _fault(f"tensor {_shown(name)}: data_offsets has {len(offsets):,} numbers, two are due")
    start, end = offsets
    if end < start:
        _fault(f"tensor {_shown(name)}: data_offsets end at {end}, before they begin at {start}")
    if (end - start) * 8 != reduce(mul, shape, BITS[dtype]):
        _fault(f"tensor {_shown(name)}: {end - start:,} bytes do not hold {dtype} {tuple(shape)}")
    if start == end or max(shape, default=0) > MAX_DIM:
        _check_dims(name, dtype, shape)
    return Entry(dtype, tuple(shape), data_start + start, data_start + end)


def _misfielded(name: str, value: Any) -> NoReturn:
    if type(value) is _Repeated:
        _fault(f"tensor {_shown(name)}: duplicate field {_shown(value.key)}")
    if type(value) is not dict:
        _fault(f"tensor {_shown(name)}: is {_shown(value)}, not an object")
    missing, unknown = FIELDS - value.keys(), value.keys() - FIELDS
    what = f"{min(missing)} is missing" if missing else f"unknown field {_shown(min(unknown))}"
    _fault(f"tensor {_shown(name)}: {what}, the fields are dtype, shape and data_offsets")


def _check_integers(name: str, field: str, value: Any) -> None:
    if type(value) is not list:
        _fault(f"tensor {_shown(name)}: {field} is {_shown(value)}, not a list")
    for i, item in enumerate(value):
        if type(item) is not int:
            _fault(f"tensor {_shown(name)}: {field}[{i}] is {_shown(item)}, not an integer from 0 to 2^63")


def _check_dims(name: str, dtype: str, shape: list[int]) -> None:
    """Tensors without a value can have any dimensions but one: those whose product overflows in other readers are refused."""
    if max(shape) > MAX_DIM:
        _fault(f"tensor {_shown(name)}: dimension {max(shape)} is above 2^48")
    if reduce(mul, filter(None, shape), BITS[dtype]) >= 2**63:
        _fault(f"tensor {_shown(name)}: the dimensions {tuple(shape)} overflow")


def _check_cover(tensors: dict[str, Entry], data_start: int, size: int) -> None:
    """The tensors cover the data section exactly: no hole, no overlap, no byte after the last."""
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            what = "a hole" if entry.start > end else "an overlap"
            _fault(f"tensor {_shown(name)}: {what} of {abs(entry.start - end):,} bytes before it at byte {entry.start:,}")
        end = entry.end
    if size < end:
        raise _Fault(f"truncated: has {size:,} of {end:,} bytes: download it again", "E3003")
    if size > end:
        _fault(f"{size - end:,} bytes after the last tensor, from byte {end:,}")
