"""Two pictures whose making differs in one planted thing: it is named first, and what cannot reach the picture last."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.commands import main
from ldm.compare import pixels
from ldm.compare.effects import Difference, differences
from ldm.compare.sides import Side, side
from ldm.diffusion import profiles
from ldm.metadata import a1111, native
from ldm.options import Job
from ldm.pictures import Marks, save
from tests.metadata.test_native import RECORD

JOB = replace(RECORD.job, prompt="a fox", profile="comfyui", overrides=None, sampler="dpmpp_2m", schedule="karras", sigmas=None)
PLAIN = {"sampler": "dpmpp_2m_sde", "profile": "diffusers"}  # which draws independent noise there
LONG = " ".join(["a fox, red"] * 40)


def picture(path: Path, *, job: Any = None, **facts: Any) -> str:
    """A small picture that says it was made so."""
    made = replace(JOB, **(job or {}))
    record = replace(RECORD, job=made, **{"seed": 7, "index": 0, "vae": None, "stopped_at": None, "model_sha256": None} | facts)
    save(Image.new("RGB", (16, 16)), path, Marks(None, native.write(record)))
    return str(path)


def found(tmp_path: Path, one: dict[str, Any], two: dict[str, Any]) -> list[Difference]:
    tmp_path.mkdir(exist_ok=True)
    return differences(*(side(picture(tmp_path / f"{name}.png", **made)) for name, made in (("a", one), ("b", two))))


def rule(name: str, *values: str, **job: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A pair in which a rule of the profile was planted, or what the profile has and another value."""
    sides = [{"job": {**job, "overrides": {name: value}}} for value in values]
    return "rule clip_skip" if name == "clip_skip" else name, sides[0], sides[1] if len(sides) == 2 else {"job": job}


