"""Words to values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm import values


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (values.seeds, "7", (7,)),
        (values.seeds, "1,2,5-9", (1, 2, 5, 6, 7, 8, 9)),
        (values.seeds, " 3 , -1, 3, 4 - 5 ", (3, -1, 3, 4, 5)),
        (values.seeds, "4-4", (4,)),
        (values.seeds, "0007", (7,)),
        (values.seeds, "0-99999", tuple(range(100_000))),
        (values.seeds, ",".join(["5"] * 100_000), (5,) * 100_000),
        (values.seeds, "18446744073709551615", (2**64 - 1,)),
        (values.size, "1216x832", (832, 1216)),
        (values.size, "1216 X 832", (832, 1216)),
        (values.point, "128,0", (0, 128)),
        (values.ratio, "3:2", 1.5),
        (values.ratio, "16/9", 16 / 9),
        (values.ratio, "0.75", 0.75),
        (values.amount, "32MiB", 2**25),
        (values.amount, "33554432", 2**25),
        (values.amount, "1 GB", 10**9),
    ],
)
def test_words(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        *((values.seeds, text) for text in ("", "a", "1,,2", "9-5", "1-", "-2", "-1-5", "1--5", "1.5", "1e3", "٣", "9" * 100_000)),
        *((values.seeds, text) for text in ("0-18446744073709551616", "0-100000", "0-99999,1", "5," * 100_001)),
        *((values.size, text) for text in ("", "1216", "1216x", "x832", "-1x8", "1216x832x3", "1.5x2")),
        *((values.point, text) for text in ("", "1", "1,2,3", "-1,0", "a,b")),
        *((values.ratio, text) for text in ("", "0:1", "1:0", "3:", ":2", "-1:2", "nan", "inf", "1e3")),
        *((values.amount, text) for text in ("", "x", "-1", "1TB", "1.5MiB")),
    ],
)
def test_wrong_words(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1,abc,3", "a list such as 1,2,5-9: 'abc' is neither"),
        ("1.5", "a whole number, or a list such as 1,2,5-9"),
        ("0-18446744073709551615", "100,000 seeds in all at most"),
    ],
)
def test_seeds_that_are_none_are_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        values.seeds(text)
    assert said in str(caught.value) and len(str(caught.value)) < 200


@given(st.lists(st.integers(-1, 2**64 - 1), min_size=1))
def test_seeds_that_are_written_are_read(made: list[int]) -> None:
    assert values.seeds(",".join(map(str, made))) == tuple(made)


@given(st.text(max_size=30))
def test_any_word_is_a_value_or_a_value_error(text: str) -> None:
    for parse in (values.seeds, values.size, values.point, values.ratio, values.amount, values.numbers, values.whole, values.number):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (float("nan"), float, False),
        (10**400, float, False),
        (None, int | None, True),
        ([1, 2], tuple[int, int] | None, True),
        ([1, 2, 3], tuple[int, int] | None, False),
        ([1, 2.5], tuple[int, int], False),
        ([1, 2.5, 3], tuple[float, ...], True),
        ([], tuple[float, ...], True),
        ({"a": "b"}, Mapping[str, str] | None, True),
        ([], str, False),
    ],
)
def test_typed(value: Any, hint: Any, good: bool) -> None:
    if good:
        made = values.typed(value, hint)
        assert list(made) == value if isinstance(value, list) else made == value
    else:
        with pytest.raises(TypeError):
            values.typed(value, hint)
