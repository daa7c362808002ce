"""Lists of seeds: "1,2,5-9", "-1"."""

from __future__ import annotations

import re

from ldm.errors import InputError
from ldm.limits import LIMITS

MOST = 100_000  # seeds of one list, and jobs of one run
RANDOM = -1  # stands for a seed that is drawn when the picture is made


def parse(text: str) -> list[int]:
    """The seeds in their order, those that stand twice too; InputError that says which part is wrong and what is right."""
    made: list[int] = []
    for part in text.split(",", MOST + 1):
        first, last = _range(part.strip())
        if len(made) + last - first >= MOST:
            raise InputError(f"seeds {_shown(text)}: more than {MOST}: give fewer, or several runs")
        made += range(first, last + 1)
    return made


def _range(part: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-1|[0-9]{1,40})|([0-9]{1,40}) ?- ?([0-9]{1,40})", part)
    if match is None:
        raise InputError(f"seed {_shown(part)} is not acceptable: give whole numbers and rising ranges, such as 1,2,5-9, or -1")
    first, last = (int(match[1]),) * 2 if match[1] else (int(match[2]), int(match[3]))
    for seed in (first, last):
        if seed != RANDOM and not LIMITS["seed"].allows(seed):
            raise InputError(f"seed {_shown(str(seed))} is not allowed: {LIMITS['seed']}")
    if last < first:
        raise InputError(f"seeds {_shown(part)} fall: write the lower one first")
    return first, last


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
