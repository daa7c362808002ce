"""What the UNet is told beside x, made once a prompt: the text's keys and values, and the shifts of the steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from torch import Tensor

from ldm.ops import use_reference

Shifts = list[Tensor]  # one (R, C), or (1, C) for all rows, a residual block: what the time and size embeddings add there
Keys = list[tuple[Tensor, Tensor]]  # one pair a cross-attention: keys and values of the text, (R, H, S, D) each


class Text(NamedTuple):
    """What one cross-attention reads: keys and values, and of which rows they are; the other rows have no text."""

    k: Tensor
    v: Tensor
    rows: slice


@dataclass(frozen=True)
class Prepared:
    """Everything that does not depend on x, for R rows of conditioning."""

    keys: Keys
    shifts: list[Shifts]  # by step
    worded: tuple[bool, ...]  # by row: whether it has a text; where not, its keys and values are zeros

    def texts(self) -> Iterator[Text]:
        """By cross-attention: of the rows from the first to the last that has a text."""
        places = [r for r, worded in enumerate(self.worded) if worded or use_reference()]
        rows = slice(places[0], places[-1] + 1) if places else slice(0)
        return (Text(k[rows], v[rows], rows) for k, v in self.keys)

    def repeat(self, count: int) -> Self:
        """For `count` pictures a row, in the order row 0, row 0, ..., row 1, row 1, ..."""
        keys = [(k.repeat_interleave(count, 0), v.repeat_interleave(count, 0)) for k, v in self.keys]
        shifts = [[shift.repeat_interleave(count, 0) if len(shift) > 1 else shift for shift in step] for step in self.shifts]
        return replace(self, keys=keys, shifts=shifts, worded=tuple(each for each in self.worded for _ in range(count)))

    def row(self, r: int) -> Self:
        """For row r alone."""
        keys = [(k[r : r + 1], v[r : r + 1]) for k, v in self.keys]
        shifts = [[shift[r : r + 1] if len(shift) > 1 else shift for shift in step] for step in self.shifts]
        return replace(self, keys=keys, shifts=shifts, worded=self.worded[r : r + 1])

    def told(self, places: Sequence[int]) -> Self:
        """The texts of these rows, in this order; steps are prepared for them anew."""
        keys = [(k[places], v[places]) for k, v in self.keys]
        return replace(self, keys=keys, shifts=[], worded=tuple(self.worded[r] for r in places))


def worded(context: Tensor) -> tuple[bool, ...]:
    """Which rows of context (R, S, D) are more than zeros; all, where there are shapes alone."""
    return (True,) * len(context) if context.is_meta else tuple(context.flatten(1).any(1).tolist())
