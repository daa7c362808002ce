"""The sha256 of model files: the short names that others know them by, and whether a file is still what it was published as. No torch.

A file's digest is known from up to three sources: configs/files/official.toml, by name and size; a file beside it, FILE.sha256, as
`sha256sum FILE` prints it; and ModelSpec's hash in its own metadata, which covers what follows the header.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ldm.checkpoint.safetensors import Header, stamp
from ldm.errors import FileError
from ldm.files import beginning, write_atomic
from ldm.resources import cache_folder, published

PIECE = 2**20  # bytes that are read and hashed at a time: they stay in the cache between the two
KEPT = 10_000  # digests in the cache, the newest
LARGEST = 2**22  # bytes of a cache, or a file beside the model, that are read
WHOLE, DATA = "whole", "data"
SPEC = "modelspec.hash_sha256"
Progress = Callable[[int], None]


class Known(NamedTuple):
    """What a source says of a file: the sha256 of all of it, or of the data behind the header."""

    digest: str
    scope: str
    source: str


def sha256(path: str | os.PathLike[str], start: int = 0, progress: Progress | None = None) -> str:
    """In hex, of a file from byte `start` on; `progress(n)`: n more bytes are read. Raises FileError when it cannot be read."""
    found, buffer = hashlib.sha256(), memoryview(bytearray(PIECE))
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while size := file.readinto(buffer):
                found.update(buffer[:size])
                if progress is not None:
                    progress(size)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}): check its permissions and the disk", "E3001") from None
    return found.hexdigest()


def autov2(digest: str) -> str:
    """The short name that A1111 and Civitai show: of the sha256 of the whole file."""
    return digest[:10]


def autov3(header: Header, progress: Progress | None = None) -> str:
    """The short name of LoRAs, kohya's: of the sha256 of what follows the header, so that other metadata leave it as it is."""
    return _hash(header, header.data_start, progress)[:12]


def known(header: Header) -> list[Known]:
    """What the sources say of this file, the most trusted first."""
    found = [*_official(header), *_beside(header.path)]
    spec = re.fullmatch("(?:0x)?([0-9a-f]{64})", header.metadata.get(SPEC, "").strip().lower())
    return found + ([Known(spec[1], DATA, f"{SPEC} in its metadata")] if spec else [])


def _official(header: Header) -> list[Known]:
    same = [each for each in published() if (each["name"], each["size"]) == (header.path.name, header.size)]
    return [Known(each["sha256"], WHOLE, f"the one published for {each['name']}") for each in same]


def _beside(path: Path) -> list[Known]:
    """Of FILE.safetensors.sha256 the line that names the file, or a digest alone; of FILE.sha256 only a line that names it."""
    full, short = path.with_name(f"{path.name}.sha256"), path.with_suffix(".sha256")
    alone = [Known(digest, WHOLE, full.name) for digest, name in _lines(full) if name in ("", path.name)]
    named = [Known(digest, WHOLE, short.name) for digest, name in _lines(short) if name == path.name]
    return alone or named


def _lines(path: Path) -> list[tuple[str, str]]:
    """(digest, the file's own name) of the lines of sha256sum; nothing of a file that is not there or not of that kind."""
    try:
        text = beginning(path, LARGEST).decode("utf-8", "replace")
    except OSError:
        return []
    lines = (re.fullmatch(r"([0-9a-fA-F]{64})(?: [ *](.+))?", line.strip()) for line in text.splitlines())
    return [(line[1].lower(), Path(line[2] or "").name) for line in lines if line]


def verify(header: Header, progress: Progress | None = None) -> str | None:
    """Read the whole file and hold it against what is known of it: the name of the source that it agrees with, None when none is known.

    Raises FileError E3010 when it differs. It is always read: a bit that flips on the disk changes neither size nor time, so
    the cache, which is renewed, cannot tell. Where a source knows the whole file, ModelSpec's hash is not asked: tools that convert a
    file often keep the old one.
    """
    sources = known(header)
    if not sources:
        return None
    scope = sources[0].scope
    found = _hash(header, 0 if scope == WHOLE else header.data_start, progress)
    for digest, kind, source in sources:
        if kind == scope and digest != found:
            raise FileError(f"{header.path}: {_differs(source, found, digest, kind)}", "E3010")
    if scope == WHOLE:
        _remember(header, found)
    return sources[0].source


def _differs(source: str, found: str, wanted: str, scope: str) -> str:
    other = ", unless a tool changed it and kept its old metadata" if scope == DATA else ""
    return f"sha256 differs from {source}: has {found}, should be {wanted}: the file is damaged{other}, download it again"


def _hash(header: Header, start: int, progress: Progress | None = None) -> str:
    """Of the file that the header was read from. Raises FileError E3009 when it is another before or after."""
    _check(header)
    found = sha256(header.path, start, progress)
    _check(header)
    return found


def _check(header: Header) -> None:
    try:
        same = stamp(os.stat(header.path)) == header.stamp
    except OSError:
        same = False
    if not same:
        raise FileError(f"{header.path}: the file changed while it was being read: run again when it is written", "E3009")


def cached_sha256(header: Header, progress: Progress | None = None) -> str:
    """Of the whole file, from the cache where its (device, inode, size, time) stand there: a name for it, not a proof that it is whole."""
    kept = _cache().get(_key(header))
    if isinstance(kept, str) and re.fullmatch("[0-9a-f]{64}", kept):
        return kept
    found = _hash(header, 0, progress)
    _remember(header, found)
    return found


def cache_file() -> Path:
    return cache_folder() / "digests.json"


def _key(header: Header) -> str:
    return ":".join(map(str, header.stamp))


def _cache() -> dict[str, Any]:
    """What was kept; nothing when it cannot be read or is damaged."""
    try:
        kept = json.loads(beginning(cache_file(), LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _remember(header: Header, digest: str) -> None:
    """Into the cache, as the newest; without it when that cannot be written."""
    key, kept = _key(header), _cache()
    if kept.pop(key, None) == digest:
        return
    content = json.dumps(dict([*kept.items(), (key, digest)][-KEPT:]), indent=0).encode()
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache_file(), lambda file: file.write(content), overwrite=True)
    except OSError:
        return
