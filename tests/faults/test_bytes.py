"""Rows A7, A8 and A9 with small counts."""

from __future__ import annotations

import pytest

from scripts.faults import bytes as rows

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def test_a7_bits_that_flip() -> None:
    figure = rows.a7(300)
    assert figure.good, figure


def test_a8_weights_that_are_not_finite() -> None:
    figure = rows.a8(150)
    assert figure.good, figure


def test_a9_files_that_change_while_they_are_read() -> None:
    figure = rows.a9(150)
    assert figure.good, figure
