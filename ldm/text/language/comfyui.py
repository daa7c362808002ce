"""Weights as ComfyUI writes them: (x) multiplies by 1.1, (x:1.2) is 1.2 whatever stands around it, \\( and \\) are brackets as such.

Source of the rules: ComfyUI `comfy/sd1_clip.py`. There are no square brackets, no BREAK, no AND and no editing. What looks odd is so
there: brackets are counted, not matched, so that after a stray ) the next pair is text; a pair is one when a stretch between counts
of zero begins and ends with them; a weight that is no number is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ldm.text.language.piece import MARKUP, Piece, check_depth, checked, written

_OPEN, _CLOSE = "\0\2", "\0\1"  # NUL is in no prompt
_ESCAPED = re.compile(r"[()]")
_BRACKET = re.compile("[()]")


def parse(text: str, start: int = 0) -> list[Piece]:
    """Runs of one weight, at least one. InputError with the column, counted from `start`."""
    escaped = text.replace("\\)", _CLOSE).replace("\\(", _OPEN)
    found = _weighted(escaped, 1.0, start) if "(" in escaped else iter([Piece(escaped)])
    return [Piece(_plain(piece.text), piece.weight) for piece in found] or [Piece("")]


def _plain(text: str) -> str:
    return text.replace(_CLOSE, ")").replace(_OPEN, "(")


def _weighted(text: str, weight: float, start: int) -> Iterator[Piece]:
    for begin, end in _stretches(text, start):
        if text[begin] != "(" or text[end - 1] != ")" or end - begin < 2:
            yield Piece(text[begin:end], checked(weight, start + begin))
            continue
        inner, own = _number(text[begin + 1 : end - 1], weight * MARKUP)
        yield from _weighted(inner, own, start + begin + 1)


def _stretches(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Where the text falls apart: before a ( and after a ) at which the count is zero."""
    level, begin = 0, 0
    for match in _BRACKET.finditer(text):
        if match[0] == "(":
            if level == 0 and match.start() > begin:
                yield begin, match.start()
            begin = match.start() if level == 0 else begin
            level += 1
            check_depth(level, start + match.start())
        else:
            level -= 1
            if level == 0:
                yield begin, match.end()
                begin = match.end()
    if begin < len(text):
        yield begin, len(text)


def _number(inner: str, otherwise: float) -> tuple[str, float]:
    """What stands before the last colon and the number behind it, if there is one."""
    colon = inner.rfind(":")
    try:
        return (inner[:colon], float(inner[colon + 1 :])) if colon > 0 else (inner, otherwise)
    except ValueError:
        return inner, otherwise


def render(pieces: Sequence[Piece]) -> str:
    """A text that `parse` reads as these pieces; none may be empty."""
    return "".join(_rendered(piece, k > 0 and pieces[k - 1].weight == 1) for k, piece in enumerate(pieces))


def _rendered(piece: Piece, beside_plain: bool) -> str:
    text = _ESCAPED.sub(r"\\\g<0>", piece.text)
    plain = piece.weight == 1 and not beside_plain and not text.endswith("\\")  # that would hide the next bracket
    return text if plain else f"({text}:{written(piece.weight)})"
