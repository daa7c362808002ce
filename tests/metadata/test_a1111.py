"""The A1111 dialect: order, quoting, the traps, and the law of reading what was written."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion.profiles import load_profile, override
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
    info = a1111.from_record(record, load_profile("comfyui"))
    assert a1111.write(info) == WRITTEN
    assert a1111.read(WRITTEN) == info


def test_values_that_are_absent_are_left_out_and_others_stand_in_their_place() -> None:
    record = replace(RECORD, vae="v, one.safetensors", stopped_at=3)
    text = a1111.write(a1111.from_record(record, override(load_profile("a1111"), {"ensd": 31337})))
    assert "\nSteps: 2, " in text and "Negative" not in text
    assert ', VAE: "v, one.safetensors", ENSD: 31337, RNG: NV, Stopped at: 3, Version: ldm 0.1.0' in text
    assert a1111.read(text).settings["VAE"] == "v, one.safetensors"


def test_the_tier_is_said_where_it_is_not_the_exact_one() -> None:
    for speed in ("fp8", "approx"):
        text = a1111.write(a1111.from_record(replace(RECORD, job=replace(RECORD.job, speed=speed))))
        assert f", ldm speed: {speed}, Version: " in text
        assert a1111.read(text).settings["ldm speed"] == speed


def test_a_model_loses_its_suffix_and_a_vae_keeps_it() -> None:
    settings = a1111.from_record(replace(RECORD, model="m.one.safetensors", vae="v.safetensors")).settings
    assert (settings["Model"], settings["VAE"]) == ("m.one", "v.safetensors")


@pytest.mark.parametrize(
    ("profile", "values", "written"),
    [
        ("a1111", {}, None),
        ("a1111", {"ensd": 0}, None),
        ("a1111", {"ensd": 7}, "7"),
        ("comfyui", {"ensd": 7}, None),
        ("comfyui", {"ensd": 7, "ancestral_rng": "continued"}, "7"),
    ],
)
def test_ensd_is_written_where_it_has_an_effect(profile: str, values: dict[str, Any], written: str | None) -> None:
    assert a1111.from_record(RECORD, override(load_profile(profile), values)).settings.get("ENSD") == written


def test_a_list_of_sigmas_has_no_schedule_type() -> None:
    record = replace(RECORD, job=replace(RECORD.job, schedule=None))
    assert "Schedule type" not in a1111.from_record(record).settings
    assert "Sampler: Euler, CFG scale: 4.0" in a1111.write(a1111.from_record(record))


def test_json_is_cut_unless_it_is_quoted() -> None:
    pairs = {"Steps": "1", "Seed": "2", "Extra": '{"a": 1, "b": [2, "c, d"]}'}
    assert a1111.read(a1111.write(Infotext("x", "", pairs))).settings == pairs
    bare = a1111.read('x\nSteps: 1, Seed: 2, SDCPP: {"a": 1, "Size": "8x8"}, Version: other')
    assert bare.settings == {"Steps": "1", "Seed": "2", "SDCPP": '{"a": 1', "Version": "other"}


@pytest.mark.parametrize("text", ['{"sui_image_params": {"prompt": "a cat", "seed": 1}}', ' \n{"a": 1}\n', "{}"])
def test_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="JSON object, as SwarmUI writes"):
        a1111.read(text)


@pytest.mark.parametrize("text", ["{a cat|a dog} on a mat", "{", '[{"a": 1}]', '{"a": ' * 50_000, '{"a": ' + "1" * 5000 + "}"])
def test_a_prompt_with_braces_is_a_prompt(text: str) -> None:
    assert a1111.read(text).prompt == text.strip()


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
    with contextlib.suppress(InputError) if text.lstrip().startswith("{") else contextlib.nullcontext():
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
    start = time.process_time()
    a1111.read(unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 5


def test_a_text_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="too many"):
        a1111.read("x" * (a1111.LIMIT + 1))


def test_a_record_without_optional_values() -> None:
    assert a1111.from_record(replace(RECORD, job=Job("p", width=8, height=8))).settings["Size"] == "8x8"
