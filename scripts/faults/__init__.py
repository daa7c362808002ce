"""Faults on purpose: one function a row of docs/reliability.md, which makes the fault as often as asked and counts what comes of it.

    python -m scripts.faults A1                  # the row's own count
    python -m scripts.faults A1 --count 20000    # a smaller one, as the tests take
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What an experiment gave: the goal, what was reached in words with its numbers, and whether the goal is met."""

    goal: str
    reached: str
    good: bool

    def __str__(self) -> str:
        return f"{'ok' if self.good else 'MISSED'}: {self.reached} (goal: {self.goal})"
