"""Prompt files and what comes on stdin, to a list of jobs: read whole and checked whole before anything runs.

`.jsonl` is one object a line and `.csv` a table, both with the field names of the saved record; anything else is text in the grammars
of `lines`. What a line says wins over the flags of the command, as in sd-scripts and A1111.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ldm.errors import InputError
from ldm.jobs import lines, records
from ldm.jobs.fields import Task, tasks
from ldm.jobs.lines import Word
from ldm.options import Job
from ldm.values import MOST_SEEDS

LIMIT = 32 * 2**20  # bytes of a prompt file
MOST_WRONG = 100  # lines, after which no more are looked at
_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
Row = tuple[int, Sequence[Word] | InputError]  # (number of the line, its words or what is wrong)


@dataclass
class Sheet:
    """All jobs of a prompt file, and a note for each option that is left out."""

    tasks: list[Task] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(path: str, base: Job, stdin: BinaryIO | None = None) -> Sheet:
    """The jobs of a prompt file, or of stdin for "-"; InputError with the file, the line and the number of further lines that are wrong."""
    if path == "-":
        return parse((stdin or sys.stdin.buffer).read(LIMIT + 1), "stdin", None, base)
    suffix = Path(path).suffix.lower()
    if suffix in (".json", ".toml", ".png", ".safetensors"):
        raise InputError(f"prompt file {path}: {suffix} is not read: give one job a line in a .txt or .jsonl, or a table in a .csv")
    return parse(_content(path), path, _KINDS.get(suffix, "text" if suffix else None), base)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LIMIT + 1)
    except (OSError, ValueError) as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or "is not a file"
        raise InputError(f"prompt file {path[:200]!r}: {problem}: give the path of a text, .jsonl or .csv file") from None


def parse(content: bytes, name: str, kind: str | None, base: Job) -> Sheet:
    """The jobs in `content`; `name` is what errors call it. `kind`: "text", "jsonl", "csv", or None: told from the first character."""
    text = _decode(content, name)
    kind = kind or ("jsonl" if re.match(r'\s*\{\s*["}]', text) else "text")
    sheet, wrong = Sheet(), list[InputError]()
    left_out: dict[str, tuple[str, int]] = {}
    for number, words in _rows(text, kind):
        where = f"{name}:{number}"

        def tell(option: str, about: str, where: str = where) -> None:
            note, times = left_out.get(option, (f"{where}: {option} ({about}) is left out", 0))
            left_out[option] = note, times + 1

        try:
            if isinstance(words, InputError):
                raise words
            sheet.tasks += tasks(words, base, where, tell, letters=kind == "text") if words else ()
        except InputError as error:
            wrong.append(InputError(f"{where}: {error}"))
        if len(sheet.tasks) > MOST_SEEDS:
            raise InputError(f"{where}: more than {MOST_SEEDS:,} jobs: give fewer, or several files")
        if len(wrong) == MOST_WRONG:
            break
    _refuse(wrong, name, sheet)
    sheet.notes += [f"{note}{f', and {times - 1} times more' if times > 1 else ''}" for note, times in left_out.values()]
    return sheet


def _refuse(wrong: list[InputError], name: str, sheet: Sheet) -> None:
    if wrong:
        more = f"{'at least ' if len(wrong) == MOST_WRONG else ''}{len(wrong) - 1}"
        plural = "s are" if len(wrong) > 2 else " is"
        raise InputError(f"{wrong[0]}" + (f" ({more} more line{plural} not acceptable either)" if len(wrong) > 1 else ""))
    if not sheet.tasks:
        raise InputError(f"{name}: no job in it: write one prompt a line")


def _decode(content: bytes, name: str) -> str:
    """The text, without a byte order mark; InputError that names the line of a byte that does not belong there."""
    if len(content) > LIMIT:
        raise InputError(f"{name}: more than {LIMIT} bytes: give fewer jobs, or several files")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name}: the text is UTF-16: save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = len(re.findall(rb"\r\n|\r|\n", before)) + 1, error.start - max(before.rfind(b"\n"), before.rfind(b"\r"))
        raise InputError(f"{name}:{line}: byte {column} of the line is not UTF-8: save the file as UTF-8") from None
    if "\0" in text:
        line = len(re.findall(r"\r\n|\r|\n", text[: text.index("\0")])) + 1
        raise InputError(f"{name}:{line}: the character NUL: save the file as plain text in UTF-8")
    return text


def _rows(text: str, kind: str) -> Iterator[Row]:
    if kind == "csv":
        yield from records.rows(text)
        return
    split = records.split if kind == "jsonl" else lines.split
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        try:
            yield number, split(line)
        except InputError as error:
            yield number, error
