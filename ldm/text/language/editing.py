"""Texts that change on the way, as AUTOMATIC1111 writes them: [a:b:0.5], [a::5], [a:0.5], [a|b]; and texts side by side: a AND b :0.5.

Source of the rules: stable-diffusion-webui 1.10 `modules/prompt_parser.py`, whose grammar takes cubic time; here brackets are matched
in one pass. A pair counts only where all inside it is well formed: two colons in round brackets, three in square ones, a colon beside
a bar or a stray bracket make it plain text, while the pairs inside keep their meaning. A bar or a backslash that belongs nowhere takes
the meaning of all of them. Weights are left as they are, for `pieces`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ldm.errors import InputError
from ldm.text.language.piece import check_depth, checked, refuse

MOST_PARTS = 64
MOST = 1_000_000  # characters of all texts that one prompt becomes, and of pieces that they are put together from
_TOKEN = re.compile(r"(?:[^\\()\[\]:|]+|\\.)+|[\\()\[\]:|]")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")
_PAIRS = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class Edit:
    """`before` up to step `when` (a share of all steps where it is written with a point), `after` from then on."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: str

    def last(self, steps: int) -> int:
        """The last step of `before`, counted from 1."""
        value = float(self.when) * (steps if "." in self.when else 1)
        return int(min(max(value, 0.0), steps))


@dataclass(frozen=True, slots=True)
class Alternate:
    """Each of the options for one step, over and over."""

    options: tuple[tuple[Node, ...], ...]


Node = str | Edit | Alternate


