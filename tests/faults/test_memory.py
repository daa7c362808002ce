"""Rows B1, C1 and C2, reduced."""

from __future__ import annotations

from scripts.faults import memory


def test_b1_overflow() -> None:
    """The second try is bfloat16, whose 8 bits are up to two levels away from float32; the third is exact."""
    seen = memory.overflow(60)
    assert (seen.decodes, seen.retried, seen.bad, seen.changed) == (60, 60, 0, 0)
    assert seen.most < 2 and seen.mean < 0.25
    assert seen.most_full <= 1


def test_c1_every_failing_allocation_is_a_note_or_an_error() -> None:
    figure = memory.c1(32)
    assert figure.good, figure


def test_c2_nothing_of_the_failed_attempt_is_held() -> None:
    figure = memory.c2(24)
    assert figure.good, figure
