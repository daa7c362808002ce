"""Token ids: equal to open_clip's for any text, to transformers' for plain prompts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.text import tokenizer
from tests.text import foreign

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text(encoding="utf-8"))

_any = st.characters(exclude_categories=["Cs"])
_astral = st.characters(min_codepoint=0x10000)
_bits = [*"aAsStT'<>&;,._1 \n\u0301\u200d\u017f\u212a", "'S", "&lt;", "end_of_text>", "Ã©"]
_fragments = st.sampled_from([*foreign.NASTY, *foreign.PLAIN, *_bits])
ANYTHING = st.one_of(
    st.text(_any, max_size=40),
    st.text(_astral, max_size=20),
    st.text(st.characters(max_codepoint=0x24F), max_size=60),
    st.text(st.characters(max_codepoint=0x7F), max_size=60),
    st.lists(st.one_of(_fragments, _any), max_size=6).map("".join),
)


@settings(max_examples=10_000, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(ANYTHING)
def test_equals_open_clip_on_any_text(text: str) -> None:
    ours, theirs = tokenizer.encode(text), foreign.open_clip()
    assert ours == theirs.encode(text)
    assert tokenizer.decode(ours) == theirs.decode(ours)


@pytest.mark.parametrize("text", foreign.NASTY)
def test_equals_open_clip_on_hard_texts(text: str) -> None:
    assert tokenizer.encode(text) == foreign.open_clip().encode(text)


def test_every_character_alone() -> None:
    """Letters at both ends of a run of characters, so that every class of every character decides a split."""
    assigned = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x110000, 7))]
    texts = [" ".join(f"a{char}1" for char in assigned[k : k + 500]) for k in range(0, len(assigned), 500)]
    theirs = foreign.open_clip()
    assert [tokenizer.encode(text) for text in texts] == [theirs.encode(text) for text in texts]


@pytest.mark.parametrize("text", foreign.PLAIN)
def test_equals_transformers_on_plain_prompts(text: str) -> None:
    pytest.importorskip("transformers")
    assert [tokenizer.START, *tokenizer.encode(text), tokenizer.END] == foreign.transformers()(text)["input_ids"]


KEPT = ["hi! a!!", "a !  b", "can!'t", "!", "wow!?!", "A<|ENDOFTEXT|> !", "a<|endoftext|>b<|startoftext|>"]
KEPT += ["a cat\u2019s eye &amp; \uff26\uff35", "\u039f\u0394\u039f\u03a3"]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("text", [*foreign.PLAIN, *foreign.NASTY, *KEPT])
def test_without_cleaning_equals_transformers(text: str, pad: str) -> None:
    pytest.importorskip("transformers")
    ours = tokenizer.encode(text, "none", exclaimed=pad == "!")
    assert [tokenizer.START, *ours, tokenizer.END] == foreign.transformers(pad)(text)["input_ids"]


def test_exclamation_marks_of_the_second_tower() -> None:
    assert tokenizer.encode("hi! a!!") == [1883, 256, 320, 748]
    assert tokenizer.encode("hi! a!!", exclaimed=True) == tokenizer.encode("hi! a!!", "none", exclaimed=True) == [1883, 0, 320, 0, 0]


@pytest.mark.parametrize("case", GOLDEN["tokens"], ids=lambda case: ascii(case["text"])[:30])
def test_equals_stored_ids(case: dict[str, object]) -> None:
    assert tokenizer.encode(str(case["text"])) == case["ids"]


def test_words_of_the_vocabulary() -> None:
    assert tokenizer.encode("<start_of_text>") == [tokenizer.START] == [49406]
    assert tokenizer.encode("<end_of_text>") == [tokenizer.END] == [49407]
    assert tokenizer.encode(",") == [tokenizer.COMMA] == [267]
    assert tokenizer.encode("!")[0] == 256
    assert tokenizer.END not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode(range(49408))


def test_decode_gives_the_cleaned_text() -> None:
    assert tokenizer.decode(tokenizer.encode("A  Red\nApple \U0001f34e")) == "a red apple \U0001f34e "


def test_lone_surrogates_are_mended_as_there() -> None:
    for text in ("a \udcff", "\ud83c\udf4e", "&#xd800;"):
        assert tokenizer.encode(text) == foreign.open_clip().encode(text)


def test_without_open_clip_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        find_spec = staticmethod(lambda name: None)

    monkeypatch.setattr(tokenizer, "PathFinder", Nothing)
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="open_clip_torch"):
        tokenizer._merges_file()


def test_neither_torch_nor_open_clip_is_imported() -> None:
    code = "import sys; sys.modules['open_clip'] = None; from ldm.text import prompt; prompt.chunks(prompt.encode('a cat')); "
    code += "print(*{'torch', 'torchvision', 'open_clip.tokenizer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_longest_prompts_take_a_moment() -> None:
    """Linear in the length, one endless word included: the stated limit of 100,000 characters in seconds."""
    for text in ("a" * 100_000, "&" * 100_000, "a!" * 50_000, "\U0001f34e" * 50_000, "Ã©" * 50_000, "\u0301" * 100_000):
        start = time.process_time()
        tokenizer.encode(text)
        assert time.process_time() - start < 5, ascii(text[:2])
