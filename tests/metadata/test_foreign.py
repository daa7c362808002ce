"""Other programs' texts: each of the fixtures is understood as it stands there, and nothing raises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.metadata import a1111, foreign, native
from tests.metadata.strangers import STRANGERS, SWARM, Stranger, graph
from tests.metadata.test_native import RECORD


@pytest.mark.parametrize("stranger", STRANGERS, ids=[each.name for each in STRANGERS])
def test_what_a_stranger_says(stranger: Stranger) -> None:
    found = foreign.read(stranger.texts)
    assert found.dialect == stranger.dialect
    assert (found.info.prompt, found.info.negative) == (stranger.prompt, stranger.negative)
    assert found.info.settings == stranger.settings


def test_there_are_fifty_of_them() -> None:
    assert len({each.name for each in STRANGERS}) == len(STRANGERS) >= 50


def test_our_record_comes_first() -> None:
    job = replace(RECORD.job, prompt="the true prompt", negative="n")
    found = foreign.read({"ldm": native.write(replace(RECORD, job=job)), "parameters": "another\nSteps: 1, Seed: 2, Size: 8x8"})
    assert (found.dialect, found.info.prompt, found.info.negative) == ("ldm", "the true prompt", "n")
    assert found.info == a1111.from_record(replace(RECORD, job=job))


def test_a_record_of_another_version_leaves_the_text() -> None:
    found = foreign.read({"ldm": '{"schema": 99}', "parameters": "a fox\nSteps: 1, Seed: 2, Version: ldm 9.0.0"})
    assert (found.dialect, found.info.prompt) == ("ldm", "a fox")


NAMES = st.sampled_from([*graph()["3"]["inputs"], *SWARM, "inputs", "class_type"])
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each),
    max_leaves=20,
)
NODES = st.dictionaries(
    st.sampled_from("34567"),
    st.fixed_dictionaries({"class_type": st.sampled_from(["KSampler", "CLIPTextEncode", "x"])}, optional={"inputs": VALUES}),
)
KEYS = st.sampled_from(["parameters", "prompt", "workflow", "Comment", "Software", "invokeai_metadata", "sd-metadata", "ldm"])


@given(st.dictionaries(KEYS, st.text() | VALUES.map(json.dumps) | NODES.map(json.dumps)))
def test_any_texts_are_read_as_text(texts: dict[str, str]) -> None:
    found = foreign.read(texts)
    said = [found.dialect, found.info.prompt, found.info.negative, *found.info.settings, *found.info.settings.values()]
    assert all(type(each) is str for each in said)


def test_a_number_that_python_does_not_print() -> None:
    text = '{"sui_image_params": {"prompt": "a", "seed": ' + "1" * 5000 + "}}"
    assert foreign.read({"parameters": text}).dialect == "unknown"
