"""Picture files: written with what they say of their making, read back, and a stranger's opened without trusting it.

docs/metadata.md is the specification of what stands where.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ldm
from ldm.errors import InputError
from ldm.files import write_atomic
from ldm.metadata import LIMIT, PARAMETERS, RECORD, exif, png, xmp

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
QUALITY = {"JPEG": 95, "WEBP": 90, "AVIF": 85}  # where none is asked for
SIDES = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_535}  # the longest side that the format holds
_SIDECAR_LIMIT = 2 * LIMIT


@dataclass(frozen=True)
class Marks:
    """What is said beside the pixels; `Marks()` says only that a model made them, and with what program."""

    parameters: str | None = None  # A1111's text
    record: str | None = None  # the lossless record
    source: str = xmp.TRAINED
    tool: str = f"ldm {ldm.__version__}"

    def texts(self) -> dict[str, str]:
        both = {PARAMETERS: self.parameters, RECORD: self.record}
        return {key: text for key, text in both.items() if text}


@dataclass(frozen=True)
class Saved:
    """What was written; `notes` are for the user."""

    path: Path
    sha256: str  # of the file
    sidecar: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a file says. `texts` holds `parameters`, `ldm` and other programs' by their names; `source` is a term of IPTC's list."""

    format: str
    size: tuple[int, int]
    texts: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    tool: str | None = None
    animated: bool = False
    notes: tuple[str, ...] = ()


def check(path: Path, quality: int | None = None) -> str:
    """The format that `path` names. InputError where it is not written here, or `quality` does not fit it."""
    from ldm import opening

    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path.name}: pictures are written as {', '.join(FORMATS)}: choose one of these endings")
    if quality is not None and kind == "PNG":
        raise InputError(f"{path.name}: quality {quality} has no meaning for PNG, which loses nothing: leave it out")
    if quality is not None and not 1 <= quality <= 100:
        raise InputError(f"{path.name}: quality {quality} is outside 1 to 100: choose a value between")
    opening.check_codec(path.name, kind)
    return kind


@dataclass(frozen=True)
class Encoded:
    """A picture file's bytes, and those of its sidecar where the format cannot hold all marks."""

    content: bytes
    sidecar: bytes = b""
    outside: str = ""  # what stands in the sidecar alone

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def encode(picture: Image.Image, path: Path, marks: Marks | None, quality: int | None = None) -> Encoded:
    """The bytes of a picture in the format that the ending of `path` names; see `save`."""
    kind = check(path, quality)
    if max(picture.size) > SIDES.get(kind, 2**31 - 1):
        raise InputError(f"{path.name}: {picture.width}x{picture.height} is more than {kind} holds, {SIDES[kind]} a side: choose .png")
    _check_texts(marks.texts() if marks else {})
    blocks = _Blocks(marks) if marks else _Blocks(Marks(), bare=True)
    if kind == "JPEG":
        blocks.fit()
    return Encoded(_encode(picture, kind, quality, blocks), blocks.sidecar, blocks.outside)


def publish(encoded: Encoded, path: Path, *, overwrite: bool = False) -> Saved:
    """Put the bytes at `path`, whole or not at all, the sidecar before it; see `save` for the errors."""
    if not encoded.sidecar:
        write_atomic(path, lambda file: file.write(encoded.content), overwrite=overwrite)
        return Saved(path, encoded.sha256)
    sidecar = sidecar_of(path)
    _publish(path, encoded.content, sidecar, encoded.sidecar, overwrite)
    note = f"{path.name}: a JPEG cannot hold {encoded.outside}: {sidecar.name} beside it does, keep both"
    return Saved(path, encoded.sha256, sidecar, (note,))


def save(picture: Image.Image, path: Path, marks: Marks | None, *, overwrite: bool = False, quality: int | None = None) -> Saved:
    """Write `picture` whole or not at all, in the format that the ending of `path` names; `marks=None` writes nothing but pixels.

    quality: 1 to 100, of JPEG, WebP and AVIF; 100 loses nothing in WebP. What a JPEG cannot hold stands in `NAME.json` beside it.
    Raises InputError for texts that cannot come back exactly and for sizes the format does not hold, FileExistsError where `path`
    or its sidecar exists and `overwrite` is false, and OSError from the disk; nothing is left behind then.
    """
    return publish(encode(picture, path, marks, quality), path, overwrite=overwrite)


def _check_texts(texts: Mapping[str, str]) -> None:
    for key, text in texts.items():
        png.check(key, text)
    if not re.fullmatch("[ -~]*", texts.get(RECORD, "")):  # XML would change some of the others
        raise InputError("the record has characters other than printable ASCII: write it with metadata.native.write")


def sidecar_of(path: Path) -> Path:
    """The file beside a picture that holds what its format cannot."""
    return path.with_name(f"{path.name}.json")


