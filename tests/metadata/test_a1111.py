"""The A1111 dialect: order, quoting, the traps, and the law of reading what was written."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.metadata import a1111
from ldm.metadata.a1111 import Infotext
from ldm.options import Job
from tests.metadata.test_native import RECORD

WRITTEN = """a red apple
Negative prompt: blur
Steps: 2, Sampler: Euler, Schedule type: Karras, CFG scale: 4.0, Seed: 8, Size: 128x128, Model: a, RNG: CPU, Version: ldm 0.1.0"""


def test_the_order_and_the_names() -> None:
    record = replace(RECORD, job=replace(RECORD.job, negative="blur"))
    assert a1111.write(a1111.from_record(record, "cpu")) == WRITTEN
    assert a1111.read(WRITTEN) == a1111.from_record(record, "cpu")


def test_values_that_are_absent_are_left_out_and_others_stand_in_their_place() -> None:
    record = replace(RECORD, vae="v, one.safetensors", stopped_at=3, job=replace(RECORD.job, overrides={"ensd": "31337"}))
    text = a1111.write(a1111.from_record(record, "philox"))
    assert "\nSteps: 2, " in text and "Negative" not in text
    assert ', VAE: "v, one.safetensors", ENSD: 31337, RNG: NV, Stopped at: 3, Version: ldm 0.1.0' in text
    assert a1111.read(text).settings["VAE"] == "v, one.safetensors"


def test_names_without_a_label_stand_as_they_are() -> None:
    record = replace(RECORD, job=replace(RECORD.job, sampler="new_one", schedule="other"))
    assert "Sampler: new_one, Schedule type: other" in a1111.write(a1111.from_record(record))


# What the dialect keeps: lines without outer space, none of which starts a negative prompt; the last is no settings line.
LINES = st.text(st.characters(codec="utf-8", exclude_characters=":\n"), min_size=1).filter(lambda line: line == line.strip())
PROMPTS = st.lists(LINES, min_size=1).map("\n".join)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9/-]{1,8}( [A-Za-z0-9]{1,5})?", fullmatch=True)
SETTINGS = st.dictionaries(NAMES, st.text(st.characters(codec="utf-8")), min_size=3, max_size=6)


@given(PROMPTS, st.just("") | PROMPTS, SETTINGS)
def test_read_of_write_is_the_text(prompt: str, negative: str, settings: dict[str, str]) -> None:
    info = Infotext(prompt, negative, settings)
    assert a1111.read(a1111.write(info)) == info


@given(st.text())
def test_every_text_is_read(text: str) -> None:
    a1111.read(text)


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "settings"),
    [
        ("", "", "", {}),
        ("only a prompt", "only a prompt", "", {}),
        ("two: pairs, are: a sentence", "two: pairs, are: a sentence", "", {}),
        ("eaten\naa: 1, bb: 2, cc: 3", "eaten", "", {"aa": "1", "bb": "2", "cc": "3"}),
        ("x\nNegative prompt: a\nb\nSteps: 1, Seed: 2, Size: 8x8", "x", "a\nb", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ("Negative prompt: a\nSteps: 1, Seed: 2, Size: 8x8", "", "a", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ("x\nSteps: 1, a: 2, Seed: 3, Size: 4", "x", "", {"Steps": "1", "Seed": "3", "Size": "4"}),
        ('x\nSteps: 1, Seed: 2, Hashes: {"a": 1, "b": 2}', "x", "", {"Steps": "1", "Seed": "2", "Hashes": '{"a": 1'}),
        ('x\nSteps: 1, TI hashes: "a: 1, b: 2", Seed: 2', "x", "", {"Steps": "1", "TI hashes": "a: 1, b: 2", "Seed": "2"}),
        ('x\nSteps: 1, Seed: 2, Model: "open', "x", "", {"Steps": "1", "Seed": "2", "Model": '"open'}),
    ],
)
def test_the_rules_of_reading(text: str, prompt: str, negative: str, settings: dict[str, str]) -> None:
    assert a1111.read(text) == Infotext(prompt, negative, settings)


@pytest.mark.parametrize("unit", ['a:"', '"', ":", ",", 'ab: "\\", ', 'ab:"x" ', " ", "aa: ", "\n", "Negative prompt:\n"])
def test_reading_takes_linear_time(unit: str) -> None:
    start = time.perf_counter()
    a1111.read(unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - start < 5


def test_a_text_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="too many"):
        a1111.read("x" * (a1111.LIMIT + 1))


def test_a_record_without_optional_values() -> None:
    assert a1111.from_record(replace(RECORD, job=Job("p", width=8, height=8))).settings["Size"] == "8x8"
