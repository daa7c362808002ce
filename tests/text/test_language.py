"""The languages of prompts: published examples, round trips, oddities that are kept, refusals with their column."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.text.language import Syntax, choices, editing, pieces, render
from ldm.text.language.editing import Alternate, Edit, Node, by_call, parse, schedule, split
from ldm.text.language.piece import CUT, DEPTH, Piece

SETTINGS = settings(max_examples=200, derandomize=True, database=None, deadline=None)


def read(text: str, syntax: Syntax = "a1111") -> list[tuple[str, float]]:
    return [("BREAK", -1) if piece.cut else (piece.text, piece.weight) for piece in pieces(text, syntax)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [  # stable-diffusion-webui `modules/prompt_parser.py`, the examples in its documentation
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
        # and what follows from its rules
        ("", [("", 1.0)]),
        ("[[a]]", [("a", 1 / 1.1 / 1.1)]),
        ("(a:-1.5)", [("a", -1.5)]),
        ("(a : 0.5 )", [("a ", 0.5)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("([a)b]", [("a", 1.0), ("b", 1 / 1.1)]),
        (r"a\b\\c", [("ab\\c", 1.0)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1), ("b", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),
        ("(a:1e3)", [("a:1e3", 1.1)]),
    ],
)
def test_a1111_weights(text: str, wanted: list[tuple[str, float]]) -> None:
    assert read(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("", [("", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((b))", [("b", 1.1 * 1.1)]),
        ("((b:1.5))", [("b", 1.5)]),  # a number replaces what stands around it
        ("((a)(b:2) c:1.5)", [("a", 1.5 * 1.1), ("b", 2.0), (" c", 1.5)]),
        ("(a:b:0.5)", [("a:b", 0.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:0.5)", [(":0.5", 1.1)]),
        ("(a:1e0)", [("a", 1.0)]),
        ("[a] BREAK b AND c", [("[a] BREAK b AND c", 1.0)]),
        (r"\(a\) b", [("(a) b", 1.0)]),
        ("a) b (c:1.2) d", [("a) b (c:1.2) d", 1.0)]),  # the count is off by one after a stray bracket
        ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
        ("(open", [("(open", 1.0)]),
        ("()", [("", 1.0)]),
    ],
)
def test_comfyui_weights(text: str, wanted: list[tuple[str, float]]) -> None:
    assert read(text, "comfyui") == wanted


@pytest.mark.parametrize("text", ["(a:1.2) [b] \\( BREAK", ""])
def test_no_language_reads_nothing(text: str) -> None:
    assert pieces(text, "none") == [Piece(text)]


WORD = st.text(string.ascii_letters + " ()[]:\\,.1猫", min_size=1, max_size=8).filter(lambda text: "BREAK" not in text)
WEIGHT = st.floats(-10, 10, allow_nan=False)
PIECE = st.builds(Piece, WORD, WEIGHT)


@SETTINGS
@given(st.lists(PIECE, min_size=1, max_size=6))
def test_round_trip_of_every_weight(given_pieces: list[Piece]) -> None:
    apart = [piece for k, piece in enumerate(given_pieces) if k == 0 or piece.weight != given_pieces[k - 1].weight]
    assert pieces(render(apart, "a1111"), "a1111") == apart
    assert pieces(render(given_pieces, "comfyui"), "comfyui") == given_pieces


def test_round_trip_of_breaks() -> None:
    made = [Piece("a", 1.0), CUT, Piece("b", 0.1), Piece("c", 1.0)]
    assert [piece for piece in pieces(render(made, "a1111"), "a1111") if piece.text or piece.cut] == made


LEAF = st.text(string.ascii_lowercase + " ", min_size=1, max_size=4)


def changing(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    side = st.lists(inner, max_size=3).map(editing._joined)
    when = st.sampled_from(["3", "0.5", ".25", "-1", "1e1"])
    several = st.lists(side, min_size=2, max_size=4).map(tuple)
    return st.builds(Edit, side, side, when) | st.builds(Alternate, several)


@SETTINGS
@given(st.lists(st.recursive(LEAF, changing, max_leaves=8), max_size=4).map(editing._joined))
def test_round_trip_of_what_changes(nodes: tuple[Node, ...]) -> None:
    assert parse(editing.render(nodes)) == nodes


def forms(text: str, steps: int = 10) -> list[tuple[int, str]]:
    return schedule(parse(text), steps)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [  # the examples in the same file
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(k, "(b:1.1)" if k % 2 == 0 else "a") for k in range(1, 11)]),
        ("[fe|]male", [(k, "male" if k % 2 == 0 else "female") for k in range(1, 11)]),
        ("[fe|||]male", [(k, "female" if k % 4 == 1 else "male") for k in range(1, 11)]),
        # and what follows from the grammar
        ("[a::0.5]b", [(5, "ab"), (10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[x [a:b]:3]", [(10, "[x [a:b]:3]")]),
        ("[a|b:3]", [(10, "[a|b:3]")]),
        ("a | b [c:3]", [(10, "a | b [c:3]")]),  # a bar that belongs nowhere
        ("[c:3] \\", [(10, "[c:3] \\")]),
        ("\\[a:b:3\\]", [(10, "\\[a:b:3\\]")]),
    ],
)
def test_editing(text: str, wanted: list[tuple[int, str]]) -> None:
    assert forms(text) == wanted


def test_the_first_stretch_lasts_one_call_longer() -> None:
    def calls(text: str, steps: int) -> str:
        made = forms(text, steps)
        return "".join(made[k][1] for k in by_call([end for end, _ in made], steps))

    assert calls("[a:b:5]", 10) == "aaaaaabbbb"
    assert calls("[a|b]", 5) == "aabab"
    assert calls("[a:b:0.5]", 4) == "aaab"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a AND b", [("a", 1.0), (" b", 1.0)]),
        ("a :1.5 AND b:-0.3 ", [("a", 1.5), (" b", -0.3)]),
        ("a cat:1.2", [("a cat", 1.2)]),  # with no AND too
        ("(a cat:1.2)", [("(a cat:1.2)", 1.0)]),
        ("(a cat:1.2", [("(a cat", 1.2)]),
        ("a:b AND c : 2.", [("a:b", 1.0), (" c", 2.0)]),
        ("BRAND AND", [("BRAND", 1.0), ("", 1.0)]),
    ],
)
def test_texts_side_by_side(text: str, wanted: list[tuple[str, float]]) -> None:
    assert [(each, weight) for each, weight, _ in split(text)] == wanted
    assert all(text[start:].startswith(each) for each, _, start in split(text))


def test_choices_by_the_seed() -> None:
    seen = {choices.chosen("a {red|green|blue} apple", seed) for seed in range(40)}
    assert seen == {"a red apple", "a green apple", "a blue apple"}
    # pinned: a picture made again from its seed has the words it had
    assert [choices.chosen("{a|b|c} {d|e}", seed) for seed in range(6)] == PINNED
    assert {choices.chosen("{2$$a|b|c}", seed) for seed in range(60)} == {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}
    assert {choices.chosen("{1-2$$ and $$a|b}", seed) for seed in range(60)} == {"a", "b", "a and b", "b and a"}
    assert {choices.chosen("{x {a|b}|c}", seed) for seed in range(60)} == {"x a", "x b", "c"}
    assert choices.chosen("{9$$a|b}", 0) in ("a, b", "b, a")
    assert {choices.chosen("{a|b}", seed, "negative") == choices.chosen("{a|b}", seed) for seed in range(20)} == {True, False}


PINNED = ["c e", "a d", "c e", "c d", "b e", "a d"]


@pytest.mark.parametrize("text", ["", "a cat", "{a}", "{}", "a } b { c", "{a|b", "a|b", r"\{a|b\}", "$$"])
def test_texts_without_choices_stay_as_they_are(text: str) -> None:
    assert choices.chosen(text, 3) is text
    assert not choices.has(text)


def test_braces_that_are_text_beside_choices() -> None:
    assert {choices.chosen(r"{x} \{y\} {a|b} {z", seed) for seed in range(20)} == {r"{x} {y} a {z", r"{x} {y} b {z"}


@pytest.mark.parametrize(
    ("text", "syntax", "column"),
    [
        ("a (b:11)", "a1111", 4),
        ("ab ((c:9):1.2)", "a1111", 6),
        ("(a:1.2.3)", "a1111", 4),
        ("a (b:1e9)", "comfyui", 4),
        ("a (b:nan)", "comfyui", 4),
        ("a (b:-10.5)", "comfyui", 4),
        ("(" * (DEPTH + 1), "a1111", DEPTH + 1),
        ("[(" * DEPTH, "a1111", DEPTH + 1),
        ("(" * (DEPTH + 1), "comfyui", DEPTH + 1),
    ],
)
def test_refusals_say_the_column(text: str, syntax: Syntax, column: int) -> None:
    with pytest.raises(InputError, match=f"^column {column}: [^\n]+$"):
        pieces(text, syntax)


def test_more_refusals() -> None:
    for text, message in (("[" * 99 + "]" * 99, "column 51"), ("[a:b:0.5]" * 40_000 + "[a|b|c|d|e|f|g]", "more than 1000000")):
        with pytest.raises(InputError, match=message):
            schedule(parse(text), 30)
    with pytest.raises(InputError, match="column 4: weight 50"):
        split("a :50")
    with pytest.raises(InputError, match="more than 64 texts"):
        split("a AND " * 64)
    with pytest.raises(InputError, match="column 51"):
        choices.chosen("{" * 60, 0)
    with pytest.raises(InputError, match="come to more than"):
        choices.chosen("{99$$" + "x" * 60_000 + "$$a|b|c}", 0)
