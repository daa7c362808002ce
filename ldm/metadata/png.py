"""PNG's text chunks: how a text is laid out in one, which keys there are, and how a stranger's chunk is read. No Pillow here."""

from __future__ import annotations

import re
import zlib

from ldm.errors import InputError

XMP = "XML:com.adobe.xmp"
LIMIT = 16 * 2**20  # bytes of one text that is read, unpacked
_KEY = re.compile(r"[!-~\xa1-\xff]( ?[!-~\xa1-\xff]){0,78}")  # no space at the ends, none doubled
_LATIN = re.compile("[\n -~\xa0-\xff]*")  # what every reader of tEXt takes for the same characters


def check(key: str, text: str) -> None:
    """InputError unless a reader would get this key and this text back exactly."""
    if not _KEY.fullmatch(key) or len(key) > 79:
        raise InputError(f"text key {key[:80]!r}: PNG takes 1 to 79 printable Latin-1 characters, single spaces inside: choose another")
    bad = re.search("[\0\ud800-\udfff]", text)
    if bad:
        what = "the character NUL" if bad[0] == "\0" else "half a surrogate pair"
        raise InputError(f"text {key!r} holds {what} at character {bad.start() + 1}, which no picture file can carry: take it out")


def chunk(key: str, text: str) -> tuple[bytes, bytes]:
    """The type and the data of the chunk: tEXt for printable Latin-1, iTXt otherwise; never packed. InputError as `check`."""
    check(key, text)
    if _LATIN.fullmatch(text) and key != XMP:
        return b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1")
    return b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def read(kind: bytes, data: bytes) -> tuple[str, str]:
    """Key and text of a chunk's data. Raises ValueError where it breaks the format or unpacks to more than LIMIT bytes."""
    key, mark, rest = data.partition(b"\0")
    if not mark or not 1 <= len(key) <= 79:
        raise ValueError("no key")
    name = key.decode("latin-1")
    if kind == b"tEXt":
        return name, rest.decode("latin-1")
    if kind == b"zTXt":
        return name, _unpack(rest[1:]).decode("latin-1")
    packed, parts = rest[:1], rest[2:].split(b"\0", 2)
    if len(parts) < 3:
        raise ValueError("iTXt without its fields")
    return name, (_unpack(parts[2]) if packed == b"\1" else parts[2]).decode()


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, LIMIT + 1)
    except zlib.error as error:
        raise ValueError("packed text is damaged") from error
    if len(text) > LIMIT or not unpacker.eof:
        raise ValueError("packed text is cut or too long")
    return text
