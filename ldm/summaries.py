"""A line or two on each model file, from its header: what `ldm models` shows.

A header of an official file takes 10 to 50 ms, so summaries are kept in ldm's cache under the file's stamp: a file that is replaced or
rewritten is read again, and all are when the code that reads them has changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ldm import checkpoint
from ldm.checkpoint.kinds import identify
from ldm.checkpoint.licences import licence
from ldm.checkpoint.safetensors import Header, read_header
from ldm.errors import LdmError
from ldm.files import write_atomic
from ldm.resources import cache_folder

KEPT = 10_000  # summaries


@dataclass(frozen=True)
class Summary:
    kind: str = ""
    model: str = ""  # the model that it is, or belongs to; "": not known
    title: str = ""  # kind, model, layout and details in words
    flag: str = ""  # of `ldm sample`, with which it is given; "": it is not used
    dtype: str = ""  # of most of its bytes
    spec_title: str = ""  # what ModelSpec says
    resolution: str = ""
    prediction: str = ""
    usage_hint: str = ""
    licence: str = ""
    error: str = ""  # why it cannot be read


def summaries(paths: Iterable[Path], cache: Path | None = None) -> dict[Path, Summary]:
    """The summary of each file, from `cache` (by default ldm's own) where the file is as it was."""
    cache = cache_folder() / "models.json" if cache is None else cache
    known = _read(cache)
    found, fresh = {}, {}
    for path in paths:
        key = _key(path)
        summary = known.get(key) or summarise(path)
        found[path] = summary
        if key not in known and not summary.error:
            fresh[key] = summary
    if fresh:
        _write(cache, known | fresh)
    return found


def summarise(path: Path) -> Summary:
    """What the header of a file says; `error` alone where it is refused."""
    try:
        header = read_header(path)
    except LdmError as error:
        return Summary(error=str(error).removeprefix(f"{path}: "))
    identity = identify(header)
    said = {name: header.metadata.get(f"modelspec.{name}", "")[:200] for name in ("title", "resolution", "prediction_type", "usage_hint")}
    return Summary(
        identity.kind,
        identity.model,
        identity.title,
        identity.flag,
        _dtype(header),
        said["title"],
        said["resolution"],
        said["prediction_type"],
        said["usage_hint"],
        licence(header),
    )


def _dtype(header: Header) -> str:
    amounts: Counter[str] = Counter()
    for entry in header.tensors.values():
        amounts[entry.dtype] += entry.end - entry.start
    return amounts.most_common(1)[0][0] if amounts else ""


def _key(path: Path) -> str:
    try:
        info = path.stat()
    except OSError:
        return ""
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"


def _reader() -> int:
    """Changes with the code that makes summaries."""
    folder = Path(str(checkpoint.__file__)).parent
    return max(path.stat().st_mtime_ns for path in (Path(__file__), *folder.glob("*.py")))


def _read(cache: Path) -> dict[str, Summary]:
    """The summaries that are kept; none where the file is absent, of another reader, or not one of ours."""
    try:
        table = json.loads(cache.read_bytes())
        rows = table["files"].items() if table["reader"] == _reader() else ()
        names = [each.name for each in fields(Summary)]
        return {str(key): Summary(**{name: str(row[name]) for name in names}) for key, row in rows}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _write(cache: Path, known: dict[str, Summary]) -> None:
    rows = {key: asdict(summary) for key, summary in list(known.items())[-KEPT:]}
    text = json.dumps({"reader": _reader(), "files": rows}).encode()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, lambda file: file.write(text), overwrite=True)
    except OSError:
        return  # it is only a cache
