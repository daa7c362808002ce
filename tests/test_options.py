"""The knobs: each flag, each alias, each limit and its message."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.checks import validate
from ldm.errors import InputError
from ldm.flags import given as flags_given
from ldm.flags import parser
from ldm.layers import layered
from ldm.limits import LIMITS
from ldm.options import KNOBS, Job


def job(*argv: str) -> Job:
    return from_args(["-p", "x", *argv])


def from_args(argv: list[str]) -> Job:
    return layered(flags_given(parser("ldm sample", ""), argv))


def refusal(call: Any, *args: Any) -> str:
    """The message of the InputError, which is one line."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_field_is_a_knob_and_every_flag_is_used_once() -> None:
    assert list(KNOBS) == [each.name for each in fields(Job)]
    words = [word for knob in KNOBS.values() for word in (*knob.flags, *knob.aliases)]
    assert len(words) == len(set(words))


def test_no_flags_give_the_declared_defaults() -> None:
    assert job() == Job(prompt="x")


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("-n bad", "negative", "bad"),
        ("--negative-prompt bad", "negative", "bad"),
        ("-W 640", "width", 640),
        ("--height 512", "height", 512),
        ("-s -1", "seed", -1),
        ("--seed 18446744073709551615", "seed", 2**64 - 1),
        ("-b 3", "batch", 3),
        ("--batch-count 3", "batch", 3),
        ("--steps 7", "steps", 7),
        ("--cfg 3.5", "cfg", 3.5),
        ("--cfg-scale 3.5", "cfg", 3.5),
        ("--guidance 3.5", "cfg", 3.5),
        ("--scale 3", "cfg", 3.0),
        ("--sampler euler", "sampler", "euler"),
        ("--sampling-method euler", "sampler", "euler"),
        ("--schedule karras", "schedule", "karras"),
        ("--scheduler karras", "schedule", "karras"),
        ("--sigmas 14.6,5,1,0", "sigmas", (14.6, 5.0, 1.0, 0.0)),
        ("--profile a1111", "profile", "a1111"),
        ("--set rng=philox --set ensd=31337", "overrides", {"rng": "philox", "ensd": "31337"}),
        ("-m a.safetensors", "model", "a.safetensors"),
        ("--vae v.safetensors", "vae", "v.safetensors"),
        ("--device cuda:1", "device", "cuda:1"),
        ("--dtype bf16", "dtype", "bfloat16"),
        ("-o pictures", "output", "pictures"),
        ("--outdir pictures", "output", "pictures"),
        ("--output-dir pictures", "output", "pictures"),
        ("--latents z.safetensors", "latents", "z.safetensors"),
        ("--speed approx", "speed", "approx"),
        ("--overwrite", "overwrite", True),
        ("--debug", "debug", True),
        ("-q", "quiet", True),
        ("--max-memory 8GiB", "max_memory", 2**33),
        ("--plan", "plan", True),
    ],
)
def test_flag(words: str, field: str, value: Any) -> None:
    assert job(*words.split()) == replace(Job(prompt="x"), **{field: value})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--stpes 3", "--stpes"),
        ("--steps", "expected one argument"),
        ("--steps 1.5", "--steps '1.5' is not acceptable: give a whole number"),
        ("--seed abc", "give a whole number"),
        ("--seed 1e3", "give a whole number"),
        ("--cfg high", "give a number"),
        ("--sigmas 3,x", "give numbers with commas between"),
        ("--set rng", "field=value"),
        ("--dtype int4", "auto, float32, bfloat16, float16 or int8"),
        ("--device tpu", "auto, cpu, cuda or cuda:N"),
        ("--speed fast", "--speed 'fast' is not acceptable: give exact, fp8 or approx"),
        ("stray", "stray"),
        ("--step 3", "--step"),  # no abbreviations: they would change meaning with every new flag
    ],
)
def test_wrong_words_are_one_line(words: str, said: str) -> None:
    assert said in refusal(job, *words.split())


