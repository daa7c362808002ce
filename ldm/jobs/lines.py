"""The two grammars of prompt files, told apart line by line.

    a red apple --n blurry --w 1024 --h 768 --d 7 --s 20 --l 5 --ss euler_a          sd-scripts: the prompt first, values unquoted
    --prompt "a red apple" --negative_prompt "blurry" --seed 7 --sampler_name "Euler a"   A1111: words quoted as in a shell

A line that starts with "--" and a letter is A1111's, any other sd-scripts'; a bare prompt is the same in both. Empty lines and those
that start with "#" are passed over. The names of either may stand in both, since none has two meanings. " --" before anything
but a letter is part of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ldm.errors import InputError

_OPTION = re.compile(r"(?:^|(?<=[ \t]))--([A-Za-z][A-Za-z0-9_-]*)")
_PIECE = re.compile(
    r"""[^ \t\r\n"'\\]+ | "[^"\\]*+(?:\\.[^"\\]*+)*+" | '[^']*+' | \\. | [ \t\r\n]+ | (?P<wrong>.)""",
    re.VERBOSE | re.DOTALL,
)
MOST = 200  # words of one line
_ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True)
class Word:
    """One value as it is written: the name it is given, text or a JSON value, and where in the line it stands."""

    name: str
    value: Any
    where: str

    def refuse(self, message: str) -> InputError:
        """The error that says where."""
        return InputError(f"{self.where}: {message}")


def split(line: str) -> list[Word]:
    """The words of one line, none for an empty line or a comment; InputError with the column."""
    start = len(line) - len(line.lstrip())
    if not line.strip() or line[start] == "#":
        return []
    words = list(islice(_quoted(line, start) if _OPTION.match(line.strip()) else _unquoted(line.rstrip(), start), MOST + 1))
    if len(words) > MOST:
        raise words[-1].refuse(f"more than {MOST} options in one line: write one job a line")
    return words


def _unquoted(line: str, start: int) -> Iterator[Word]:
    name, place, begin = "prompt", start, start
    for match in _OPTION.finditer(line, start):
        yield Word(name, line[begin : match.start()].strip(), _column(place))
        name, place, begin = match[1], match.start(), match.end()
    yield Word(name, line[begin:].strip(), _column(place))


def _quoted(line: str, start: int) -> Iterator[Word]:
    name, column, values = "", 0, list[str]()
    for at, text, plain in _tokens(line, start):
        option = _OPTION.fullmatch(text) if plain else None
        if option is None:
            values.append(text)
            continue
        if name:
            yield Word(name, " ".join(values), _column(column))
        name, column, values = option[1], at, []
    yield Word(name, " ".join(values), _column(column))


def _tokens(line: str, start: int) -> Iterator[tuple[int, str, bool]]:
    """(place, text, whether no quote or backslash was in it) of each word of a shell's line."""
    pieces: list[str] = []
    at, plain = start, True
    for match in _PIECE.finditer(line, start):
        piece = match[0]
        if match["wrong"]:
            problem = "a backslash at the end" if piece == "\\" else f"a quote {piece} that is not closed"
            raise InputError(f"{_column(match.start())}: {problem}: close it, or put it inside the other kind of quotes")
        if piece[0] in " \t\r\n":
            if pieces:
                yield at, "".join(pieces), plain
            pieces, at, plain = [], match.end(), True
            continue
        pieces.append(_plain(piece))
        plain = plain and piece[0] not in "\"'\\"
    if pieces:
        yield at, "".join(pieces), plain


def _plain(piece: str) -> str:
    if piece[0] == '"':
        return _ESCAPED.sub(r"\1", piece[1:-1])
    return piece[1:-1] if piece[0] == "'" else piece[1:] if piece[0] == "\\" else piece


def _column(place: int) -> str:
    return f"column {place + 1}"
