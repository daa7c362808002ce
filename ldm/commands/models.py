"""`ldm models`: the model files that names reach, with what each is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm import catalogue
from ldm.commands.flags import made
from ldm.commands.progress import size
from ldm.commands.streams import printable, say
from ldm.flags import Parser
from ldm.hub import names as hub
from ldm.resources import weights
from ldm.summaries import Summary, summaries

BROKEN, UNUSED = "broken", "-"


@dataclass(frozen=True)
class Row:
    name: str  # as -m takes it
    path: Path
    place: str
    kind: str | None  # by the folder


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code."""
    options = parser().parse_args(argv)
    found = catalogue.scan([*catalogue.places(options.models_dir), weights()])
    rows = [row for row in _rows(found) if all(word.casefold() in row.name.casefold() for word in options.words)]
    known = summaries(row.path for row in rows)
    lines = (_json(row, known[row.path]) for row in rows) if options.json else _table(rows, known)
    for line in lines:
        print(line)
    print(end="", flush=True)
    for note in found.notes:
        say(f"ldm: note: {note}")
    return 0


def parser() -> Parser:
    flags = made("models", "List the model files that names reach, and what each is.", models_dir=True)
    flags.add_argument("words", nargs="*", metavar="WORD", help="list only names with all of these in them")
    return flags


def _rows(found: catalogue.Catalogue) -> Iterator[Row]:
    for each in found.files:
        if not each.is_pickle:
            place = str(found.places[each.place])
            yield Row("(none: the model in the box)" if each.path == weights() / catalogue.BOX else each.name, each.path, place, each.kind)
    cache = hub.cache_folder()
    yield from (Row(str(name), path, str(cache), None) for name, path in hub.everything(cache))


def _table(rows: list[Row], known: dict[Path, Summary]) -> Iterator[str]:
    """Under each folder its files: name, size, dtype, the flag that takes it, what it is."""
    width = min(max((len(row.name) for row in rows), default=0), 60)
    place = ""
    for row in rows:
        if row.place != place:
            place = row.place
            yield printable(place)
        summary = known[row.path]
        flag = BROKEN if summary.error else summary.flag or UNUSED
        yield printable(f"  {row.name:<{width}}  {_size(row.path):>8}  {summary.dtype:<5} {flag:<8} {_what(summary)}")


def _what(summary: Summary) -> str:
    if summary.error:
        return summary.error
    said = [f'"{summary.spec_title}"' if summary.spec_title else "", summary.resolution]
    return "; ".join(each for each in (summary.title, *said) if each)


def _size(path: Path) -> str:
    try:
        return size(path.stat().st_size)
    except OSError:
        return "-"


def _json(row: Row, summary: Summary) -> str:
    amount = path.stat().st_size if (path := row.path).exists() else None
    return json.dumps({"name": row.name, "path": os.fspath(path), "folder": row.kind, "size": amount, **asdict(summary)})