def test_a_prompt_is_needed_and_an_empty_one_is_a_prompt() -> None:
    assert "no prompt" in refusal(from_args, [])
    assert from_args(["-p", ""]).prompt == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 0}, "width 0 is not allowed: 16 to 8192, multiples of 8: the nearest is 16"),
        ({"width": 7}, "the nearest is 16"),
        ({"width": 1025}, "width 1025 is not allowed: 16 to 8192, multiples of 8: the nearest is 1024"),
        ({"height": 10**6}, "height 1000000 is not allowed: 16 to 8192, multiples of 8: the nearest is 8192"),
        ({"height": 1020}, "the nearest is 1024"),
        ({"height": 512.0}, "height 512.0 is not a whole number"),
        ({"width": True}, "not a whole number"),
        ({"steps": 0}, "steps 0 is not allowed: 1 to 1000"),
        ({"steps": 1001}, "1 to 1000"),
        ({"cfg": -0.1}, "cfg -0.1 is not allowed: 0 to 100"),
        ({"cfg": 1e6}, "0 to 100"),
        ({"cfg": float("nan")}, "0 to 100"),
        ({"cfg": float("inf")}, "0 to 100"),
        ({"batch": 0}, "batch 0 is not allowed: 1 to 64"),
        ({"batch": 10**6}, "1 to 64"),
        ({"seed": -2}, "seed -2 is not allowed: 0 to 18446744073709551615, or -1 for a random one"),
        ({"seed": 2**64}, "0 to 18446744073709551615"),
        ({"seed": 1.5}, "not a whole number"),
        ({"seed": 2**64 - 1, "batch": 2}, "use a smaller one"),
        ({"prompt": "x" * 100_001}, "prompt has 100001 characters: the limit is 0 to 100000 characters"),
        ({"negative": "x" * 100_001}, "negative has 100001 characters"),
        ({"prompt": "a cat \udcff"}, "a byte that is not UTF-8 at character 7"),
        ({"negative": "\ud800"}, "not UTF-8"),
        ({"prompt": "a\0b"}, "NUL at character 2"),
        ({"prompt": None}, "give text"),
        ({"speed": "aprox"}, "speed 'aprox' is not known: did you mean approx"),
        ({"speed": None}, "speed None is not known: choose one of approx, exact, fp8"),
        ({"sigmas": ()}, "falling"),
        ({"sigmas": (1.0,)}, "falling"),
        ({"sigmas": (1.0, 1.0, 0.0)}, "falling"),
        ({"sigmas": (1.0, 2.0)}, "falling"),
        ({"sigmas": (1.0, -1.0)}, "falling"),
        ({"sigmas": (float("inf"), 1.0)}, "falling"),
        ({"sigmas": (2.0, float("nan"))}, "falling"),
        ({"sigmas": tuple(float(i) for i in range(1001, -1, -1))}, "steps are 1 to 1000"),
        ({"sigmas": (2.0, 0.0), "steps": 20}, "leave one of them out"),
    ],
)
def test_refusals_name_value_limit_and_remedy(change: dict[str, Any], said: str) -> None:
    assert said in refusal(validate, replace(Job(prompt="x"), **change))


@pytest.mark.parametrize("name", ["width", "height", "steps", "cfg", "batch", "seed"])
def test_the_ends_of_every_range_are_allowed(name: str) -> None:
    for end in (LIMITS[name].low, LIMITS[name].high):
        validate(replace(Job(prompt="x"), **{name: end}))


def test_random_seeds_and_absent_values_are_allowed() -> None:
    validate(Job(prompt="x" * 100_000, seed=-1))
    validate(Job(prompt="\U0010ffff\t\n"))
    validate(Job(prompt="x", sigmas=(14.6, 1.0, 0.0), steps=2))


@given(st.integers(-(10**9), 10**9))
def test_nearest_is_legal_and_nearest(value: int) -> None:
    limit = LIMITS["width"]
    nearest = limit.nearest(value)
    assert limit.allows(nearest)
    assert abs(nearest - value) <= max(4, 16 - value, value - 8192)


def test_a_refusal_takes_no_time() -> None:
    start = time.process_time()
    refusal(validate, Job(prompt="(" * 100_000 + "\0"))
    assert time.process_time() - start < 0.1
