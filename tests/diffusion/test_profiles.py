"""Profiles: complete files, near matches, values from text, no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from ldm import resources
from ldm.diffusion.profiles import choices, load_profile, names, override
from ldm.errors import InputError


def test_the_two_profiles_differ_where_the_engines_do():
    comfyui, a1111 = load_profile("comfyui"), load_profile("a1111")
    assert {"comfyui", "a1111"} <= set(names())
    assert (comfyui.alphas, comfyui.timestep, comfyui.start_noise, comfyui.rng) == ("float64", "nearest-log", "sqrt1p-if-full", "cpu")
    assert (a1111.alphas, a1111.timestep, a1111.start_noise, a1111.rng) == ("float32", "float", "sigma", "philox")
    assert (comfyui.ancestral_rng, a1111.ancestral_rng) == ("same-seed", "continued")
    assert (comfyui.cfg_order, a1111.cfg_order) == ("uncond-first", "cond-first")
    assert "dpmpp_3m_sde" in a1111.drop_penultimate and "dpmpp_3m_sde" not in comfyui.drop_penultimate
    assert comfyui.batch_noise == comfyui.brownian == "per-image"


def test_a_profile_is_frozen():
    with pytest.raises(FrozenInstanceError):
        load_profile("comfyui").rng = "philox"  # type: ignore[misc]


def test_override_takes_text():
    profile = override(load_profile("a1111"), {"ensd": "31337", "rng": "cpu", "drop_penultimate": "dpm2, unipc"})
    assert (profile.ensd, profile.rng, profile.drop_penultimate) == (31337, "cpu", ("dpm2", "unipc"))
    assert override(profile, {"drop_penultimate": ""}).drop_penultimate == ()
    assert load_profile("a1111").ensd == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"timstep": "float"}, "did you mean timestep"),
        ({"timestep": "nearest"}, "did you mean nearest-"),
        ({"rng": "gpu"}, "cpu"),
        ({"ensd": "many"}, "whole number"),
        ({"ensd": "-1"}, "0 to 2"),
        ({"name": "mine"}, "unknown profile field 'name'"),
    ],
)
def test_override_names_the_remedy(values, says):
    with pytest.raises(InputError, match=says):
        override(load_profile("comfyui"), values)


def test_an_unknown_profile_has_near_matches():
    with pytest.raises(InputError, match="did you mean comfyui"):
        load_profile("comfy")


@pytest.mark.parametrize(("line", "says"), [("rngs = 'cpu'", "unknown profile field 'rngs'"), ("", "lacks rng")])
def test_a_profile_file_has_every_key_and_no_other(tmp_path, monkeypatch, line, says):
    text = (resources.configs() / "profiles" / "comfyui.toml").read_text()
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.toml").write_text(text.replace('rng = "cpu"', line, 1) if not line else text + line)
    monkeypatch.setattr(resources, "configs", lambda: tmp_path)
    with pytest.raises(InputError, match=says):
        load_profile("mine")


def test_choices_list_every_field():
    assert choices()["rng"] == ("cpu", "philox")
    assert choices()["drop_penultimate"] == choices()["ensd"] == ()
    assert "name" not in choices()


def test_profiles_need_no_torch():
    code = "import sys; import ldm.diffusion.profiles as p; p.load_profile('a1111'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
