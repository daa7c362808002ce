"""Rows F1 to F3 and F5 to F7 with small counts."""

from __future__ import annotations

import os

import pytest

from scripts.faults import training as rows

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_f1_killed_runs_end_with_the_same_bits() -> None:
    figure = rows.f1(4)
    assert figure.good, figure


@needs_fork
def test_f2_kills_while_a_state_is_saved() -> None:
    figure = rows.f2(12)
    assert figure.good, figure


def test_f3_damaged_states() -> None:
    figure = rows.f3(60)
    assert figure.good, figure


def test_f5_steps_that_are_not_finite() -> None:
    figure = rows.f5(5)
    assert figure.good, figure


def test_f6_no_pickles() -> None:
    figure = rows.f6(2)
    assert figure.good, figure


def test_f7_broken_pictures() -> None:
    figure = rows.f7(340)
    assert figure.good, figure
