"""Weights as AUTOMATIC1111 writes them: (x) is 1.1, [x] is 1/1.1, (x:1.2) is 1.2; nested ones multiply; BREAK ends a chunk.

Source of the rules: stable-diffusion-webui 1.10 `modules/prompt_parser.py`. What looks odd is so there: round and square brackets do
not see each other, an unclosed bracket reaches to the end, a closing :1.2) without an opening one is text, runs of equal weight
become one (which BPE can notice), and a BREAK whose weight was changed is a word of the weight -w.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ldm.text.language.piece import CUT, MARKUP, Piece, check_depth, checked, number, written

_TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_ESCAPED = re.compile(r"[()\[\]\\]")
Run = tuple[str, float, int]  # text, weight, place


def parse(text: str, start: int = 0) -> list[Piece]:
    """Runs of one weight, at least one. InputError with the column, counted from `start`."""
    runs: list[tuple[str, int]] = []  # text, place
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        begin = opened[bracket].pop()
        weights[begin:] = [weight * factor for weight in weights[begin:]]

    for match in _TOKEN.finditer(text):
        token, at = match[0], match.start()
        if token in opened:
            opened[token].append(len(runs))
            check_depth(len(opened["("]) + len(opened["["]), start + at)
        elif match[1] is not None and opened["("]:
            close("(", number(match[1], start + match.start(1)))
        elif token == ")" and opened["("]:
            close("(", MARKUP)
        elif token == "]" and opened["["]:
            close("[", 1 / MARKUP)
        else:
            for run, weight in _text(token):
                runs.append((run, at))
                weights.append(weight)
    for bracket, factor in (("(", MARKUP), ("[", 1 / MARKUP)):
        while opened[bracket]:
            close(bracket, factor)
    return [_piece(run, start) for run in _merged(runs, weights)] or [Piece("")]


def _text(token: str) -> Iterator[tuple[str, float]]:
    """A token that is text, with its BREAKs, which take the white space around them along."""
    if token[0] == "\\":
        yield token[1:], 1.0
        return
    parts = _BREAK.split(token)
    for k, part in enumerate(parts):
        if k > 0:
            yield "BREAK", -1.0
            part = part.lstrip()
        yield part.rstrip() if k < len(parts) - 1 else part, 1.0


def _merged(runs: Sequence[tuple[str, int]], weights: Sequence[float]) -> Iterator[Run]:
    texts: list[str] = []
    first = 0
    for k, (text, _) in enumerate(runs):
        texts.append(text)
        if k + 1 == len(runs) or weights[k + 1] != weights[k]:
            yield "".join(texts), weights[k], runs[first][1]
            texts, first = [], k + 1


def _piece(run: Run, start: int) -> Piece:
    text, weight, at = run
    if text == "BREAK" and weight == -1:
        return CUT
    return Piece(text, checked(weight, start + at) if text else 1.0)


def render(pieces: Sequence[Piece]) -> str:
    """A text that `parse` reads as these pieces, where no two neighbours have one weight."""
    return "".join(_rendered(piece) for piece in pieces)


def _rendered(piece: Piece) -> str:
    if piece.cut:
        return " BREAK "
    text = _ESCAPED.sub(r"\\\g<0>", piece.text)
    return text if piece.weight == 1 else f"({text}:{written(piece.weight)})"
