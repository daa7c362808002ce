"""What all prompt languages come to: runs of text of one weight."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from ldm.errors import InputError
from ldm.limits import LIMITS

DEPTH = 50  # brackets inside each other, far beyond what a weight of 10 can come from
MARKUP = 1.1  # what a bare pair of round brackets multiplies by, in every language


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text of one weight; `cut`: no text, but the end of a chunk."""

    text: str
    weight: float = 1.0
    cut: bool = False


CUT = Piece("", 1.0, True)


def refuse(at: int, message: str) -> InputError:
    """The error that says where: `at` counts characters from 0."""
    return InputError(f"column {at + 1}: {message}")


def check_depth(depth: int, at: int) -> None:
    if depth > DEPTH:
        raise refuse(at, f"brackets more than {DEPTH} deep: close some, or write \\( for a bracket that is meant as such")


def number(text: str, at: int) -> float:
    """A weight as it is written."""
    try:
        return float(text)
    except ValueError:
        raise refuse(at, f"weight {text.strip()[:20]!r} is not a number: write one such as 1.2") from None


def checked(weight: float, at: int) -> float:
    """`weight`, if it is inside the limits; NaN is not."""
    if not LIMITS["weight"].allows(weight):
        raise refuse(at, f"weight {weight:.4g} is not allowed: {LIMITS['weight']}")
    return weight


def written(weight: float) -> str:
    """The shortest digits that read as `weight`, without an exponent, which A1111's grammar does not have."""
    return f"{Decimal(repr(weight)):f}"
