"""configs/tuning/NAME.toml from the measured operations: for each shape, which of an operation's names is right and the fastest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.errors import InputError
from ldm.files import make_folder, write_atomic
from ldm.resources import configs
from scripts.bench import records
from scripts.bench.shapes import OPS

OURS = "ldm "


def write(record: Mapping[str, Any], folder: Path | None = None) -> str:
    """The path of the table. Raises InputError where nothing was measured on a GPU."""
    found = table(record)
    if record["machine"]["device"] != "cuda" or not found:
        raise InputError("--tune: no operation was measured on a GPU here: nothing is written")
    home = folder or configs() / "tuning"
    make_folder(home)
    text = toml(record, found)
    return f"{write_atomic(home / f'{records.name(record)}.toml', lambda file: file.write(text.encode()), overwrite=True)}\n{text}"


def table(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By operation and shape: the fastest of its names whose error is within its limit."""
    made: dict[str, dict[str, str]] = {}
    for op in OPS.values():
        row = record["rows"].get(f"op-{_word(op)}", {})
        best = fastest(row.get("table", ()))
        if op.name is not None and best:
            made[op.name] = best
    return made


def _word(op: Any) -> str:
    return next(word for word, each in OPS.items() if each is op)


def fastest(lines: Any) -> dict[str, str]:
    """By key: the name with the least time over all shapes of that key, of those that are right at each."""
    best: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["name"].startswith(OURS):
            times = best.setdefault(line["key"], {})
            name = line["name"].removeprefix(OURS)
            times[name] = times.get(name, 0.0) + (line["us"] if line["met"] else float("inf"))
    return {key: min(times, key=lambda name: times[name]) for key, times in best.items() if min(times.values()) < float("inf")}


def toml(record: Mapping[str, Any], found: Mapping[str, Mapping[str, str]]) -> str:
    lines = [f"# {record['machine']['name']}, {record['date']}, torch {record['versions']['torch']}: python -m scripts.bench --tune"]
    for op, shapes in found.items():
        lines += ["", f'["{op}"]', *(f'"{shape}" = "{name}"' for shape, name in shapes.items())]
    return "\n".join(lines) + "\n"
