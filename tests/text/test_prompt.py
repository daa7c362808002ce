"""Chunks: their laws, the comma rule's edges, padding, limits and warnings."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.profiles import load_profile
from ldm.errors import InputError
from ldm.text import prompt
from ldm.text.prompt import CHUNK, Token, chunks, parsed, tower_texts, warnings_for, weighted
from ldm.text.tokenizer import COMMA, END, LENGTH, START, encode, padded

A = 320  # the word "a"
COMFYUI, A1111 = load_profile("comfyui"), load_profile("a1111")
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
    first, second = (text.ids for text in tower_texts(["a cat, " * 40] * 2, [END, 0], COMFYUI))
    assert [len(first), len(second), *map(len, first + second)] == [2, 2, *[LENGTH] * 4]
    spread = [[token for token in chunk if token not in (START, END, 0)] for chunk in second]
    assert list(chain.from_iterable(spread)) == encode("a cat, " * 40)
    assert first[1][:47] == second[1][:47]
    assert {*first[1][47:]} == {END}
    assert {*second[1][47:]} == {0}


@pytest.mark.parametrize(
    ("profile", "mended", "last"),
    [
        ("comfyui", False, 256),
        ("a1111", True, 256),
        ("forge", True, 0),
        ("diffusers", False, 0),
        ("invokeai", False, 0),
        ("sgm", True, 256),
    ],
)
def test_the_tokens_of_each_engine(profile: str, mended: bool, last: int) -> None:
    """Whether quotes are mended, and what "!" is to the tower that pads with 0."""
    rules = load_profile(profile)
    (quoted,) = tower_texts(["a cat\u2019s eye"], [END], rules)
    assert (quoted.ids == [padded(encode("a cat's eye"), END)]) == mended
    first, second = tower_texts(["hi!"] * 2, [END, 0], rules)
    assert (first.ids[0][2], second.ids[0][2]) == (256, last)
    count = 2 if last == 0 and rules.chunking != "cut" else 1
    assert prompt.length(["!" * 80], rules) == count
    assert [len(text.ids) for text in tower_texts(["!" * 80] * 2, [END, 0], rules)] == [count] * 2


def test_a_shorter_second_text_gets_empty_chunks() -> None:
    first, second = tower_texts(["a " * 200, "a (cat:1.5)"], [END, 0], COMFYUI)
    assert len(first.ids) == len(second.ids) == 3
    assert second.ids == [padded(encode("a cat"), 0), padded([], 0), padded([], 0)]
    assert second.weights == [[1, 1, 1.5, *[1] * 74], [1] * 77, [1] * 77]
    assert [len(text.ids) for text in tower_texts(["a"], [0], COMFYUI, count=4)] == [4]


def test_as_many_texts_as_towers() -> None:
    with pytest.raises(ValueError):
        tower_texts(["a", "b"], [0], COMFYUI)


@pytest.mark.parametrize("text", ["a\0b", "a \udcff", "a" * 100_001, "a (cat:11)"])
def test_refused_texts(text: str) -> None:
    with pytest.raises(InputError) as error:
        tower_texts(["a cat", text], [END, 0], COMFYUI)
    assert "\n" not in str(error.value)


def run(count: int, weight: float = 1.0) -> list[Token]:
    return [(A, weight)] * count


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        ([70, 8], [75, 3]),  # 8 tokens are cut
        ([70, 7], [70, 7]),  # 7 move whole
        ([75, 7], [75, 7]),
        ([75, 8], [75, 8]),
        ([70, 5], [75]),
        ([160, 3], [75, 75, 13]),
        ([149, 4], [75, 74, 4]),
        ([7] * 11, [70, 7]),
        ([], [0]),
        ([0], [0]),
    ],
)
def test_short_runs_of_one_weight_are_not_cut(runs: list[int], wanted: list[int]) -> None:
    made = weighted([run(count, k + 1) for k, count in enumerate(runs)], "plain")
    assert [len(chunk) for chunk in made] == wanted
    assert list(chain.from_iterable(made)) == [token for k, count in enumerate(runs) for token in run(count, k + 1)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a BREAK a", [1, 1]),
        ("a BREAK BREAK a", [1, 0, 1]),
        ("BREAK a", [0, 1]),
        ("a BREAK", [1]),
        ("BREAK", [0]),
        ("a " * 75 + "BREAK a", [75, 1]),
        ("a " * 76 + "BREAK a", [75, 1, 1]),
        ("(a BREAK a)", [3]),  # its weight is changed: a word
        ("a, " * 37 + "a a a", [74, 3]),  # the comma rule, from the chunk's own start
    ],
)
def test_break_ends_a_chunk(text: str, wanted: list[int]) -> None:
    assert [len(chunk) for chunk in parsed(text, A1111)] == wanted
    assert len(parsed("a BREAK a", COMFYUI)) == 1


@pytest.mark.parametrize("text", ["<lora:style:0.8>", "embedding:style"])
@pytest.mark.parametrize("name", ["a1111", "comfyui", "sgm"])
def test_words_without_a_meaning_are_literal_with_one_warning(text: str, name: str) -> None:
    (warning,) = warnings_for(f"a cat, {text}, a dog {text}", load_profile(name))
    assert text in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("text", "readers"), [("[red]", 1), ("[cat:dog:0.5]", 1), ("BREAK", 1), ("AND", 1), ("(red:1.2)", 2), ("((red))", 2)]
)
def test_words_that_another_profile_reads_are_told(text: str, readers: int) -> None:
    told = [bool(warnings_for(f"a {text} b", load_profile(name))) for name in ("a1111", "comfyui", "sgm")]
    assert told == [k >= readers for k in range(3)]


@pytest.mark.parametrize("text", ["", "a cat", "breakfast and a break", "f/1.8, 1girl", "a < b", "smile :) (", "{red}"])
@pytest.mark.parametrize("name", ["a1111", "comfyui", "sgm"])
def test_plain_words_give_no_warning(text: str, name: str) -> None:
    assert warnings_for(text, load_profile(name)) == []


def test_a_long_list_of_words_stays_one_line() -> None:
    (warning,) = warnings_for(" ".join(f"[{k} {'x' * 100}]" for k in range(50)), COMFYUI)
    assert len(warning) < 250
    assert "47 more" in warning


def test_dropped_tokens_are_told() -> None:
    sgm = load_profile("sgm")
    assert warnings_for("a " * 75, sgm) == []
    assert "last 5 of 80" in warnings_for("a " * 80, sgm)[0]
    assert warnings_for("a " * 80, COMFYUI) == []
