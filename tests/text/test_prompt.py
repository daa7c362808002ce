"""Chunks: their laws, the comma rule's edges, padding, limits and warnings."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.text import prompt
from ldm.text.prompt import CHUNK, LENGTH, chunks, padded, tower_ids, warnings_for
from ldm.text.tokenizer import COMMA, END, START, encode

A = 320  # the word "a"
TOKENS = st.lists(st.sampled_from([A, A, A, 1, 2, COMMA]), max_size=400)


def words(count: int, *commas: int) -> list[int]:
    return [COMMA if k in commas else A for k in range(count)]


def sizes(tokens: list[int], rule: prompt.Rule) -> list[int]:
    return [len(chunk) for chunk in chunks(tokens, rule)]


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(TOKENS, st.sampled_from(["plain", "comma-20"]))
def test_chunks_together_are_the_tokens(tokens: list[int], rule: prompt.Rule) -> None:
    made = chunks(tokens, rule)
    assert list(chain.from_iterable(made)) == tokens
    assert all(0 < len(chunk) <= CHUNK for chunk in made) or (made == [[]] and not tokens)
    assert all(len(chunk) > CHUNK - 20 for chunk in made[:-1])


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(TOKENS)
def test_a_chunk_cut_short_ends_in_its_last_comma(tokens: list[int]) -> None:
    made = chunks(tokens, "comma-20")
    for chunk, after in pairwise(made):
        moved = after[: CHUNK - len(chunk)]
        assert len(chunk) == CHUNK or (chunk[-1] == COMMA and COMMA not in moved)


@pytest.mark.parametrize(("count", "plain"), [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (151, [75, 75, 1])])
def test_plain_sizes(count: int, plain: list[int]) -> None:
    assert sizes(words(count), "plain") == sizes(words(count), "comma-20") == plain
    assert sizes(words(count), "cut") == plain[:1]


@pytest.mark.parametrize(
    ("count", "commas", "wanted"),
    [
        (80, [60], [61, 19]),  # the words after the comma move
        (80, [55], [56, 24]),  # the farthest comma that counts: the 20th token from the end
        (80, [54], [75, 5]),  # one too far
        (80, [60, 70], [71, 9]),  # the last one
        (80, [74], [75, 5]),  # at the very end: nothing to move
        (80, [60, 75], [75, 5]),  # the token that no longer fits is itself a comma: a plain cut
        (75, [60], [75]),  # all fits
        (160, [60, 120], [61, 60, 39]),  # positions count from the chunk's own start
        (140, [60, 139], [61, 75, 4]),
    ],
)
def test_comma_rule(count: int, commas: list[int], wanted: list[int]) -> None:
    assert sizes(words(count, *commas), "comma-20") == wanted


def test_padding() -> None:
    assert padded([], END) == [START] + [END] * 76
    assert padded([A, A], 0) == [START, A, A, END] + [0] * 73
    assert padded([A] * CHUNK, 0) == [START, *[A] * CHUNK, END]


def test_each_tower_has_its_padding() -> None:
    first, second = tower_ids(["a cat, " * 40] * 2, [END, 0])
    assert [len(first), len(second), *map(len, first + second)] == [2, 2, *[LENGTH] * 4]
    spread = [[token for token in chunk if token not in (START, END, 0)] for chunk in second]
    assert list(chain.from_iterable(spread)) == encode("a cat, " * 40)
    assert first[1][:47] == second[1][:47]
    assert {*first[1][47:]} == {END}
    assert {*second[1][47:]} == {0}


def test_a_shorter_second_text_gets_empty_chunks() -> None:
    first, second = tower_ids(["a " * 200, "a cat"], [END, 0])
    assert len(first) == len(second) == 3
    assert second == [padded(encode("a cat"), 0), padded([], 0), padded([], 0)]


def test_as_many_texts_as_towers() -> None:
    with pytest.raises(ValueError):
        tower_ids(["a", "b"], [0])


@pytest.mark.parametrize("text", ["a\0b", "a \udcff", "a" * 100_001])
def test_refused_texts(text: str) -> None:
    with pytest.raises(InputError) as error:
        tower_ids(["a cat", text], [END, 0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["(red:1.2)", "((red))", "[red]", "[cat:dog:0.5]", "<lora:style:0.8>", "BREAK", "AND", "embedding:style", "{red|blue}"]
)
def test_words_of_prompt_languages_are_literal_with_one_warning(text: str) -> None:
    (warning,) = warnings_for(f"a cat, {text}, a dog {text} (old:2)")
    assert text.strip("()") in warning
    assert "\n" not in warning


@pytest.mark.parametrize("text", ["", "a cat", "breakfast and a break", "f/1.8, 1girl", "a < b", "smile :) (", "{red}"])
def test_plain_words_give_no_warning(text: str) -> None:
    assert warnings_for(text) == []


def test_a_long_list_of_words_stays_one_line() -> None:
    (warning,) = warnings_for(" ".join(f"({k} {'x' * 100})" for k in range(50)))
    assert len(warning) < 250
    assert "47 more" in warning


def test_dropped_tokens_are_told() -> None:
    assert warnings_for("a " * 75, "cut") == []
    assert "last 5 of 80" in warnings_for("a " * 80, "cut")[0]
    assert warnings_for("a " * 80) == []