class _Blocks:
    """The marks as the blocks of a file."""

    def __init__(self, marks: Marks, *, bare: bool = False) -> None:
        self.marks, self.bare = marks, bare
        self.texts = marks.texts()
        self.exif = b"" if not marks.parameters else exif.write(marks.parameters)
        self.sidecar = b""
        self.outside = ""

    def xmp(self, *, record: bool) -> bytes:
        digest = hashlib.sha256(self.sidecar).hexdigest() if self.sidecar else None
        kept = self.texts.get(RECORD) if record and "record" not in self.outside else None
        return b"" if self.bare else xmp.write(xmp.Packet(self.marks.source, self.marks.tool, kept, digest))

    def fit(self) -> None:
        """Move what a JPEG cannot hold into a sidecar."""
        outside = []
        if len(self.exif) > exif.JPEG_LIMIT:
            self.exif = b""
            outside.append(f"parameters of {len(self.marks.parameters or '')} characters")
        if len(self.xmp(record=True)) > xmp.JPEG_LIMIT - 100 * bool(outside):  # room for the digest
            outside.append(f"a record of {len(self.marks.record or '')} characters")
        if outside:
            self.outside = " and ".join(outside)
            self.sidecar = json.dumps({"schema": 1, "texts": self.texts}).encode()


def _encode(picture: Image.Image, kind: str, quality: int | None, blocks: _Blocks) -> bytes:
    if kind == "JPEG" and picture.mode not in ("RGB", "L"):
        raise InputError(f"a picture of mode {picture.mode} has no JPEG: choose .png")
    clean = picture.copy()
    clean.info = {}  # what a picture that was opened brought along is not ours to pass on
    options: dict[str, Any] = {"quality": QUALITY.get(kind) if quality is None else quality}
    if kind == "PNG":
        options = {"pnginfo": _chunks(blocks)}
    else:
        options |= {"exif": blocks.exif, "xmp": blocks.xmp(record=True)}
    if kind in ("JPEG", "AVIF"):
        options["subsampling"] = "4:4:4"
    if kind == "WEBP" and quality == 100:
        options |= {"lossless": True, "exact": True, "quality": 60}  # the quality of what loses nothing is effort
    file = io.BytesIO()
    clean.save(file, format=kind, **options)
    return file.getvalue()


def _chunks(blocks: _Blocks) -> Any:
    from PIL.PngImagePlugin import PngInfo

    made = PngInfo()
    texts = {} if blocks.bare else {**blocks.texts, png.XMP: blocks.xmp(record=False).decode()}
    for key, text in texts.items():
        made.add(*png.chunk(key, text))
    return made


def _publish(path: Path, content: bytes, sidecar: Path, beside: bytes, overwrite: bool) -> None:
    """The sidecar first: a picture is never there without it. Its name is taken with it, so two processes cannot mix theirs.

    Where a picture is replaced, the old sidecar stays until the new picture is there, and the new one waits under another name.
    """
    waiting = _waiting(sidecar) if overwrite and path.exists() else None
    write_atomic(waiting or sidecar, lambda file: file.write(beside), overwrite=overwrite)
    try:
        write_atomic(path, lambda file: file.write(content), overwrite=overwrite)
    except BaseException:
        if waiting or not overwrite:
            (waiting or sidecar).unlink(missing_ok=True)
        raise
    if waiting:
        write_atomic(sidecar, lambda file: file.write(beside), overwrite=True)
        waiting.unlink(missing_ok=True)


def _waiting(sidecar: Path) -> Path:
    return sidecar.with_suffix(".next.json")


def read(path: Path) -> Found:
    """What the file says of its making, the pixels not decoded. InputError where it is no picture.

    The texts are data: `metadata.native.read` and `metadata.foreign.read` make sense of them.
    """
    from ldm import opening

    with opening.stranger(path) as file:
        found = opening.look(file, path.name)
    packet = (xmp.read(found.xmp) if found.xmp else None) or xmp.Packet()
    notes = list(found.notes)
    said = {RECORD: packet.record, PARAMETERS: packet.parameters}
    texts = {key: text for key, text in said.items() if text is not None} | exif.read(found.exif) | found.texts
    if packet.sidecar is not None:
        beside, note = _read_sidecar(sidecar_of(path), packet.sidecar)
        if note:  # a run that replaced the picture may have been cut short
            beside, _ = _read_sidecar(_waiting(sidecar_of(path)), packet.sidecar)
        texts |= beside
        notes += [note] if note and not beside else []
    return Found(found.format, found.size, texts, packet.source, packet.tool, found.animated, tuple(notes))


def _read_sidecar(path: Path, digest: str) -> tuple[dict[str, str], str]:
    """The texts of the sidecar, or none and a note."""
    from ldm import opening

    try:
        with opening.stranger(path) as file:
            content = file.read(_SIDECAR_LIMIT)
        if hashlib.sha256(content).hexdigest() != digest:
            return {}, f"{path.name} is not the one that was written with the picture"
        texts = json.loads(content)["texts"]
        return {key: text for key, text in texts.items() if isinstance(text, str)}, ""
    except InputError:
        return {}, f"{path.name}, which holds the picture's texts, is not beside it"
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}, f"{path.name} is damaged"
