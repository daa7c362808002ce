"""Where a picture file keeps its size and what is said beside the pixels: PNG, JPEG, WebP and AVIF, walked by their headers.

Nothing is decoded and nothing is trusted: lengths are checked against the file, counts and sizes have limits,
and what is damaged becomes a note.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from ldm.checkpoint.foreign import picture_format
from ldm.metadata import png
from ldm.metadata.boxes import find as find_boxes

PARTS = 100_000  # chunks or segments of one file that are looked at
LIMIT = 64 * 2**20  # bytes of all texts of one file
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_OTHER = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"8BPS": "a Photoshop file",
    b"II*\0": "a TIFF or raw picture",
    b"MM\0*": "a TIFF or raw picture",
    b"SIMPLE": "a FITS file",
    b"%!PS": "PostScript",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<?xml": "XML",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\xff\x0a": "a JPEG XL",
}


@dataclass
class Container:
    """What stands in a picture file's headers."""

    format: str  # PNG, JPEG, WEBP or AVIF
    size: tuple[int, int] = (0, 0)  # width, height; the largest that is claimed
    texts: dict[str, str] = field(default_factory=dict)  # PNG's
    exif: bytes = b""
    xmp: bytes = b""
    animated: bool = False
    bits: int = 8  # a channel, where the header says it
    notes: list[str] = field(default_factory=list)
    left: int = LIMIT

    def room(self, length: int, what: str) -> bool:
        """Whether a text of `length` bytes may be read; a note where not."""
        if length <= min(self.left, png.LIMIT):
            self.left -= length
            return True
        self.notes.append(f"{what} of {length} bytes is too long to be read")
        return False

    def claim(self, width: int, height: int) -> None:
        """A size that the file states; the largest counts."""
        self.size = max(self.size, (width, height), key=lambda size: size[0] * size[1])


def find(file: BinaryIO) -> Container:
    """Walk `file`. Raises ValueError, saying what it is, where it is none of the four or states no size."""
    head = file.read(16)
    kind = picture_format(head)
    if kind is None:
        unknown = "no known format" if head else "empty"
        raise ValueError(next((name for start, name in _OTHER.items() if head.startswith(start)), unknown))
    file.seek(0)
    found = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "AVIF": _avif}[kind](file)
    if min(found.size) < 1:
        raise ValueError(f"a {found.format} whose header is damaged")
    return found


def _parts(file: BinaryIO, start: int, order: str) -> Iterator[tuple[bytes, int]]:
    """(type, length) of each chunk of PNG ("big": length, type, data, CRC) and RIFF ("little": type, length, data, padding)."""
    big = order == "big"
    at = start
    for _ in range(PARTS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4] if big else head[4:], "big" if big else "little")
        yield head[4:] if big else head[:4], length
        at += 8 + length + (4 if big else length % 2)


def _png(file: BinaryIO) -> Container:
    found = Container("PNG")
    kind = b""
    for kind, length in _parts(file, 8, "big"):
        if kind == b"IEND":
            break
        if kind == b"IHDR" and length == 13 and found.size == (0, 0):
            data = file.read(13)
            found.claim(int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big"))
            found.bits = data[8] if len(data) > 8 else 0
        elif kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf") and found.room(length, kind.decode()):
            _keep_text(found, kind, file.read(length), file.read(4))
        found.animated |= kind == b"acTL"
    if kind != b"IEND":
        found.notes.append("the file is cut short, or its chunks are too many")
    return found


def _keep_text(found: Container, kind: bytes, data: bytes, crc: bytes) -> None:
    if zlib.crc32(kind + data).to_bytes(4, "big") != crc:
        found.notes.append(f"a {kind.decode()} chunk is damaged: its checksum differs")
        return
    if kind == b"eXIf":
        found.exif = data
        return
    try:
        key, text = png.read(kind, data)
    except ValueError as error:
        found.notes.append(f"a {kind.decode()} chunk is damaged: {str(error)[:60]}")
        return
    if key == png.XMP:
        found.xmp = text.encode()
        return
    if key in found.texts:
        found.notes.append(f"the text {key!r} stands twice: the last counts")
    found.texts[key] = text
    found.left -= max(0, len(text) - len(data))  # packed texts count unpacked


def _jpeg(file: BinaryIO) -> Container:
    found = Container("JPEG")
    for marker, length in _segments(file):
        if marker in _SOF:
            data = file.read(5)
            found.claim(int.from_bytes(data[3:5], "big"), int.from_bytes(data[1:3], "big"))
        elif marker == 0xE1 and found.room(length, "a segment"):
            data = file.read(length)
            if data.startswith(b"Exif\0"):
                found.exif += data if not found.exif else data[6:]
            elif data.startswith(_XMP) and not found.xmp:
                found.xmp = data.removeprefix(_XMP)
    return found


def _segments(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(marker, length of the data) of each segment before the pixels, the file standing at its data."""
    at = 2
    for _ in range(PARTS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):  # the scan, the end
            return
        if head[1] == 0xFF:  # padding
            at += 1
        elif head[1] in _BARE:
            at += 2
        else:
            length = int.from_bytes(head[2:], "big")
            yield head[1], max(length - 2, 0)
            at += 2 + max(length, 2)


def _webp(file: BinaryIO) -> Container:
    found = Container("WEBP")
    for kind, length in _parts(file, 12, "little"):
        if kind in (b"VP8X", b"VP8 ", b"VP8L"):
            _webp_size(found, kind, file.read(10))
        elif kind in (b"EXIF", b"XMP ") and found.room(length, kind.decode().strip()):
            data = file.read(length)
            if kind == b"EXIF":
                found.exif = data
            else:
                found.xmp = data
    return found


def _webp_size(found: Container, kind: bytes, data: bytes) -> None:
    if kind == b"VP8X":
        found.claim(int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1)
        found.animated |= bool(data[:1] and data[0] & 2)
    elif kind == b"VP8L":
        packed = int.from_bytes(data[1:5], "little")
        found.claim((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    else:
        found.claim(int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF)


def _avif(file: BinaryIO) -> Container:
    found = Container("AVIF")
    boxes = find_boxes(file)
    for width, height in boxes.sizes:
        found.claim(width, height)
    found.animated = boxes.animated
    found.exif, found.xmp = boxes.exif, boxes.xmp
    found.notes += boxes.notes
    return found
