"""Jobs as records: a JSON object a line, or a table with a header."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from ldm.errors import InputError
from ldm.jobs.lines import MOST, Word
from ldm.values import plain_json

_PLAIN = (str, int, float, bool, type(None))


def split(line: str) -> list[Word]:
    """The fields of one line of JSONL, none for an empty line; InputError that says where."""
    if not line.strip():
        return []
    try:
        values = plain_json(line)
    except json.JSONDecodeError as error:
        raise InputError(f"column {error.colno}: not JSON ({error.msg}): write one object a line") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not acceptable as JSON ({str(error)[:80]}): write one plain object a line") from None
    if not isinstance(values, dict) or len(values) > MOST:
        raise InputError(f"a JSON object of at most {MOST} fields is needed on each line: put the fields in braces")
    deep = [name for name, value in values.items() if not all(isinstance(each, _PLAIN) for each in _inside(value))]
    if deep:
        raise InputError(f"field {deep[0][:40]!r}: a list or an object inside another: write one plain object a line")
    return [Word(name, value, f"field {name[:40]!r}") for name, value in values.items()]


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


def rows(text: str) -> Iterator[tuple[int, list[Word] | InputError]]:
    """(number of its first line, its fields or what is wrong) of each row below the header; a cell without text is not given."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    header: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            if header is None and any(cells):
                header = [cell.strip() for cell in cells]
                _check_header(header)
            elif header is not None and any(cells):
                yield number, _fields(header, cells)
            number = reader.line_num + 1
    except csv.Error as error:
        yield number, InputError(f"not a table ({error}): put a cell with a comma or a quote in quotes, and double its quotes")
    except InputError as error:
        yield number, error


def _delimiter(text: str) -> str:
    """A comma, or what stands in a header without one: a semicolon (spreadsheets of some languages) or a tab."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return next((each for each in ",;\t" if each in header), ",")


def _check_header(names: list[str]) -> None:
    if len(set(names)) != len(names) or "" in names or len(names) > MOST:
        raise InputError("the header names a column twice, leaves one without a name or has too many: name one field a column")


def _fields(header: list[str], cells: list[str]) -> list[Word] | InputError:
    if len(cells) > len(header):
        return InputError(f"{len(cells)} cells under {len(header)} columns: put a cell with a comma in quotes")
    return [Word(name, cell, f"field {name[:40]!r}") for name, cell in zip(header, cells, strict=False) if cell.strip()]