@dataclass(slots=True)
class _Frame:
    """An open bracket: what stands in it so far, in parts between `marks` (colons and bars)."""

    bracket: str
    parts: list[list[Node]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    def spelt(self) -> list[Node]:
        """As it is written, as far as it is plain text."""
        nodes: list[Node] = [self.bracket, *self.parts[0]]
        for mark, part in zip(self.marks, self.parts[1:], strict=True):
            nodes += [mark, *part]
        return nodes


class _Literal(Exception):
    """Nothing in the text has a meaning."""


def split(text: str) -> list[tuple[str, float, int]]:
    """(text, weight, place) of each of the texts that AND joins. InputError with the column for a weight outside the limits."""
    found: list[tuple[str, float, int]] = []
    begin = 0
    for end, following in [*((match.start(), match.end()) for match in _AND.finditer(text)), (len(text), 0)]:
        if len(found) == MOST_PARTS:
            raise refuse(begin, f"more than {MOST_PARTS} texts joined by AND: join fewer")
        part = text[begin:end].rstrip()
        head, colon, tail = part.rpartition(":")
        number = _WEIGHT.fullmatch(tail) if colon else None
        weight = checked(float(number[1]), begin + len(head) + 1) if number else 1.0
        found.append((head.rstrip() if number else part, weight, begin))
        begin = following
    return found


def parse(text: str, start: int = 0) -> tuple[Node, ...]:
    """The text with what changes in it. InputError where brackets are too deep, with the column, counted from `start`."""
    root: list[Node] = []
    frames: list[_Frame] = []
    try:
        for match in _TOKEN.finditer(text):
            token = match[0]
            if token in "([":
                frames.append(_Frame(token))
                check_depth(len(frames), start + match.start())
            elif token in _PAIRS:
                _close(token, frames, root)
            elif token in ":|" and frames:
                frames[-1].marks.append(token)
                frames[-1].parts.append([])
            elif token in "|\\":
                raise _Literal
            else:
                (frames[-1].parts[-1] if frames else root).append(token)
        _spill(frames, root)
    except _Literal:
        return (text,)
    return _joined(root)


def _close(token: str, frames: list[_Frame], root: list[Node]) -> None:
    """A closing bracket: a pair, or plain text together with all that is open."""
    frame = frames[-1] if frames else None
    nodes = _pair(frame, token) if frame is not None and frame.bracket == _PAIRS[token] else None
    if nodes is None:
        _spill(frames, root)
        root.append(token)
        return
    frames.pop()
    (frames[-1].parts[-1] if frames else root).extend(nodes)


def _pair(frame: _Frame, token: str) -> list[Node] | None:
    """What a pair of brackets means; None where it is not well formed."""
    bars, colons = frame.marks.count("|"), frame.marks.count(":")
    if token == ")":
        return [*frame.spelt(), token] if not bars and colons <= 1 else None
    if not frame.marks:
        return [*frame.spelt(), token]
    if bars:
        return [Alternate(tuple(map(_joined, frame.parts)))] if not colons else None
    number = _number(frame.parts[-1])
    if number is None or colons > 2:
        return None
    *before, after = map(_joined, frame.parts[:-1])
    return [Edit(before[0] if before else (), after, number)]


def _number(part: Sequence[Node]) -> str | None:
    match = _NUMBER.fullmatch(part[0]) if len(part) == 1 and isinstance(part[0], str) else None
    return match[1] if match else None


def _spill(frames: list[_Frame], root: list[Node]) -> None:
    """All open brackets are plain text after all."""
    for frame in frames:
        if "|" in frame.marks:
            raise _Literal
        root += frame.spelt()
    frames.clear()


def _joined(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """With neighbouring texts as one."""
    made: list[Node] = []
    texts: list[str] = []
    for node in [*nodes, None]:
        if isinstance(node, str):
            texts.append(node)
            continue
        if texts:
            made.append("".join(texts))
            texts = []
        if node is not None:
            made.append(node)
    return tuple(made)


def render(nodes: Sequence[Node]) -> str:
    """A text that `parse` reads as these nodes."""
    return "".join(_rendered(node) for node in nodes)


def _rendered(node: Node) -> str:
    if isinstance(node, str):
        return node
    if isinstance(node, Alternate):
        return f"[{'|'.join(map(render, node.options))}]"
    return f"[{render(node.before)}:{render(node.after)}:{node.when}]"


def at(nodes: Sequence[Node], step: int, steps: int) -> str:
    """The text of one step, counted from 1."""
    return "".join(_shown(nodes, step, steps))


def _shown(nodes: Sequence[Node], step: int, steps: int) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Alternate):
            yield from _shown(node.options[(step - 1) % len(node.options)], step, steps)
        else:
            yield from _shown(node.before if step <= node.last(steps) else node.after, step, steps)


def _all(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        if not isinstance(node, str):
            for inner in node.options if isinstance(node, Alternate) else (node.before, node.after):
                yield from _all(inner)


def schedule(nodes: Sequence[Node], steps: int) -> list[tuple[int, str]]:
    """(last step, text) of each stretch, steps counted from 1; InputError where that is more than MOST characters."""
    changing = [node for node in _all(nodes) if not isinstance(node, str)]
    period = math.lcm(*{len(node.options) for node in changing if isinstance(node, Alternate)})
    turns = sorted({node.last(steps) for node in changing if isinstance(node, Edit)} - {0} | {steps})
    forms: dict[tuple[int, int], str] = {}
    found: list[tuple[int, str]] = []
    room = MOST
    for end in range(1, steps + 1) if period > 1 else turns:
        form = end % period, bisect_left(turns, end)
        if form not in forms:
            forms[form] = at(nodes, end, steps)
            room -= len(forms[form]) + len(changing)
            if room < 0 and len(forms) > 1:
                raise InputError(f"its texts have more than {MOST} characters over {steps} steps: change it less often, or shorten it")
        found.append((end, forms[form]))
    return found


def by_call(ends: Sequence[int], calls: int) -> list[int]:
    """Which of the stretches that end at these steps serves each call of the denoiser.

    Calls count from 0, steps from 1, and a stretch serves while the call is not beyond its last step: so the first lasts one call longer.
    """
    found, k = [], 0
    for call in range(calls):
        while call > ends[k]:
            k += 1
        found.append(k)
    return found
