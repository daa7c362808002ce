"""From the words of a flag, or the plain data of a file, to a value: ValueError says what to give. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin

MOST_SEEDS = 100_000  # of one list, and jobs of one run
_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text.strip()):
        raise ValueError("a whole number")
    return int(text)


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("numbers with commas between, such as 14.6,5.2,1.1,0") from None


def assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise ValueError("field=value, such as rng=philox")
    return name.strip(), value.strip()


def size(text: str) -> tuple[int, int]:
    """ "1216x832", width first as users write it -> (height, width)."""
    match = re.fullmatch(r"([0-9]{1,9})\s*[xX\u00d7*]\s*([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError("width x height, such as 1216x832")
    return int(match[2]), int(match[1])


def point(text: str) -> tuple[int, int]:
    """ "LEFT,TOP" in pixels -> (top, left)."""
    match = re.fullmatch(r"([0-9]{1,9})\s*,\s*([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError("left,top in pixels, such as 0,128")
    return int(match[2]), int(match[1])


def ratio(text: str) -> float:
    """ "3:2", "3/2" or "1.5" -> width over height."""
    match = re.fullmatch(r"([0-9]{1,5}(?:\.[0-9]{1,6})?)(?:\s*[:/]\s*([0-9]{1,5}(?:\.[0-9]{1,6})?))?", text.strip())
    if match is None or float(match[1]) == 0 or float(match[2] or 1) == 0:
        raise ValueError("width:height, such as 3:2")
    return float(match[1]) / float(match[2] or 1)


def seeds(text: str) -> tuple[int, ...]:
    """ "7", "1,2,5-9" or "-1" -> the seeds in that order, those that stand twice too."""
    found: list[int] = []
    for part in text.split(",", MOST_SEEDS):
        match = re.fullmatch(r"(-1)|\+?([0-9]{1,40})(?:\s*-\s*([0-9]{1,40}))?", part.strip())
        if match is None:
            wrong = f": {part[:40]!r} is neither" if "," in text else ""
            raise ValueError(f"a whole number, or a list such as 1,2,5-9{wrong}")
        first = int(match[1] or match[2])
        last = int(match[3]) if match[3] else first
        if not 0 <= last - first < MOST_SEEDS - len(found):
            raise ValueError(f"rising ranges, {MOST_SEEDS:,} seeds in all at most")
        found.extend(range(first, last + 1))
    return tuple(found)


def amount(text: str) -> int:
    """Bytes: "33554432", "32MiB"."""
    match = re.fullmatch(r"([0-9]{1,18})\s*([KMG]i?B|B|)", text.strip())
    if match is None:
        raise ValueError("a size such as 33554432 or 32MiB")
    return int(match[1]) * _UNITS[match[2]]


def dtype(text: str) -> str:
    name = _SHORT_DTYPES.get(text, text)
    if name not in _DTYPES:
        raise ValueError("auto, float32, bfloat16, float16 or int8")
    return name


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return text


class Choice:
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, text: str) -> str:
        if text not in self.words:
            raise ValueError(" or ".join((", ".join(self.words[:-1]), self.words[-1])))
        return text


def typed(value: Any, hint: Any) -> Any:
    """`value`, as JSON or TOML gives it, where its type is `hint`: a class, a union, a tuple or a mapping. TypeError where it is not."""
    for kind in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        origin, args = get_origin(kind) or kind, get_args(kind)
        if origin is tuple and isinstance(value, list | tuple):
            kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
            if len(kinds) == len(value) and all(_is(item, each) for item, each in zip(value, kinds, strict=True)):
                return tuple(float(item) if each is float else item for item, each in zip(value, kinds, strict=True))
        elif (origin is Mapping and isinstance(value, dict)) or _is(value, origin):
            return value
    raise TypeError(type(value).__name__)


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**1023)
    return type(value) is kind


def plain_json(text: str) -> Any:
    """JSON as data. ValueError where it is none, where a name stands twice, and for NaN and infinities, which are no numbers of JSON."""
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice")
    return made
