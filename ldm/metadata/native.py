"""The lossless record: JSON in the PNG text chunk `ldm`.

    {"schema": 1, "version": "0.1.0", "job": {...}, "seed": 8, "index": 1, "model": "a.safetensors", ...}

The text is ASCII (JSON escapes the rest), so no reader's idea of an encoding can change it. It names files, never folders.
`read(write(record)) == record` for every record that `write` accepts.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from ldm import values
from ldm.errors import InputError
from ldm.metadata import LIMIT, RECORD
from ldm.options import KNOBS, Job

T = TypeVar("T")
KEY = RECORD
SCHEMA = 1
SAVED = [name for name, knob in KNOBS.items() if knob.saved]


@dataclass(frozen=True)
class Record:
    """One picture: the finished job, and what else its making depends on."""

    job: Job  # the fields that make the picture; those about the run (paths, flags) are not recorded
    seed: int  # of this very picture
    index: int  # its place in the batch, from 0
    model: str  # file name without folders
    family: str
    vae: str | None  # file name of a VAE given apart
    device: str
    dtype: str
    torch: str  # torch's version
    version: str  # ldm's version
    stopped_at: int | None = None  # the step after which the run was stopped
    model_sha256: str | None = None  # of the whole file
    vae_dtype: str | None = None  # in which the VAE decoded this picture


def write(record: Record) -> str:
    """The JSON text. Raises ValueError for a number that is not finite."""
    plain = {each.name: getattr(record, each.name) for each in fields(record)}
    plain["job"] = {name: getattr(record.job, name) for name in SAVED}
    return json.dumps({"schema": SCHEMA, **plain}, allow_nan=False)


def read(text: str) -> Record:
    """The record of a JSON text, taken as data: InputError for anything that `write` does not write."""
    given = _object(_json(text), "the record")
    schema = given.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise InputError(f"picture record: schema {str(schema)[:40]!r} is not {SCHEMA}: it was made by another version of ldm")
    given["job"] = _build(Job, _object(given.get("job"), "job"), SAVED)
    return _build(Record, given, [each.name for each in fields(Record)])


def _json(text: str) -> Any:
    if len(text) > LIMIT:
        raise InputError(f"picture record: {len(text)} characters are too many: the limit is {LIMIT}")
    try:
        return values.plain_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"picture record: not JSON ({str(error)[:80]}): the file is damaged or not made by ldm") from None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"picture record: {name} is not an object: the file is damaged or not made by ldm")
    return value


def _build(kind: type[T], given: Mapping[str, Any], names: list[str]) -> T:
    """`kind(**given)`, with no other than `names`, each of its declared type; what has a default may be missing, as in older records."""
    needed = {each.name for each in fields(kind) if each.default is MISSING}  # type: ignore[arg-type]
    wrong = sorted(set(given) - set(names) | needed - set(given))
    if wrong:
        problem = "unknown" if wrong[0] in given else "missing"
        raise InputError(f"picture record: {wrong[0][:40]!r} is {problem}: it was made by another version of ldm")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(name, value, hints[name]) for name, value in given.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    try:
        return values.typed(value, hint)
    except TypeError as error:
        raise InputError(f"picture record: {name} has the wrong type ({error}): the file is damaged or not made by ldm") from None
