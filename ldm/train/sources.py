"""Pictures with captions as they lie on a disk: folders with .txt beside the pictures, metadata.jsonl and webdataset tars.

Nothing is decoded here; what cannot be used is listed, never fatal. A caption is the text of its file, without the space around it.
`ldm.train.datasets` reads the dataset files of sd-scripts, which name such folders.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ldm.errors import InputError
from ldm.opening import Opened, open_picture, read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
UNREAD = (".gif", ".bmp", ".tif", ".tiff", ".jfif", ".heic", ".heif", ".jxl", ".jp2", ".tga")  # pictures of other formats
CAPTIONS = (".txt", ".caption")  # looked for in this order
LIST = "metadata.jsonl"
LONGEST = 100_000  # bytes of a caption
JSON = 10_000_000  # bytes of a shard's .json
MOST = 10_000_000  # pictures of one source
UNREADABLE = (OSError, tarfile.TarError, ValueError, OverflowError)  # of a source; tarfile raises the last two for hostile headers
Beside = Mapping[str, tarfile.TarInfo]  # files of one name in a shard, by their suffixes


@dataclass(frozen=True)
class Example:
    """One picture and its caption. `span` is where it stands inside a tar: (offset, length)."""

    path: Path
    caption: str
    name: str
    span: tuple[int, int] | None = None
    repeats: int = 1
    keep: int | None = None  # of the caption's comma-separated parts stay in front where the others are shuffled; None: none are

    def open(self) -> Opened:
        """Decode it; what is transparent becomes white. Raises InputError for what is no whole picture."""
        if self.span is None:
            return open_picture(self.path).on_white()
        with self.path.open("rb") as file:
            file.seek(self.span[0])
            return read_picture(io.BytesIO(file.read(self.span[1])), self.name).on_white()


@dataclass
class Found:
    """What a source holds; `skipped` has a line for each picture that is left out, `notes` what else a user should know."""

    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)  # size, step and batch, where the source says them
    named: set[Path] = field(default_factory=set)  # the files that lists name, whether they can be used or not

    def take(self, name: str, make: Callable[[], Example]) -> None:
        """Add an example, or its line to `skipped` where it cannot be made."""
        try:
            self.examples.append(make())
        except (InputError, *UNREADABLE, KeyError, TypeError, RecursionError) as error:
            self.skipped.append(f"{name}: {str(error)[:200]}")
        if len(self.examples) > MOST:
            raise InputError(f"more than {MOST:,} pictures: split the source")

    def merge(self, other: Found) -> None:
        self.examples += other.examples
        self.skipped += other.skipped
        self.notes += other.notes
        self.named |= other.named


def collect(path: Path) -> Found:
    """The pictures of a folder, a .tar or a .jsonl. Raises InputError where there is none that could be opened."""
    found = gather(path)
    if found.examples:
        return found
    if found.skipped:
        raise InputError(f"{path}: none of {len(found.skipped):,} pictures can be used: {found.skipped[0]}")
    home = "folder" if path.is_dir() else "file"
    raise InputError("; ".join([f"{path}: no pictures in it (PNG, JPEG, WebP, AVIF): give a {home} that has some", *found.notes]))


def gather(path: Path, home: Path | None = None) -> Found:
    """The same, none or more; the names of a .jsonl are of files in `home`, or beside it. Raises InputError where it cannot be read."""
    kinds: dict[str, Callable[[Path], Found]] = {".tar": tar, ".jsonl": partial(jsonl, home=home)}
    read = folder if path.is_dir() else kinds.get(path.suffix.lower())
    if read is None or not path.exists():
        what = "no pictures to train on" if path.exists() else "no such file or folder"
        raise InputError(f"{path}: {what}: give a folder, a .tar, a metadata.jsonl or a dataset .toml")
    try:
        return read(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({error}): check the source") from None


def folder(path: Path, suffixes: Sequence[str] = CAPTIONS, words: str | None = None, *, deep: bool = True) -> Found:
    """A folder's pictures, in the order of their names, and, `deep`, those of the folders in it.

    A caption stands beside its picture under the same name; without one it is `words`, or nothing. Where a metadata.jsonl lies, it says
    which pictures of that folder, and of those in it, are taken. Shards (.tar) are read too.
    """
    found, bare, unnamed, unread, lists = Found(), 0, 0, Counter[str](), set[Path]()
    for file in _files(path, deep, found.skipped):
        kind = file.suffix.lower()
        if file.name == LIST:
            found.merge(_part(partial(jsonl, name=str(file.relative_to(path))), file))
            lists.add(file.parent)
        elif kind == ".tar":
            found.merge(_part(tar, file))
        elif kind in UNREAD:
            unread[kind] += file not in found.named
        elif kind in PICTURES and not lists.isdisjoint(file.parents):
            unnamed += file not in found.named
        elif kind in PICTURES:
            beside = next((each for each in _beside(file, suffixes) if each.is_file()), None)
            bare += beside is None
            found.take(str(file.relative_to(path)), partial(_beside_it, file, beside, words))
    if bare:
        found.notes.append(f"{path}: without a caption: {bare:,} of {len(found.examples):,} pictures: they take {words or ''!r}")
    if unnamed:
        found.notes.append(f"{path}: left out: {unnamed:,} pictures that no {LIST} names")
    if unread.total():
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(unread.items()) if count)
        found.notes.append(f"{path}: left out: {counts}: convert them to PNG, JPEG, WebP or AVIF")
    return found


def _files(path: Path, deep: bool, skipped: list[str]) -> Iterator[Path]:
    """All files of a folder, its list first, then by name; links to folders are not followed, and what cannot be read goes to `skipped`."""
    for base, folders, names in os.walk(path, onerror=lambda error: skipped.append(f"{error.filename}: cannot be read ({error.strerror})")):
        folders[:] = sorted(folders) if deep else []
        yield from (Path(base) / name for name in sorted(names, key=lambda name: (name != LIST, name)))


def _part(read: Callable[[Path], Found], path: Path) -> Found:
    """One of several sources: what cannot be read is a line of the list."""
    try:
        return read(path)
    except UNREADABLE as error:
        return Found(skipped=[f"{path.name}: cannot be read ({error})"])


def _beside(file: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for suffix in suffixes:
        yield file.with_suffix(suffix)
        yield file.with_name(file.name + suffix)


def _beside_it(file: Path, caption: Path | None, words: str | None) -> Example:
    if caption is None:
        return Example(file, words or "", file.name)
    with caption.open("rb") as text:
        return Example(file, _caption(text.read(LONGEST + 1)), file.name)


def _caption(raw: bytes) -> str:
    if len(raw) > LONGEST:
        raise InputError(f"its caption is longer than {LONGEST:,} bytes")
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"its caption is not UTF-8 at byte {error.start}") from None
    if "\0" in text:
        raise InputError("its caption holds the character NUL")
    return text


def jsonl(path: Path, home: Path | None = None, name: str = "") -> Found:
    """One object a line: `file_name`, inside `home` or the folder of the list, and `text` (or `caption`, `prompt`)."""
    found = Found()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.take(f"{name or path.name} line {number}", partial(_listed, home or path.parent, line, found.named))
    return found


def _listed(home: Path, line: bytes, named: set[Path]) -> Example:
    entry: Any = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise InputError("no object with a file_name")
    name = PurePosixPath(entry["file_name"])
    named.add(home / name)
    if name.is_absolute() or ".." in name.parts or name.suffix.lower() not in PICTURES:
        raise InputError(f"{str(name)[:80]!r} is not a picture inside the folder")
    text = next((entry[key] for key in ("text", "caption", "prompt") if key in entry), "")
    caption = told(text)
    if not (home / name).is_file():
        raise InputError(f"{str(name)[:80]} is not there")
    return Example(home / name, caption, str(name))


def told(text: Any) -> str:
    """A caption of JSON."""
    if not isinstance(text, str):
        raise InputError("its caption is not text")
    return _caption(text.encode("utf-8", "surrogatepass"))


def tar(path: Path) -> Found:
    """A webdataset shard: a picture, and beside it .txt or .json ("caption" or "text") under its name, or its name up to the first dot.

    Raises OSError and tarfile.TarError where nothing of it can be read; what is damaged later is a line of `skipped`.
    """
    found = Found()
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        members, end = _members(archive, file)
        if end is not None and not members:
            raise tarfile.ReadError(f"damaged, or another archive begins, at byte {end}")

        def leave(name: str, why: str) -> None:
            found.skipped.append(f"{path.name}:{name}: {why}")

        for key, picture, beside in _pairs(_parted(members, leave), leave):
            found.take(f"{path.name}:{key}", partial(_member, path, archive, picture, beside))
    if end is not None:
        found.skipped.append(f"{path.name}: damaged, or another archive begins, at byte {end}: what follows is left out")
    return found


def _members(archive: tarfile.TarFile, file: BinaryIO) -> tuple[list[tarfile.TarInfo], int | None]:
    """Its whole files and links, and the byte at which it is cut or damaged, where it is: tarfile takes most of that for the end."""
    members: list[tarfile.TarInfo] = []
    size = os.fstat(file.fileno()).st_size
    try:
        for member in archive:
            past = member.isreg() and not member.issparse() and member.offset_data + member.size > size
            if past or member.size < 0:  # what a negative size leads back to would be read for ever
                return members, member.offset
            members += [member] if member.isreg() or member.issym() or member.islnk() else []
        file.seek(archive.offset)
        behind = any(part.strip(b"\0") for part in iter(partial(file.read, 2**20), b""))
    except UNREADABLE:
        behind = True
    return members, min(archive.offset, size) if behind else None


def _parted(members: Sequence[tarfile.TarInfo], leave: Callable[[str, str], None]) -> dict[str, dict[str, tarfile.TarInfo]]:
    """What shares a name but for its last suffix; pictures that cannot be read go to `leave`, with the reason."""
    parts: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        home, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        kind, beside = dot + suffix.lower(), parts.setdefault(home + slash + stem, {})
        if kind in PICTURES and not member.isreg():
            leave(member.name, "a link: put the picture itself in its place")
            continue
        if kind in UNREAD:
            leave(member.name, f"{kind} is not read: convert it to PNG, JPEG, WebP or AVIF")
        if kind in PICTURES and kind in beside:
            leave(beside[kind].name, "it is there more than once: the last is taken")
        beside[kind] = member
    return parts


def _pairs(parts: Mapping[str, Beside], leave: Callable[[str, str], None]) -> Iterator[tuple[str, tarfile.TarInfo, Beside]]:
    """One picture for each name with what has its caption: its own files or, without, those of its name up to the first dot."""
    shared: set[str] = set()
    for key, beside in parts.items():
        own = [beside[kind] for kind in PICTURES if kind in beside]
        home, slash, name = key.rpartition("/")
        first = home + slash + name.partition(".")[0]
        words = beside if ".txt" in beside or ".json" in beside else parts.get(first, beside)
        second = words is not beside and (first in shared or not words.keys().isdisjoint(PICTURES))
        for picture in own if second else own[1:]:
            leave(picture.name, f"another picture of {first if second else key} is taken")
        if own and not second:
            shared |= set() if words is beside else {first}
            yield key, own[0], words


def _member(path: Path, archive: tarfile.TarFile, picture: tarfile.TarInfo, beside: Beside) -> Example:
    caption = ""
    if ".txt" in beside:
        caption = _caption(_content(archive, beside[".txt"], LONGEST))
    elif ".json" in beside:
        raw = _content(archive, beside[".json"], JSON)
        if len(raw) > JSON:
            raise InputError(f"its .json is longer than {JSON:,} bytes: give the caption as .txt")
        entry = json.loads(raw)
        caption = told(next((entry[key] for key in ("caption", "text", "prompt") if key in entry), ""))
    return Example(path, caption, f"{path.name}:{picture.name}", (picture.offset_data, picture.size))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    file = archive.extractfile(member) if member.isreg() else None  # tarfile looks through the whole archive for what a link means
    if file is None:
        raise InputError(f"its caption {member.name} is a link: put the text itself in its place")
    return file.read(limit + 1)
