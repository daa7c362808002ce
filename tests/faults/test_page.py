"""docs/reliability.md names every row and every class of error, and nothing is left to be filled in."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.errors import CODES
from scripts.faults.__main__ import ROWS

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_row_is_there_once() -> None:
    assert sorted(re.findall(r"^\| ([A-G][0-9]{1,2}) \|", PAGE, re.MULTILINE)) == sorted(ROWS)


def test_every_class_of_error_is_there_with_its_words() -> None:
    assert dict(re.findall(r"^\| (E[0-9]{4}) \| (.*) \|$", PAGE, re.MULTILINE)) == CODES


def test_nothing_is_left_to_be_filled_in() -> None:
    assert not re.search(r"@[A-Z]+@|TBD", PAGE)
