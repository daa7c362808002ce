"""Choices by the seed: {a|b}, {2$$a|b|c} for two of them, {1-2$$ and $$a|b|c} for one or two with " and " between. They may nest.

The habit of the Dynamic Prompts extension and of sd-scripts; the draw is this project's own: SHA-256 of "seed/text/group/draw", so that
a picture made again from its seed has the words it had. Braces without a bar or $$, and those that are not closed, are text; so are \\{
and \\}, which lose their backslash where a text has choices.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from ldm.errors import InputError
from ldm.limits import LIMITS
from ldm.text.language.piece import check_depth

_TOKEN = re.compile(r"\\[{}]|[{}|]|[^\\{}|]+|\\")
_COUNT = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?\$\$(?:([^$]*)\$\$)?")
BETWEEN = ", "  # several choices


@dataclass(slots=True)
class _Group:
    """An open brace: the place of its options in what is put together so far."""

    number: int
    options: list[list[str]] = field(default_factory=lambda: [[]])


def has(text: str) -> bool:
    """Whether the words of a text depend on the seed."""
    return chosen(text, 0) is not text


def chosen(text: str, seed: int, name: str = "prompt") -> str:
    """The text with its choices made; the same object where it has none. Texts of other names draw apart.

    InputError where braces are too deep, with the column, and where the choices come to too much.
    """
    seeded = f"{seed}/{name}"
    groups, count, found = [_Group(0)], 0, False
    for match in _TOKEN.finditer(text) if "{" in text else ():
        token = match[0]
        if token == "{":
            count += 1
            groups.append(_Group(count))
            check_depth(len(groups) - 1, match.start())
        elif token == "|" and len(groups) > 1:
            groups[-1].options.append([])
        elif token == "}" and len(groups) > 1:
            group = groups.pop()
            made = _made(group, seeded)
            found = found or made is not None
            groups[-1].options[-1].append(_spelt(group) + "}" if made is None else made)
        else:
            groups[-1].options[-1].append(token[1:] if token in ("\\{", "\\}") else token)
    if not found:
        return text
    while len(groups) > 1:
        open_one = groups.pop()
        groups[-1].options[-1].append(_spelt(open_one))
    return "".join(groups[0].options[0])


def _spelt(group: _Group) -> str:
    return "{" + "|".join(map("".join, group.options))


def _made(group: _Group, seed: str) -> str | None:
    """What a group comes to; None where it is plain text."""
    options = ["".join(option) for option in group.options]
    count = _COUNT.match(options[0])
    if count is None:
        return options[_draw(seed, group.number, 0, len(options))] if len(options) > 1 else None
    options[0] = options[0][count.end() :]
    low = int(count[1])
    high = max(int(count[2] or low), low)
    wanted = min(low + _draw(seed, group.number, 0, high - low + 1), len(options))
    between = BETWEEN if count[3] is None else count[3]
    if len(between) * wanted > LIMITS["prompt"].high:
        raise InputError(f"its choices come to more than {LIMITS['prompt']}: shorten what stands between $$ and $$")
    return between.join(options.pop(_draw(seed, group.number, k + 1, len(options))) for k in range(wanted))


def _draw(seed: str, group: int, k: int, below: int) -> int:
    """Draw k of a group: a whole number from 0 to below - 1."""
    digest = hashlib.sha256(f"{seed}/{group}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % below
