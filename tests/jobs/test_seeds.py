"""Lists of seeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.jobs import seeds


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("7", [7]),
        ("1,2,5-9", [1, 2, 5, 6, 7, 8, 9]),
        ("-1", [-1]),
        (" 3 , -1, 3", [3, -1, 3]),
        ("4-4", [4]),
        ("4 - 5", [4, 5]),
        ("18446744073709551615", [2**64 - 1]),
        ("0007", [7]),
    ],
)
def test_lists(text: str, made: list[int]) -> None:
    assert seeds.parse(text) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "''"),
        ("1,,2", "''"),
        ("abc", "'abc' is not acceptable: give whole numbers"),
        ("1.5", "'1.5'"),
        ("1e3", "'1e3'"),
        ("-2", "'-2'"),
        ("-1-5", "'-1-5'"),
        ("1--5", "'1--5'"),
        ("٣", "'٣'"),
        ("9-5", "'9-5' fall"),
        ("18446744073709551616", "0 to 18446744073709551615"),
        ("0-18446744073709551615", "more than 100000"),
        ("0-99999,5", "more than 100000"),
        ("9" * 100_000, "not acceptable"),
    ],
)
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        seeds.parse(text)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_longest_list() -> None:
    assert seeds.parse("0-99999") == list(range(100_000))
    assert len(seeds.parse(",".join(["5"] * 100_000))) == 100_000


@given(st.lists(st.integers(-1, 2**64 - 1), min_size=1))
def test_what_is_written_is_read(made: list[int]) -> None:
    assert seeds.parse(",".join(map(str, made))) == made
