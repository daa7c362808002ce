"""EXIF as pictures carry texts in it: one field, UserComment, written; the few that programs use, read. No Pillow here.

    Exif\\0\\0 | MM\\0* 00000008 | IFD0: Exif IFD | Exif IFD: ExifVersion 0232, UserComment | UNICODE\\0 text in UTF-16, big-endian

Big-endian throughout, because readers of UserComment take its text for big-endian whatever the file's own order is.
"""

from __future__ import annotations

import re
import struct

HEAD = b"Exif\0\0"
JPEG_LIMIT = 65_533  # bytes of `write` that one segment holds
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_TEXTS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software"}
_SIZES = {1: 1, 2: 1, 7: 1}  # the types that hold bytes: BYTE, ASCII, UNDEFINED
_ENTRIES = 1000  # read of one directory
_KEYED = re.compile(r"([A-Za-z_][\w-]{0,40}):(?=[{\[\"])")


def write(comment: str) -> bytes:
    """The block with `comment` as UserComment. Raises UnicodeEncodeError for a lone surrogate."""
    content = _UNICODE + comment.encode("utf-16-be")
    fields = struct.pack(">HHI4s", 0x9000, 7, 4, b"0232") + struct.pack(">HHII", _USER_COMMENT, 7, len(content), 56)
    first = struct.pack(">H HHII I", 1, _EXIF_IFD, 4, 1, 26, 0)
    return HEAD + b"MM\0*" + struct.pack(">I", 8) + first + struct.pack(">H", 2) + fields + struct.pack(">I", 0) + content


def read(data: bytes) -> dict[str, str]:
    """The texts of a stranger's block by name: `parameters` is UserComment, `KEY:{json}` in a field is the text of KEY.

    Never raises: what is damaged is left out.
    """
    data = data.removeprefix(HEAD)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return {}
    found: dict[str, str] = {}
    fields = _directory(data, order, _number(data, order, 4))
    fields |= _directory(data, order, int.from_bytes(fields.get(_EXIF_IFD, b""), "little" if order == "<" else "big"))
    for tag, value in fields.items():
        if tag == _USER_COMMENT:
            text = value.removeprefix(_UNICODE).decode("utf-16-be", "replace")
            found["parameters"] = text if HEAD + data == write(text) else _comment(value)  # our own exactly
        elif tag in _TEXTS:
            name, text = _keyed(_TEXTS[tag], value.decode("utf-8", "replace").rstrip("\0"))
            found.setdefault(name, text)
    return {name: text for name, text in found.items() if text}


def _number(data: bytes, order: str, at: int) -> int:
    return int(struct.unpack_from(order + "I", data, at)[0]) if at + 4 <= len(data) else 0


def _directory(data: bytes, order: str, start: int) -> dict[int, bytes]:
    """The wanted fields of the directory at `start`; that of a sub-directory is its offset."""
    found: dict[int, bytes] = {}
    if not 8 <= start <= len(data) - 2:
        return found
    (count,) = struct.unpack_from(order + "H", data, start)
    for at in range(start + 2, min(start + 2 + 12 * min(count, _ENTRIES), len(data) - 11), 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, at)
        if tag == _EXIF_IFD:
            found[tag] = data[at + 8 : at + 12]
        elif (tag in _TEXTS or tag == _USER_COMMENT) and kind in _SIZES:
            offset = at + 8 if length <= 4 else _number(data, order, at + 8)
            found.setdefault(tag, data[offset : offset + length])
    return found


def _keyed(name: str, text: str) -> tuple[str, str]:
    """`prompt:{...}` in Model is the text `prompt`; a JSON object without a key is what others call `parameters`."""
    match = _KEYED.match(text)
    if match:
        return match[1], text[match.end() :]
    return ("parameters" if text.startswith("{") else name), text


def _comment(value: bytes) -> str:
    kind, body = value[:8], value[8:]
    if kind == _UNICODE:
        return _utf16(body)
    if kind in (_ASCII, bytes(8)):
        return body.decode("utf-8", "replace").rstrip("\0")
    return value.decode("utf-8", "replace").rstrip("\0")  # no character code at all: some write the text alone


def _utf16(body: bytes) -> str:
    """In the byte order that gives more ASCII, as writers do the one or the other; big-endian where that does not tell."""
    big, little = (body.decode(f"utf-16-{order}", "replace").rstrip("\0") for order in ("be", "le"))
    return (little if _ascii(little) > _ascii(big) else big).removeprefix("\ufeff")


def _ascii(text: str) -> int:
    return sum(character < "\x80" for character in text)