def job(name: str, one: Any, two: Any, **both: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return name, {"job": {**both, name: one}}, {"job": {**both, name: two}}


def fact(name: str, field: str, one: Any, two: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return name, {field: one}, {field: two}


PLANTED = [
    job("prompt", "a fox", "a cat"),
    job("negative", "dog", "cat"),
    job("width", 512, 520),
    job("steps", 20, 21),
    job("cfg", 5.0, 5.5),
    job("sampler", "euler", "euler_a"),
    job("schedule", "karras", "normal"),
    job("original", (512, 512), (1024, 1024)),
    job("crop", (0, 0), (0, 64)),
    job("watermark", "none", "sdxl"),
    job("speed", "exact", "approx"),
    fact("seed", "seed", 7, 8),
    fact("model", "model", "a.safetensors", "b.safetensors"),
    fact("model", "model_sha256", "1" * 64, "2" * 64),
    fact("vae", "vae", None, "fix.safetensors"),
    fact("dtype", "dtype", "float32", "bfloat16"),
    fact("vae_dtype", "vae_dtype", "bfloat16", "float32"),
    fact("torch", "torch", "2.11.0", "2.15.0"),
    fact("stopped at step", "stopped_at", None, 3),
    rule("rng", "philox"),
    rule("ancestral_rng", "continued", sampler="euler_a"),
    ("ensd", *({"job": {"sampler": "euler_a", "profile": "a1111", "overrides": {"ensd": ensd}}} for ensd in ("31337", "0"))),
    rule("start_noise", "sigma"),
    rule("timestep", "float"),
    rule("alphas", "float32"),
    rule("karras_range", "rounded"),
    rule("spacing", "trailing", schedule="normal"),
    rule("drop_penultimate", "dpmpp_2m"),
    rule("karras_rho", "3"),
    rule("beta", "sigmas", schedule="beta", steps=20),
    rule("kl_optimal", "to-low", schedule="kl_optimal"),
    rule("align_your_steps", "n-then-zero", schedule="align_your_steps"),
    rule("open_grid", "ddim", sampler="ddim", steps=20),
    ("ensd", *({"job": {"sampler": "dpm_fast", "profile": "a1111", "overrides": {"ensd": ensd}}} for ensd in ("31337", "0"))),
    rule("multistep_last", "multistep", sampler="lms"),
    rule("brownian_ends", "log-trip", sampler="dpmpp_sde"),
    rule("chunking", "comma-20", prompt=LONG),
    rule("weighting", "scale-mean", prompt="a (red:1.3) fox"),
    rule("weighting", "scale-mean", prompt_2="a (red:1.3) fox"),
    rule("syntax", "a1111", prompt="a [red] fox"),
    rule("choices", "literal", prompt="a {red|blue} fox"),
    rule("clip_skip", "beyond-2", clip_skip=3),
    job("clip_skip", None, 3),
    job("prompt_2", None, "a cat"),
    job("seed_resize", None, (256, 256)),
    job("subseed_strength", 0.0, 0.2, subseed=5),
    rule("empty_negative", "zeros-if-none"),
    rule("empty_negative", "zeros", negative="dog"),
    rule("empty_negative", "zeros-any", negative="dog", negative_2=""),
    rule("empty_negative", "zeros-any", prompt="", cfg=1.0),
    rule("empty_negative", "zeros-keep-pooled", "zeros-if-empty"),
    rule("empty_negative", "zeros-if-none", cfg=1.0, sampler="euler_cfg_pp"),
    job("negative", None, "", overrides={"empty_negative": "zeros-if-none"}),
    ("ancestral_rng", *({"job": {**PLAIN, "overrides": {"ancestral_rng": name}}} for name in ("continued", "same-seed"))),
    ("ensd", *({"job": {**PLAIN, "overrides": {"ensd": ensd}}} for ensd in ("31337", "0"))),
    rule("start_noise", "sqrt1p", steps=20, schedule="ddim_uniform"),
    rule("size_defaults", "1024"),
    job("clip_skip", 2, 3, profile="forge"),
    job("prompt_2", "a fox", "a cat"),
    job("sampler", "ddim", "euler", profile="diffusers", schedule="karras", sigmas=(14.0, 1.0, 0.0)),
    (
        "brownian",
        {"index": 1, "job": {"sampler": "dpmpp_sde", "overrides": {"brownian": "batch"}}},
        {"index": 1, "job": {"sampler": "dpmpp_sde"}},
    ),
    ("batch_noise", {"index": 1, "job": {"overrides": {"batch_noise": "one-draw"}}}, {"index": 1}),
    rule("batch_noise", "one-draw", sampler="euler_a", batch=2),
    rule("cfg_order", "cond-first"),
    rule("text_cleaning", "ftfy", prompt="a cat\u2019s eye"),
    rule("bigg_exclamation", "pad", prompt_2="hi!"),
]
# What two records have apart and no picture shows.
WITHOUT = [
    rule("empty_negative", "zeros-if-none", negative="dog"),
    rule("empty_negative", "zeros-if-none", negative=""),
    rule("empty_negative", "zeros", cfg=1.0),
    rule("empty_negative", "zeros-if-none", "zeros-if-empty"),
    job("negative", None, ""),
    job("negative", "dog", "cat", cfg=1.0),
    rule("multistep_last", "multistep", sampler="gradient_estimation"),
    rule("multistep_last", "multistep", sampler="euler"),
    rule("start_noise", "sqrt1p"),
    rule("scaled", "dpmpp_2m"),
    ("clip_skip", {"job": {"profile": "a1111", "clip_skip": 2}}, {"job": {"profile": "a1111"}}),
    ("clip_skip", {"job": {"profile": "forge", "clip_skip": 1}}, {"job": {"profile": "forge"}}),
    rule("clip_skip", "at-least-2", clip_skip=3),
    job("prompt_2", None, "a fox"),
    job("negative_2", None, "dog", negative="dog"),
    job("negative_2", None, "cat", negative="dog", cfg=1.0),
    job("seed_resize", None, (128, 128)),
    rule("size_defaults", "1024", width=1024, height=1024),
    rule("size_defaults", "1024", original=(512, 512), target=(512, 512)),
    ("original", {"job": {"original": (128, 128), "target": (128, 128), "overrides": {"size_defaults": "1024"}}}, {"job": {}}),
    job("sampler", "ddim", "euler"),
    rule("brownian", "batch", sampler="dpmpp_sde"),
    ("brownian", {"index": 1, "job": {"overrides": {"brownian": "batch"}}}, {"index": 1}),
    rule("batch_noise", "one-draw"),
    rule("batch_noise", "one-draw", sampler="euler_a", batch=1),
    rule("brownian_ends", "log-trip", sampler="euler"),
    rule("ancestral_rng", "continued"),
    ("ensd", *({"job": {"sampler": "euler", "profile": "a1111", "overrides": {"ensd": ensd}}} for ensd in ("31337", "0"))),
    rule("chunking", "comma-20"),
    rule("weighting", "scale-mean"),
    rule("text_cleaning", "ftfy", prompt="hi!"),
    rule("bigg_exclamation", "pad"),
]


@pytest.mark.parametrize(("cause", "one", "two"), PLANTED, ids=[f"{at} {cause}" for at, (cause, _, _) in enumerate(PLANTED)])
def test_the_planted_cause_is_named_first(cause: str, one: dict[str, Any], two: dict[str, Any], tmp_path: Path) -> None:
    named = found(tmp_path, one, two)
    assert [(each.what, each.effect == "none") for each in named] == [(cause, False)]
    assert named[0].a != named[0].b


@pytest.mark.parametrize(("cause", "one", "two"), WITHOUT, ids=[f"{at} {cause}" for at, (cause, _, _) in enumerate(WITHOUT)])
def test_what_cannot_reach_the_picture_is_no_cause(cause: str, one: dict[str, Any], two: dict[str, Any], tmp_path: Path) -> None:
    assert [each.what for each in found(tmp_path, one, two) if each.effect != "none"] == []


def test_a_cause_among_others_that_cannot_reach_the_picture(tmp_path: Path) -> None:
    """Two profiles apart in nearly every rule: those about stochastic samplers, long prompts and batches are without effect here."""
    named = found(tmp_path, {"job": {"profile": "comfyui"}}, {"job": {"profile": "a1111"}})
    assert named[0].what == "rng"
    without = {each.what for each in named if each.effect == "none"}
    assert {"ancestral_rng", "brownian_ends", "chunking"} <= without
    assert [each.effect == "none" for each in named] == sorted(each.effect == "none" for each in named)
    stochastic = found(tmp_path / "2", *({"job": {"sampler": "euler_a", "profile": name}} for name in ("comfyui", "a1111")))
    assert "ancestral_rng" not in {each.what for each in stochastic if each.effect == "none"}


def test_the_lists_of_sigmas_stand_with_their_cause(tmp_path: Path) -> None:
    (cause,) = found(tmp_path, {"job": {"schedule": "karras", "steps": 20}}, {"job": {"schedule": "exponential", "steps": 20}})
    assert cause.more.startswith("sigmas 14.61464 11.72537 ") and " against 14.61464 10.53631 " in cause.more
    one, two = cause.more.removeprefix("sigmas ").split(" against ")
    assert one != two


def test_one_file_under_two_names_is_no_cause(tmp_path: Path) -> None:
    one, two = ({"model": f"{name}.safetensors", "model_sha256": "a" * 64} for name in ("base", "renamed"))
    assert [(each.what, each.effect) for each in found(tmp_path, one, two)] == [("model", "none")]
    assert found(tmp_path / "2", one, one) == []


def test_pictures_of_two_programs(tmp_path: Path) -> None:
    """A1111's short hash is the beginning of ours; what it does not say is no difference."""
    text = (
        "a fox\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 512x512, "
        "Model hash: aaaaaaaaaa, Model: base, RNG: NV, Version: v1.10.1"
    )
    theirs = tmp_path / "theirs.png"
    save(Image.new("RGB", (16, 16)), theirs, Marks(text, None))
    given = {"steps": 20, "cfg": 5.0, "width": 512, "height": 512, "profile": "a1111", "negative": ""}
    ours = picture(tmp_path / "ours.png", job=given, model="base.safetensors", model_sha256="a" * 64)
    assert side(str(theirs)).program == "a1111"
    assert [each.what for each in differences(side(str(theirs)), side(ours)) if each.what != "version"] == []
    other = picture(tmp_path / "other.png", job=given | {"sampler": "euler"}, model="base.safetensors", model_sha256="a" * 64)
    assert differences(side(str(theirs)), side(other))[0].what == "sampler"


def test_a_job_against_a_picture(tmp_path: Path) -> None:
    made = picture(tmp_path / "a.png", model="ldm-emoji.safetensors")
    plan = tmp_path / "job.json"
    job = {"prompt": "a fox", "steps": JOB.steps, "seed": 7, "sampler": "euler", "width": JOB.width, "height": JOB.height, "cfg": JOB.cfg}
    plan.write_text(json.dumps(job))
    assert differences(side(made), side(str(plan)))[0].what == "sampler"


def test_pictures_that_say_nothing_have_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(bare)
    assert main(["compare", str(bare), str(bare)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["pixels: equal", "what made them is not recorded in both"]


def test_sides_hold_every_rule_and_field() -> None:
    """A field or a rule that comes later is compared, though nobody has said how far it reaches."""
    rules = profiles.load_profile("comfyui")
    one = Side("a", "ldm", JOB, rules)
    for name in profiles.choices():
        other = {"alphas": "float16"}.get(name, "another")
        named = {each.what for each in differences(one, replace(one, rules=replace(rules, **{name: other})))}
        assert name in named or f"rule {name}" in named, name
    unsaved = {"seeds", "size", "ar"}
    for name in set(native.SAVED) - {"sigmas", "overrides", "profile", "batch"} - unsaved:
        known = getattr(JOB, name)
        other = (3, 5) if isinstance(known, tuple) or name in ("target", "original") else 3
        assert name in {each.what for each in differences(one, replace(one, job=replace(JOB, **{name: other})))}, name


def test_pixels_apart(tmp_path: Path) -> None:
    one = np.zeros((100, 200, 3), np.uint8)
    two = one.copy()
    two[70, 130] = (0, 255, 0)
    two[10, 20] = (1, 1, 1)
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path, values in zip(paths, (one, two), strict=True):
        Image.fromarray(values).save(path)
    apart = pixels.apart(*paths)
    assert apart is not None and apart.psnr is not None
    assert (apart.max, apart.box, apart.worst) == (255, (20, 10, 131, 71), (128, 64, 192, 100))
    assert apart.mean == pytest.approx(258 / 60_000) and apart.share == pytest.approx(2 / 20_000)
    assert apart.psnr == pytest.approx(10 * np.log10(255**2 / ((255**2 + 3) / 60_000)))
    same = pixels.apart(paths[0], paths[0])
    assert same is not None and (same.psnr, same.share) == (None, 0)
    Image.fromarray(one[:50]).save(paths[1])
    assert pixels.apart(*paths) is None


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = picture(tmp_path / "a.png", seed=1), picture(tmp_path / "b.png", seed=2, torch="1.0")
    assert main(["compare", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == ["pixels: equal", "1. seed (another picture): 1 | 2", f"2. torch (last bits): {RECORD.torch} | 1.0"]
    assert main(["compare", a, b, "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["what"] for each in said["differences"]] == ["seed", "torch"] and said["pixels"]["psnr"] is None
    assert main(["compare", a, str(tmp_path / "none.png")]) == 2


def test_every_job_of_the_dialect_is_its_own_equal(tmp_path: Path) -> None:
    """Through A1111's text and back, nothing that the text can say differs."""
    made = picture(tmp_path / "a.png", job={"profile": "a1111", "negative": "", "width": 512, "height": 512}, model_sha256="b" * 64)
    record = native.read(_text(made))
    text = a1111.write(a1111.from_record(record, profiles.load_profile("a1111")))
    path = tmp_path / "b.png"
    save(Image.new("RGB", (16, 16)), path, Marks(text.replace("ldm 0.1.0", "v1.10.1"), None))
    assert {each.what for each in differences(side(made), side(str(path)))} <= {"version"}
    assert isinstance(record.job, Job)


def _text(path: str) -> str:
    with Image.open(path) as picture:
        return str(picture.info["ldm"])
