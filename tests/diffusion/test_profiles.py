"""Profiles: complete files, near matches, values from text, no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict

import pytest

from ldm import resources
from ldm.diffusion.profiles import choices, load_profile, names, override
from ldm.errors import InputError

COMFYUI = {
    "name": "comfyui",
    "alphas": "float64",
    "karras_range": "model",
    "spacing": "linspace-log",
    "timestep": "nearest-log",
    "start_noise": "sqrt1p-if-full",
    "rng": "cpu",
    "batch_noise": "per-image",
    "ancestral_rng": "same-seed",
    "ensd": 0,
    "brownian": "per-image",
    "brownian_ends": "exact",
    "drop_penultimate": ("dpm2", "dpm2_a", "unipc"),
    "multistep_last": "denoised",
    "cfg_order": "uncond-first",
    "chunking": "plain",
    "unfollowed": (),
    "empty_negative": "encode",
}
A1111 = {
    "name": "a1111",
    "alphas": "float32",
    "karras_range": "model",
    "spacing": "linspace-log",
    "timestep": "float",
    "start_noise": "sigma",
    "rng": "philox",
    "batch_noise": "per-image",
    "ancestral_rng": "continued",
    "ensd": 0,
    "brownian": "per-image",
    "brownian_ends": "log-trip",
    "drop_penultimate": ("dpm2", "dpm2_a", "dpmpp_3m_sde"),
    "multistep_last": "multistep",
    "cfg_order": "cond-first",
    "chunking": "comma-20",
    "unfollowed": ("ddim",),
    "empty_negative": "zeros-if-empty",
}


@pytest.mark.parametrize("values", [COMFYUI, A1111], ids=lambda values: values["name"])
def test_every_rule_of_a_profile(values):
    assert asdict(load_profile(values["name"])) == values


def test_every_profile_is_here():
    assert set(names()) == {"comfyui", "a1111"}


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
