"""Layers of a job: who wins, what is refused, what a spelling unfolds to."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from ldm import resources
from ldm.errors import InputError
from ldm.flags import given, parser
from ldm.layers import layered, params, preset, table
from ldm.options import KNOBS, Job


def job(*words: str, picture: dict[str, Any] | None = None) -> Job:
    return layered(given(parser("ldm sample", ""), words if "-p" in words or picture is not None else ("-p", "x", *words)), picture)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(name: str, **values: Any) -> str:
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_flags_go_before_the_picture_before_params_before_a_preset(config: Any) -> None:
    said = config("job.json", prompt="params", steps=20, cfg=6, negative="params")
    words = ["--params", said, "--preset", "draft"]
    assert job(*words).sampler == "dpmpp_2m"  # the preset alone says it
    assert (job(*words).steps, job(*words).cfg) == (20, 6)
    made = job(*words, "--cfg", "7", picture={"prompt": "picture", "steps": 30})
    assert (made.prompt, made.steps, made.cfg, made.negative) == ("picture", 30, 7.0, "params")


def test_the_spellings_of_a_size_replace_each_other_between_layers_and_exclude_each_other_within_one(config: Any) -> None:
    assert (job("--size", "1216x832").width, job("--size", "1216x832").height) == (1216, 832)
    said = config("job.json", size="640x512")
    assert (job("--params", said).width, job("--params", said).height) == (640, 512)
    assert (job("--params", said, "-W", "512").width, job("--params", said, "-W", "512").height) == (512, 512)
    wide = job("--params", said, "--ar", "3:2")
    assert (wide.width, wide.height, wide.ar) == (None, None, 1.5)
    assert job("--params", config("ar.json", ar="16:9"), "-W", "640").ar is None
    with pytest.raises(InputError, match="has both size and width: leave one"):
        job("--size", "640x512", "-W", "640")
    with pytest.raises(InputError, match="has both ar and size"):
        table({"ar": 1.5, "size": [512, 640]}, "x.json")


def test_a_list_of_seeds_is_a_list_of_pictures() -> None:
    assert (job("-s", "7").seed, job("-s", "7").seeds) == (7, None)
    assert job("-s", "1,2,5-9").seeds == (1, 2, 5, 6, 7, 8, 9)
    assert job("-s", "-1").seed == -1
    with pytest.raises(InputError, match="seeds and batch"):
        job("-s", "1,2", "-b", "2")


def test_sigmas_of_a_picture_give_way_to_what_decides_them(config: Any) -> None:
    picture = {"prompt": "x", "sigmas": (14.0, 1.0, 0.0), "steps": 2, "schedule": None}
    assert job(picture=picture).sigmas == (14.0, 1.0, 0.0)
    assert job("--steps", "3", picture=picture).sigmas is None
    assert job("--sampler", "euler", picture=picture).sigmas == (14.0, 1.0, 0.0)
    assert job("--sigmas", "5,1,0", picture={"prompt": "x", "steps": 30}).steps is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not an object"),
        ("{", "not a JSON object"),
        ('{"stps": 3}', "unknown name 'stps': did you mean steps"),
        ('{"params": "x"}', "unknown name 'params'"),
        ('{"steps": "many"}', "steps 'many' is not acceptable: give a whole number"),
        ('{"steps": 1.5}', "steps 1.5 is not acceptable"),
        ('{"steps": true}', "steps True is not acceptable"),
        ('{"prompt": 3}', "prompt 3 is not acceptable"),
        ('{"steps": 1, "steps": 2}', "stands twice"),
        ('{"cfg": NaN}', "NaN is not a number"),
        ('{"crop": [1, 2, 3]}', "crop"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_what_is_no_job_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        params(str(tmp_path / "job.json"))
    assert "\n" not in str(caught.value)


def test_params_come_from_stdin_and_files_that_cannot_be_read_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'\xef\xbb\xbf{"prompt": "x", "crop": [0, 16]}')))
    assert params("-") == {"prompt": "x", "crop": (0, 16)}
    (tmp_path / "latin.json").write_bytes(b'{"prompt": "\xe9"}')
    for name, said in (("none.json", "No such file"), ("latin.json", "byte 12 is not UTF-8"), (".", "Is a directory")):
        with pytest.raises(InputError, match=said):
            params(str(tmp_path / name))


def test_presets_by_name_and_by_file(tmp_path: Path) -> None:
    for name in resources.names("presets"):
        assert Job(**preset(name)) != Job()
    (tmp_path / "mine.toml").write_text('steps = 3\nsize = "640x512"\n')
    assert preset(str(tmp_path / "mine.toml")) == {"steps": 3, "width": 640, "height": 512}
    with pytest.raises(InputError, match="unknown preset 'drft': did you mean draft"):
        preset("drft")


@examples(
    st.dictionaries(
        st.sampled_from(sorted(KNOBS)) | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        max_size=4,
    )
)
def test_any_table_is_a_layer_or_one_line(values: dict[str, Any]) -> None:
    try:
        assert set(table(values, "x")) <= {*KNOBS}
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_a_flag_goes_before_every_spelling_of_its_thing_below(config: Any) -> None:
    several = config("seeds.json", seed="1,2,3")
    assert (job("--params", several, "-s", "5").seed, job("--params", several, "-s", "5").seeds) == (5, None)
    assert (job("--params", config("b.json", batch=4), "-s", "1,2").batch, job("-s", "1,2").seeds) == (1, (1, 2))
    assert job("--params", config("l.json", sigmas=[14, 5, 0]), "-m", "x").sigmas == (14.0, 5.0, 0.0)
    rules = config("o.json", overrides={"rng": "cpu", "ensd": "1"})
    assert job("--params", rules, "--set", "ensd=2").overrides == {"rng": "cpu", "ensd": "2"}
