"""The ranges of all values that a user gives, in one table that every refusal quotes. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ldm.errors import InputError


@dataclass(frozen=True)
class Limit:
    """The range of one value, ends included, and how to say it."""

    low: float
    high: float
    multiple: int = 1
    note: str = ""

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.multiple == 1 or value % self.multiple == 0)

    def nearest(self, value: float) -> int:
        """The legal whole value nearest to `value`."""
        inside = min(max(value, self.low), self.high)
        return int(inside / self.multiple + 0.5) * self.multiple

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (f", multiples of {self.multiple}" if self.multiple > 1 else "") + self.note


LIMITS = {
    "width": Limit(16, 8192, 8),
    "height": Limit(16, 8192, 8),
    "steps": Limit(1, 1000),
    "cfg": Limit(0, 100),
    "batch": Limit(1, 64),
    "seed": Limit(0, 2**64 - 1, note=", or -1 for a random one"),
    "prompt": Limit(0, 100_000, note=" characters"),
    "negative": Limit(0, 100_000, note=" characters"),
}


def check_text(name: str, text: Any) -> None:
    """InputError unless `text` is text that can be tokenised and written into a file: `name` says which one it is."""
    if not isinstance(text, str):
        raise InputError(f"{name} is {type(text).__name__}: give text")
    if len(text) > LIMITS[name].high:
        raise InputError(f"{name} has {len(text)} characters: the limit is {LIMITS[name]}: shorten it")
    bad = re.search("[\0\ud800-\udfff]", text)
    if bad:
        what = "the character NUL" if bad[0] == "\0" else "a byte that is not UTF-8"
        raise InputError(f"{name} holds {what} at character {bad.start() + 1}: give text in UTF-8")
