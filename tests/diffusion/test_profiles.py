"""Profiles: complete files, near matches, values from text, no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from ldm import resources
from ldm.diffusion.profiles import choices, load_profile, names, override
from ldm.errors import InputError

ROOT = Path(__file__).parents[2]
WHOLE = ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "unipc", "unipc_bh2", "deis", "sa_solver")
# Rule by rule, in the order of ENGINES; the sources are in docs/parity.md.
ENGINES = ("comfyui", "a1111", "forge", "diffusers", "invokeai", "sgm")
_NV, _CPU = "philox", "cpu"
_DPM2, _LOW = ("dpm2", "dpm2_a"), ("ddim", "deis", "sa_solver")
_SCALED = (*WHOLE, "ddim", "ipndm", "lcm", "tcd")
_OWN_TIMES, _OWN_GRID = ("unipc", "unipc_bh2", "lcm"), ("lcm", "tcd", "ipndm", "ipndm_v")
RULES = {
    "alphas": ("float64", "float32", "float64", "float32-betas", "float32-betas", "float64"),
    "karras_range": ("model", "model", "model", "spaced", "spaced", "rounded"),
    "spacing": ("linspace-log", "linspace-log", "linspace-log", "leading", "leading", "legacy"),
    "whole_steps": ((), (), (), WHOLE, WHOLE, ()),
    "timestep": ("nearest-log", "float", "nearest-log", "by-list", "by-list", "nearest-snap"),
    "start_noise": ("sqrt1p-if-full", "sigma", "sigma", "by-spacing", "by-spacing", "sqrt1p"),
    "rng": (_CPU, _NV, _NV, _CPU, _CPU, _CPU),
    "batch_noise": ("per-image", "per-image", "per-image", "per-image", "per-image", "one-draw"),
    "ancestral_rng": ("same-seed", "continued", "continued", "continued", "flipped", "continued"),
    "ensd": (0, 0, 0, 0, 0, 0),
    "brownian": ("per-image", "per-image", "per-image", "per-image", "per-image", "batch"),
    "brownian_ends": ("exact", "log-trip", "log-trip", "log-trip", "log-trip", "exact"),
    "plain_noise": ((), (), (), WHOLE[1:3], WHOLE[1:3], ()),
    "open_grid": ((), ("ddim",), ("ddim",), (), (), ()),
    "multistep_last": ("denoised", "multistep", "multistep", "multistep", "multistep", "multistep"),
    "cfg_order": ("uncond-first", "cond-first", "cond-first", "uncond-first", "uncond-first", "uncond-first"),
    "chunking": ("plain", "comma-20", "comma-20", "cut", "plain", "cut"),
    "empty_negative": ("encode", "zeros-if-empty", "zeros-if-empty", "zeros-if-none", "zeros-any", "zeros"),
    "clip_skip": ("layer", "ignored", "at-least-2", "prompt-beyond-2", "beyond-2", "ignored"),
    "size_defaults": ("picture", "picture", "picture", "picture", "1024", "original-1024"),
    "karras_rho": (7, 7, 7, 7, 7, 3),
    "ends_low": ((), (), (), _LOW, _LOW, ()),
    "beta": ("timesteps", "sigmas", "sigmas", "sigmas", "sigmas", "timesteps"),
    "kl_optimal": ("to-zero", "to-low", "to-low", "to-zero", "to-zero", "to-zero"),
    "align_your_steps": ("last-to-zero", "n-then-zero", "n-then-zero", "n-then-zero", "n-then-zero", "last-to-zero"),
    "scaled": ((), ("ddim", "unipc"), ("ddim", "unipc"), _SCALED, _SCALED, ()),
    "drop_penultimate": ((*_DPM2, "unipc", "unipc_bh2"), (*_DPM2, "dpmpp_3m_sde"), (*_DPM2, "dpmpp_3m_sde"), (), (), ()),
    "multistep_orders": ("third", "third", "third", "second", "second", "third"),
    "singlestep_noise": ("none", "ancestral", "ancestral", "none", "none", "none"),
    "syntax": ("comfyui", "a1111", "a1111", "none", "none", "none"),
    "text_cleaning": ("none", "ftfy", "ftfy", "none", "none", "ftfy"),
    "bigg_exclamation": ("token", "token", "pad", "pad", "pad", "token"),
    "weighting": ("interpolate-empty", "scale-mean", "scale-mean", "none", "none", "none"),
    "choices": ("by-seed", "by-seed", "by-seed", "literal", "literal", "literal"),
    "unfollowed": ((), _OWN_TIMES, _OWN_TIMES, _OWN_GRID, _OWN_GRID, ()),
}


def test_no_rule_is_left_out():
    assert set(RULES) == set(choices())


@pytest.mark.parametrize(("at", "name"), enumerate(ENGINES))
def test_every_rule_of_a_profile(at, name):
    profile = load_profile(name)
    assert {field: getattr(profile, field) for field in RULES} == {field: values[at] for field, values in RULES.items()}


def test_every_profile_is_here():
    assert set(names()) == set(ENGINES)


def test_samplers_in_profiles_are_in_the_table():
    from ldm.diffusion.samplers import SAMPLERS

    for name in names():
        for field, value in asdict(load_profile(name)).items():
            assert not isinstance(value, tuple) or set(value) <= set(SAMPLERS), (name, field)


def test_every_field_is_read_and_no_engine_is_named():
    """A rule is a value that a stage reads: no stage asks which engine it follows."""
    code = {path: path.read_text() for path in (ROOT / "ldm").rglob("*.py") if path.name != "profiles.py"}
    assert [field for field in choices() if not re.search(rf"\.{field}\b", "".join(code.values()))] == []
    asked = re.compile(r"(?:profile|rules)(?:\.name)? (?:==|!=|in|not in) [\"(\[{]")
    stages = {path: text for path, text in code.items() if not {"jobs", "metadata", "compare"} & set(path.parts)}  # they read others' files
    assert [str(path) for path, text in stages.items() if asked.search(text)] == []


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
        ({"ensd": str(2**63)}, "from -9223372036854775808 to 9"),
        ({"karras_rho": "0"}, "from 1 to 100"),
        ({"drop_penultimate": "dpm3"}, "did you mean"),
        ({"name": "mine"}, "unknown profile field 'name'"),
    ],
)
def test_override_names_the_remedy(values, says):
    with pytest.raises(InputError, match=says):
        override(load_profile("comfyui"), values)


def test_an_unknown_profile_has_near_matches():
    with pytest.raises(InputError, match="did you mean comfyui"):
        load_profile("comfy")


def test_a_profile_is_found_in_any_case():
    assert load_profile("A1111") == load_profile("a1111")


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
