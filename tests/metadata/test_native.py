"""The lossless record: what is written comes back exactly, and anything else is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm import pictures
from ldm.errors import InputError
from ldm.metadata import native
from ldm.metadata.native import Record
from ldm.options import Job

RECORD = Record(
    job=Job("a red apple", None, 128, 128, 2, 4.0, "euler", "karras", (14.6, 0.3, 0.0), 7, 2, "comfyui", {"rng": "philox"}),
    seed=8,
    index=1,
    model="a.safetensors",
    family="sdxl-base",
    vae=None,
    device="cpu",
    dtype="float32",
    torch="2.11.0",
    version="0.1.0",
)
TEXT = st.text(max_size=200)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JOBS = st.builds(
    Job,
    prompt=TEXT,
    negative=st.none() | TEXT,
    width=st.integers(16, 8192),
    height=st.integers(16, 8192),
    steps=st.integers(1, 1000),
    cfg=NUMBERS,
    sampler=TEXT,
    schedule=TEXT,
    sigmas=st.none() | st.lists(NUMBERS, max_size=5).map(tuple),
    seed=st.integers(0, 2**64 - 1),
    batch=st.integers(1, 64),
    profile=TEXT,
    overrides=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
)


@given(job=JOBS, model=TEXT, vae=st.none() | TEXT, seed=st.integers(0, 2**64 - 1), stopped=st.none() | st.integers(0, 1000))
def test_read_of_write_is_the_record(job: Job, model: str, vae: str | None, seed: int, stopped: int | None) -> None:
    record = replace(RECORD, job=job, model=model, vae=vae, seed=seed, stopped_at=stopped)
    text = native.write(record)
    assert text.isascii()
    assert native.read(text) == record


def test_every_character_comes_back_through_a_file(tmp_path: Path) -> None:
    scalars = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
    for number, start in enumerate(range(0, len(scalars), 100_000)):
        record = replace(RECORD, job=replace(RECORD.job, prompt=scalars[start : start + 100_000]))
        path = pictures.save(Image.new("RGB", (8, 8)), tmp_path / f"{number}.png", pictures.Marks(record=native.write(record))).path
        assert native.read(pictures.read(path).texts[native.KEY]) == record


def test_the_run_is_not_recorded() -> None:
    job = replace(RECORD.job, model="/home/me/a.safetensors", vae="/home/me/v.safetensors", output="/home/me/out", latents="/home/me/z")
    text = native.write(replace(RECORD, job=job))
    assert "home" not in text
    assert native.read(text) == RECORD


def test_a_record_from_before_there_were_tiers_is_of_the_exact_one() -> None:
    said = json.loads(native.write(RECORD))
    assert said["job"].pop("speed") == "exact"
    assert native.read(json.dumps(said)) == RECORD
    other = replace(RECORD, job=replace(RECORD.job, speed="approx"))
    assert native.read(native.write(other)).job.speed == "approx"


def test_a_number_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        native.write(replace(RECORD, job=replace(RECORD.job, sigmas=(float("inf"), 0.0))))


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(native.write(RECORD)), **values})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[1]", "not an object"),
        ("{}", "schema"),
        (changed(schema=2), "schema '2' is not 1"),
        (changed(schema=True), "schema"),
        (changed(job=[]), "job is not an object"),
        (changed(more=1), "'more' is unknown"),
        (changed(job={**json.loads(native.write(RECORD))["job"], "lora": "x"}), "'lora' is unknown"),
        (json.dumps({key: value for key, value in json.loads(native.write(RECORD)).items() if key != "seed"}), "is missing"),
        (changed(seed="8"), "seed has the wrong type"),
        (changed(seed=True), "seed has the wrong type"),
        (changed(index=None), "index has the wrong type"),
        (changed(job={**json.loads(native.write(RECORD))["job"], "sigmas": ["x"]}), "sigmas has the wrong type"),
        ('{"schema": 1, "schema": 1}', "twice"),
        ('{"schema": NaN}', "not a number"),
        ("[" * 100_000, "not JSON"),
        ('{"schema": ' + "1" * 5000 + "}", "not JSON"),
        (" " * (native.LIMIT + 1), "too many"),
    ],
)
def test_anything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        native.read(text)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda each: st.lists(each) | st.dictionaries(TEXT, each))


@given(st.text() | VALUES.map(json.dumps))
def test_strangers_texts_are_data(text: str) -> None:
    with pytest.raises(InputError):
        native.read(text)
