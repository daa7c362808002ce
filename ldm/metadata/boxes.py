"""AVIF's boxes (ISO base media): the sizes, EXIF and XMP of a file, found through `meta` without a decoder.

ftyp  the brands: avif for a picture, avis for a sequence
meta  iinf: the items with their types (Exif; mime with application/rdf+xml)   iloc: where each item's bytes are
      iprp/ipco/ispe: the sizes of all items
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

LIMIT = 16 * 2**20  # bytes of `meta`, and of one item
_ITEMS = 10_000
_XMP = b"application/rdf+xml"


@dataclass
class Boxes:
    """What was found."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    exif: bytes = b""
    xmp: bytes = b""
    animated: bool = False
    notes: list[str] = field(default_factory=list)


class _Bytes:
    """Big-endian numbers from a piece of a file, one after another; beyond its end they raise EOFError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise EOFError
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def text(self) -> bytes:
        end = self.data.find(b"\0", self.at)
        return self.take((end if end >= 0 else len(self.data)) - self.at + (end >= 0)).rstrip(b"\0")


def find(file: BinaryIO) -> Boxes:
    """Walk `file`. Raises ValueError where it is of another brand than AVIF."""
    found = Boxes()
    brands, meta = _top(file)
    if not brands & {b"avif", b"avis"}:
        raise ValueError("a picture or film of another brand than AVIF")
    found.animated = b"avis" in brands
    parts: dict[bytes, bytes] = {}
    for kind, data in _boxes(meta[4:]):
        parts.setdefault(kind, data)
    found.sizes = list(_sizes(parts.get(b"iprp", b"")))
    try:
        items = dict(_items(parts.get(b"iinf", b"")))
        _fetch(file, found, items, _Bytes(parts.get(b"iloc", b"")), parts.get(b"idat", b""))
    except EOFError:
        found.notes.append("the list of items is damaged")
    return found


def _top(file: BinaryIO) -> tuple[set[bytes], bytes]:
    """The brands, and the content of `meta`."""
    brands: set[bytes] = set()
    meta = b""
    at = 0
    for _ in range(100):
        file.seek(at)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        start = 16 if size == 1 else 8
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        if len(head) < 8 or size < start:
            break
        file.seek(at + start)
        if kind == b"ftyp":
            data = file.read(min(size - start, 4096))
            brands = {data[:4], *(data[each : each + 4] for each in range(8, len(data), 4))}
        elif kind == b"meta" and size <= LIMIT:
            meta = file.read(size - start)
            break
        at += size
    return brands, meta


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of each box in `data`, up to the first that does not fit."""
    at = 0
    for _ in range(_ITEMS):
        size = int.from_bytes(data[at : at + 4], "big")
        if not 8 <= size <= len(data) - at:
            return
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size


def _sizes(properties: bytes) -> Iterator[tuple[int, int]]:
    for kind, content in _boxes(properties):
        for name, data in _boxes(content) if kind == b"ipco" else ():
            if name == b"ispe" and len(data) >= 12:
                yield int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")


def _items(content: bytes) -> Iterator[tuple[int, str]]:
    """(item, "exif" or "xmp") of the items that are one of them; the count in front is not needed."""
    for kind, data in _boxes(content[6 if content[:1] == b"\0" else 8 :]):
        entry = _Bytes(data)
        version = entry.number(4) >> 24
        if kind != b"infe" or version not in (2, 3):
            continue
        number = entry.number(2 if version == 2 else 4)
        entry.take(2)
        name = entry.take(4)
        entry.text()
        if name == b"Exif":
            yield number, "exif"
        elif name == b"mime" and entry.text() == _XMP:
            yield number, "xmp"


def _fetch(file: BinaryIO, found: Boxes, wanted: dict[int, str], places: _Bytes, inside: bytes) -> None:
    """Read the wanted items by iloc's table (ISO/IEC 14496-12, 8.11.3)."""
    version = places.number(4) >> 24
    packed = places.number(2)
    offset_size, length_size, base_size, index_size = (packed >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(min(places.number(4 if version == 2 else 2), _ITEMS)):
        number = places.number(4 if version == 2 else 2)
        method = places.number(2) & 15 if version else 0
        places.take(2)
        base = places.number(base_size)
        data, extents = b"", places.number(2)
        if extents > 1 and not offset_size + length_size:
            raise EOFError
        for _ in range(extents):
            if version:
                places.take(index_size)
            offset, length = base + places.number(offset_size), places.number(length_size)
            if number in wanted and len(data) + length <= LIMIT:
                data += _extent(file, offset, length) if method == 0 else inside[offset : offset + length]
        if number in wanted:
            _keep(found, wanted[number], data)


def _extent(file: BinaryIO, offset: int, length: int) -> bytes:
    if offset >= 2**63:
        return b""
    file.seek(offset)
    return file.read(length)


def _keep(found: Boxes, kind: str, data: bytes) -> None:
    if kind == "xmp":
        found.xmp = data
    else:  # a number says how far the TIFF head is from there
        found.exif = data[4 + int.from_bytes(data[:4], "big") :]
