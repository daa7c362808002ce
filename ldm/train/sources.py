"""Pictures with captions as they lie on a disk: folders with .txt beside the pictures, metadata.jsonl and webdataset tars.

Nothing is decoded here; what cannot be used is listed, never fatal. A caption is the text of its file, without the space around it.
`ldm.train.datasets` reads the dataset files of sd-scripts, which name such folders.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.errors import InputError
from ldm.opening import Opened, open_picture, read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
CAPTIONS = (".txt", ".caption")  # looked for in this order
LONGEST = 100_000  # bytes of a caption
MOST = 10_000_000  # pictures of one source


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
        """Decode it. Raises InputError for what is no whole picture."""
        if self.span is None:
            return open_picture(self.path)
        with self.path.open("rb") as file:
            file.seek(self.span[0])
            return read_picture(io.BytesIO(file.read(self.span[1])), self.name)


@dataclass
class Found:
    """What a source holds; `skipped` has a line for each picture that is left out, `notes` what else a user should know."""

    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)  # size, step and batch, where the source says them

    def take(self, name: str, make: Callable[[], Example]) -> None:
        """Add an example, or its line to `skipped` where it cannot be made."""
        try:
            self.examples.append(make())
        except (InputError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self.skipped.append(f"{name}: {str(error)[:200]}")
        if len(self.examples) > MOST:
            raise InputError(f"more than {MOST:,} pictures: split the source")

    def merge(self, other: Found) -> None:
        self.examples += other.examples
        self.skipped += other.skipped
        self.notes += other.notes


def collect(path: Path, home: Path | None = None) -> Found:
    """The pictures of a folder, a .tar or a .jsonl, whose names are of files in `home`, or beside it.

    Raises InputError where the source itself cannot be read.
    """
    kinds: dict[str, Callable[[Path], Found]] = {".tar": tar, ".jsonl": partial(jsonl, home=home)}
    read = folder if path.is_dir() else kinds.get(path.suffix.lower())
    if read is None or not path.exists():
        raise InputError(f"{path}: no pictures to train on: give a folder, a .tar, a metadata.jsonl or a dataset .toml")
    try:
        return read(path)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: cannot be read ({error}): check the source") from None


def folder(path: Path, suffixes: Sequence[str] = CAPTIONS, words: str | None = None, *, deep: bool = True) -> Found:
    """A folder's pictures, in the order of their names, and, `deep`, those of the folders in it.

    A caption stands beside its picture under the same name; without one it is `words`, or nothing. A folder that holds a metadata.jsonl
    is read by that; shards (.tar) in the folder are read too.
    """
    if (path / "metadata.jsonl").is_file():
        return jsonl(path / "metadata.jsonl")
    found, bare = Found(), 0
    for file in _files(path) if deep else sorted(each for each in path.iterdir() if each.is_file()):
        if file.suffix.lower() == ".tar":
            found.merge(_shard(file))
        if file.suffix.lower() not in PICTURES:
            continue
        beside = next((each for each in _beside(file, suffixes) if each.is_file()), None)
        bare += beside is None
        found.take(str(file.relative_to(path)), partial(_beside_it, file, beside, words))
    if bare:
        found.notes.append(f"{path}: without a caption: {bare:,} of {len(found.examples):,} pictures: they take {words or ''!r}")
    return found


def _files(path: Path) -> Iterator[Path]:
    """All files under a folder, in a fixed order; links to folders are not followed."""
    for base, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(base) / name for name in sorted(names))


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


def jsonl(path: Path, home: Path | None = None) -> Found:
    """One object a line: `file_name`, inside `home` or the folder of the list, and `text` (or `caption`, `prompt`)."""
    found = Found()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.take(f"{path.name} line {number}", partial(_listed, home or path.parent, line))
    return found


def _listed(home: Path, line: bytes) -> Example:
    entry: Any = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise InputError("no object with a file_name")
    name = PurePosixPath(entry["file_name"])
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
    """A webdataset shard: files that share a name up to its first dot are one example, with .txt or .json ("caption" or "text") beside."""
    found, parts = Found(), dict[str, dict[str, tarfile.TarInfo]]()
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isreg():
                home, slash, name = member.name.rpartition("/")
                key, dot, suffix = name.partition(".")
                parts.setdefault(home + slash + key, {})[dot + suffix.lower()] = member
        for key, members in parts.items():
            picture = next((members[suffix] for suffix in PICTURES if suffix in members), None)
            if picture is not None:
                found.take(f"{path.name}:{key}", partial(_member, path, archive, picture, members))
    return found


def _shard(path: Path) -> Found:
    """One of several: what cannot be read is a line of the list."""
    try:
        return tar(path)
    except (OSError, tarfile.TarError) as error:
        return Found(skipped=[f"{path.name}: cannot be read ({error})"])


def _member(path: Path, archive: tarfile.TarFile, picture: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo]) -> Example:
    caption = ""
    if ".txt" in members:
        caption = _caption(_content(archive, members[".txt"]))
    elif ".json" in members:
        entry = json.loads(_content(archive, members[".json"]))
        text = next((entry[key] for key in ("caption", "text", "prompt") if key in entry), "")
        caption = told(text)
    return Example(path, caption, f"{path.name}:{picture.name}", (picture.offset_data, picture.size))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read(LONGEST + 1)
