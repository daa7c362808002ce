"""Tensors on disk under a seal: safetensors files, and a JSON written last that names each with its sha256.

Without the JSON, or with a file that does not match it, there is nothing: what a killed process leaves is never taken for whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ldm.errors import FileError, LdmError
from ldm.files import write_atomic

WHOLE = 2**63  # bytes of a shard that never is full
UNWRITTEN = "E5001"
ROOM = "make room, or give another --out"


class _Hashing:
    """A file whose bytes are hashed as they are written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def writing(path: Path, remedy: str = ROOM) -> Iterator[None]:
    """Raises LdmError E5001, which names the file, where the disk refuses it in the block."""
    try:
        yield
    except OSError as error:
        raise LdmError(f"cannot write {path}: {error.strerror or error}: {remedy}", UNWRITTEN) from error


def seal(record: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any], shard: int = WHOLE, remedy: str = ROOM) -> list[Path]:
    """Write `tensors` beside `record` (NAME.json), in files of about `shard` bytes, then the record with `note`; the files' paths.

    One file is NAME.safetensors, several are NAME-00001-of-0000N.safetensors. Files under these names are replaced.
    Raises LdmError, with `remedy`, where the disk fails.
    """
    with writing(record.parent, remedy):
        record.parent.mkdir(parents=True, exist_ok=True)
    parts = list(_shards(tensors, shard))
    names = [f"{record.stem}.safetensors"]
    if len(parts) > 1:
        names = [f"{record.stem}-{k:05}-of-{len(parts):05}.safetensors" for k in range(1, len(parts) + 1)]
    files = {name: _write(record.with_name(name), part, remedy) for name, part in zip(names, parts, strict=True)}
    said = {**note, "files": files}
    text = json.dumps({**said, "seal": _seal(said)}).encode()
    with writing(record, remedy):
        write_atomic(record, lambda file: file.write(text), overwrite=True)
    return [record.with_name(name) for name in names]


def _shards(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """In their order, each as full as it can be; a tensor is never cut."""
    part: dict[str, Tensor] = {}
    total = 0  # of the part
    for name, tensor in tensors.items():
        size = tensor.nbytes
        if part and total + size > limit:
            yield part
            part, total = {}, 0
        part[name], total = tensor, total + size
    yield part


def _write(path: Path, tensors: Mapping[str, Tensor], remedy: str) -> str:
    """Write one file and return its sha256."""
    from ldm.checkpoint.writer import content, tensor_items

    found: list[str] = []

    def write(file: BinaryIO) -> None:
        hashing = _Hashing(file)
        content(tensor_items(tensors))(hashing)  # type: ignore[arg-type]
        found.append(hashing.sha256)

    with writing(path, remedy):
        write_atomic(path, write, overwrite=True)
    return found[0]


def _seal(note: Mapping[str, Any]) -> str:
    """sha256 of what a record says."""
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def read_note(record: Path) -> dict[str, Any] | None:
    """What stands in a record; None where it is absent or damaged."""
    try:
        note = json.loads(record.read_text(encoding="utf-8"))
        seal = note.pop("seal")
        return note if isinstance(note["files"], dict) and _seal(note) == seal else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def unseal_made_by(record: Path, source: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """As `unseal`, where the note says that `source` made it, which is read before any tensor."""
    note = read_note(record)
    return unseal(record) if note is not None and note.get("source") == source else None


def unseal(record: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The note and the tensors, on the CPU; None where anything is absent or differs from what the record says."""
    note = read_note(record)
    tensors: dict[str, Tensor] = {}
    for name, digest in note["files"].items() if note else ():
        try:
            part, found = _read(record.with_name(Path(name).name))
        except (FileError, KeyError, OSError):
            return None
        if found != digest:
            return None
        tensors |= part
    return None if note is None else (note, tensors)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of one file and its sha256, read once, each into its own place: no more memory is needed than they take."""
    from ldm.checkpoint.foreign import FORMAT_MAX
    from ldm.checkpoint.safetensors import read_header
    from ldm.checkpoint.writer import names

    dtypes = {name: dtype for dtype, name in names().items()}
    header = read_header(path, FORMAT_MAX)
    entries = sorted(header.tensors.items(), key=lambda item: item[1].start)  # which cover the file
    tensors = {name: torch.empty(entry.shape, dtype=dtypes[entry.dtype]) for name, entry in entries}
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(header.data_start))
        for tensor in tensors.values():
            place = tensor.view(-1).view(torch.uint8).numpy().data
            file.readinto(place)
            digest.update(place)
    return tensors, digest.hexdigest()
