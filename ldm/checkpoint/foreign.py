"""What a path or a file is that is not safetensors, in a sentence with the remedy. Only its first bytes are read, none are run."""

from __future__ import annotations

import re
import stat
from pathlib import Path

SNIFF = 512  # bytes that are looked at
FORMAT_MAX = 100_000_000  # bytes: the format's own limit of a header
_PICKLE = "pickles can run code and are refused: get the .safetensors version, or have it converted first"
_PACKED = "unpack it and name the .safetensors file inside"
_PICTURE = "a picture, not weights: `ldm info` shows what made it"

MAGIC = (
    (b"GGUF", "a GGUF file: get the .safetensors version"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: fetch it with `git lfs pull` or download it again"),
    (b"# xet version", "a Xet pointer, not the file itself: download it again"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {_PACKED}"),
    (b"Rar!\x1a\x07", f"a RAR archive: {_PACKED}"),
    (b"\x1f\x8b", f"a gzip archive: {_PACKED}"),
    (b"BZh", f"a bzip2 archive: {_PACKED}"),
    (b"\xfd7zXZ\0", f"an xz archive: {_PACKED}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd archive: {_PACKED}"),
    (b"\x89HDF\r\n", "an HDF5 file (.h5): get the .safetensors version"),
    (b"\x93NUMPY", "a numpy array (.npy): get the .safetensors version"),
    (b"%PDF-", "a PDF document, not weights: name a .safetensors file"),
)
# Protocols 2 to 5 begin with their number; 0 and 1 with a dict, a list, a tuple of them, or a global's module and name.
_PICKLED = re.compile(rb"\x80[\x02-\x05]|\(?(?:[dl]p?\d*\n|c[A-Za-z_][\w.]*\n\w+\n|[\]}]q.)", re.DOTALL)
_PAGE = re.compile(rb"<[!?A-Za-z]")


def absent(path: Path, error: OSError | ValueError) -> str:
    """Why a path cannot be opened."""
    if isinstance(error, FileNotFoundError):
        here = _nearby(path.parent)
        return f"no such file: {f'the folder has {here}' if here else 'check the path'}"
    return f"cannot be opened ({error.strerror if isinstance(error, OSError) else error}): check the path and its permissions"


def irregular(path: Path, mode: int) -> str:
    """What an opened path is that is not a regular file."""
    if stat.S_ISDIR(mode):
        here = _nearby(path)
        return f"is a folder: name a .safetensors file{f' in it, it has {here}' if here else ''}"
    return f"is {'a pipe' if stat.S_ISFIFO(mode) else 'a device'}, not a regular file: name a .safetensors file"


def _nearby(folder: Path) -> str:
    return ", ".join(sorted(each.name for each in folder.glob("*.safetensors"))[:5]) if folder.is_dir() else ""


def faulty(what: str) -> str:
    """The sentence for a file that breaks the format."""
    return f"{what}: the file is damaged or was written by a faulty tool, download it again"


def misbegun(first: bytes, length: int, size: int) -> tuple[str, str]:
    """Why a file of `size` bytes does not begin as safetensors, and the error's code; `length` is what its first 8 bytes say."""
    if size == 0:
        return "truncated: the file is empty: download it again", "E3003"
    if not any(first):
        return "begins with zeros: the download did not finish, download it again", "E3003"
    brace = first[8:9] == b"{"
    if size > 8 and not (brace and first[4:8] == bytes(4)) and (other := kind(first)):  # a length can look like another kind's mark
        return f"is {other}", "E3002"
    if size < 10 or (brace and size - 8 < length <= FORMAT_MAX):
        need = 8 + length if size > 7 and 2 <= length <= FORMAT_MAX else 10
        return f"truncated: has {size:,} of at least {need:,} bytes: download it again", "E3003"
    if brace and length > FORMAT_MAX:
        what = f"header too large: {length:,} bytes, the format allows {FORMAT_MAX:,}, whatever --max-header says"
        return f"{what}: the file is damaged, download it again", "E3005"
    if brace:
        return faulty(f"the header's length at byte 0 is {length}, the least is 2"), "E3004"
    if 2 <= length <= min(size - 8, FORMAT_MAX):
        return faulty(f"the header begins with {_beginning(first[8:])} at byte 8, it must begin with '{{'"), "E3004"
    return "is not a safetensors file (8 bytes of length, then a header that begins with '{'): name a .safetensors file", "E3002"


def _beginning(first: bytes) -> str:
    if first.startswith(b"\xef\xbb\xbf"):
        return "a byte order mark"
    return "white space" if first[:1].isspace() else repr(first[:1])[1:]


def picture_format(first: bytes) -> str | None:
    """PNG, JPEG, WEBP or AVIF, where a file that begins so can be one; its first 12 bytes are enough to tell."""
    if first.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if first.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if first[:4] == b"RIFF" and first[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if first[4:8] == b"ftyp" else None


def kind(first: bytes) -> str | None:
    """What a file that begins so is, and what to do, if it can be told; `first` are its first SNIFF bytes, or all."""
    if picture_format(first):
        return _PICTURE
    for magic, sentence in MAGIC:
        if first.startswith(magic):
            return sentence
    if first.startswith(b"PK\x03\x04"):
        return f"a PyTorch file (.ckpt, .pt): {_PICKLE}" if b"/data.pkl" in first else f"a zip archive, perhaps of a pickle: {_PICKLE}"
    if _PICKLED.match(first):
        return f"a Python pickle (.ckpt, .pt, .pkl): {_PICKLE}"
    if first[257:262] == b"ustar":
        return f"a tar archive: {_PACKED}"
    return _text(first)


def _text(first: bytes) -> str | None:
    """Pages, JSON and plain text: what a download brings in place of the file."""
    try:
        text = first.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "strict" if len(first) < SNIFF else "ignore").lstrip()
    except UnicodeDecodeError:
        return None
    if _PAGE.match(text.encode()):
        return "an HTML or XML page, not weights: the download was answered by a web page, download again"
    if "weight_map" in text and text.startswith("{"):
        return "the index of a model in several files (.index.json), not weights: name one .safetensors file"
    if len(text) < 8 or not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return None
    what = "JSON" if text.startswith(("{", "[")) else "text"
    return f"{what} that begins {' '.join(text.split())[:60]!r}, not weights: name a .safetensors file, or download it again"
