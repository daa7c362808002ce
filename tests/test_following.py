"""Following another engine from the command to the picture's record: profiles, overrides, variation seeds, clip skip, sizes, negatives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm import pictures
from ldm.checks import validate
from ldm.commands import main
from ldm.diffusion import noise, profiles, samplers
from ldm.errors import InputError
from ldm.metadata import a1111, native
from ldm.options import Job, alone
from ldm.resolve import notes_on, resolve
from ldm.runtime.telling import Teller
from ldm.text import conditioning

SMALL = ["-p", "a red apple", "-W", "64", "-H", "64", "--steps", "2", "--no-hash", "-q"]


@pytest.fixture(scope="module")
def pipeline():
    return ldm.load(device="cpu", dtype="float32")


def sample(folder, *words):
    """The pictures of a command, in order: pixels, record, infotext."""
    assert main(["sample", *SMALL, "-o", str(folder), *words]) == 0
    found = []
    for path in sorted(folder.glob("*.png")):
        texts = pictures.read(path).texts
        found.append((np.asarray(Image.open(path)), native.read(texts[native.KEY]), a1111.read(texts[a1111.KEY]), path))
    return found


def test_the_record_has_the_profile_and_every_override(tmp_path):
    words = ["-s", "8", "--sampler", "euler_a", "--profile", "a1111", "--set", "ensd=31337", "--set", "rng=cpu"]
    [(pixels, record, info, path)] = sample(tmp_path / "a", *words)
    assert record.job.profile == "a1111" and dict(record.job.overrides) == {"ensd": "31337", "rng": "cpu"}
    assert info.settings["ENSD"] == "31337" and info.settings["RNG"] == "CPU"
    [(again, second, _, _)] = sample(tmp_path / "b", "--from-image", str(path))
    assert np.array_equal(again, pixels) and second.job == record.job
    [(without, *_)] = sample(tmp_path / "c", *words[:6])
    assert not np.array_equal(without, pixels)


def test_variations_of_a_seed(tmp_path, pipeline):
    """Between two seeds picture k keeps the seed and takes the k-th variation seed, as A1111 counts; each is made alone from its record."""
    words = ["-s", "8", "--subseed", "100", "--subseed-strength", "0.4", "--profile", "a1111"]
    made = sample(tmp_path / "a", *words, "-b", "3", "--seed-resize", "64x96")
    assert [record.seed for _, record, _, _ in made] == [8, 8, 8]
    names = ("Seed", "Variation seed", "Variation seed strength", "Seed resize from")
    shown = [[info.settings[name] for name in names] for *_, info, _ in made]
    assert shown == [["8", str(100 + k), "0.4", "64x96"] for k in range(3)]
    [(again, record, _, _)] = sample(tmp_path / "b", "--from-image", str(made[2][3]))
    assert np.array_equal(again, made[2][0]) and (record.job.seed, record.job.subseed) == (8, 102)
    [(plain, *_)] = sample(tmp_path / "c", "-s", "8", "--profile", "a1111")
    assert len({pixels.tobytes() for pixels in (plain, *(each[0] for each in made))}) == 4


def test_a_variation_seed_alone_does_nothing(tmp_path):
    job, rules = resolve(Job("x", seed=5, subseed=9, batch=2), ldm.models.shapes.load_family("emoji"))
    assert any("--subseed-strength" in note for note in notes_on(job, rules))
    assert [(each.seed, each.subseed) for each in (alone(job, 0), alone(job, 1))] == [(5, 9), (6, 9)]


def test_seeds_that_are_drawn():
    family = ldm.models.shapes.load_family("emoji")
    job, _ = resolve(Job("x", subseed=-1, subseed_strength=0.5), family)
    assert 0 <= job.seed < 2**32 and 0 <= job.subseed < 2**32
    assert alone(Job(seed=-1), 4).seed == -1 and alone(Job(subseed=None, subseed_strength=1.0), 4).subseed is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"subseed": -2}, "subseed -2"),
        ({"subseed": 2**64 - 1, "batch": 2}, "seeds end at"),
        ({"subseed_strength": 1.5}, "0 to 1"),
        ({"subseed_strength": float("nan")}, "0 to 1"),
        ({"subseed_strength": None}, "number"),
        ({"seed_resize": (12, 512)}, "height, width"),
        ({"seed_resize": (512,)}, "two whole numbers"),
        ({"clip_skip": 13}, "0 to 12"),
        ({"clip_skip": True}, "whole number"),
    ],
)
def test_values_out_of_range(values, says):
    with pytest.raises(InputError, match=says):
        validate(Job("x", **values))


# By rule: what is read of CLIP-L and of the others at skip 1, 2 and 4, for the prompt and for the negative.
DEPTHS = {
    "layer": ([(1, 1), (2, 2), (4, 4)], [(1, 1), (2, 2), (4, 4)]),
    "at-least-2": ([(2, 2), (2, 2), (4, 4)], [(2, 2), (2, 2), (4, 4)]),
    "beyond-2": ([(3, 3), (4, 4), (6, 6)], [(3, 3), (4, 4), (6, 6)]),
    "prompt-beyond-2": ([(3, 3), (4, 4), (6, 6)], [(2, 2)] * 3),
    "clip-l": ([(1, 2), (2, 2), (4, 2)], [(1, 2), (2, 2), (4, 2)]),
    "ignored": ([(2, 2)] * 3, [(2, 2)] * 3),
}


def test_what_clip_skip_counts():
    assert set(DEPTHS) == set(profiles.choices()["clip_skip"])
    for rule, both in DEPTHS.items():
        for negative in (False, True):
            assert [conditioning.depths(rule, skip, negative=negative) for skip in (1, 2, 4)] == both[negative], rule
            assert conditioning.depths(rule, None, negative=negative) == conditioning.depths(rule, 0, negative=negative) == (2, 2)
    forge, comfyui, diffusers = (profiles.load_profile(name).clip_skip for name in ("forge", "comfyui", "diffusers"))
    assert conditioning.depths(forge, 3) == conditioning.depths(comfyui, 3) == conditioning.depths(diffusers, 1)


def test_a_layer_that_no_tower_has():
    family = ldm.models.shapes.load_family("emoji")  # 3 layers
    resolve(Job("x", clip_skip=3), family)
    with pytest.raises(InputError, match="clip_skip 2: under profile diffusers it is state 4 from the end"):
        resolve(Job("x", clip_skip=2, profile="diffusers"), family)
    job, rules = resolve(Job("x", clip_skip=9, profile="a1111"), family)
    assert any("no effect" in note for note in notes_on(job, rules))


@torch.no_grad()
def test_the_layer_that_is_read(pipeline):
    ids = torch.tensor([[49406, 320, 736, *[49407] * 74]])
    tower = pipeline.towers[0]
    states = [tower.text_model.embeddings(ids)]
    for layer in tower.text_model.encoder.layers:
        states.append(layer(states[-1]))
    for depth in (1, 2, 3):
        out = tower(ids, depth)
        assert torch.equal(out.penultimate, states[-depth]) and torch.equal(out.last, states[-1])


def conditioned(monkeypatch, pipeline, **values):
    """(prompt, negative) as the sampler gets them."""
    seen = []

    def watch(cond, uncond, x, sigmas, **_):
        seen.append((cond.conds[0], uncond and uncond.conds[0]))
        return x

    monkeypatch.setattr(pipeline, "sample", watch)
    pipeline.run(Job(**{"prompt": "a red apple", "width": 64, "height": 64, "steps": 1, "seed": 1, **values}))
    return seen[-1]


def test_clip_skip_reaches_the_towers(monkeypatch, pipeline):
    plain, forge = (conditioned(monkeypatch, pipeline, profile="forge", clip_skip=skip) for skip in (None, 3))
    same = conditioned(monkeypatch, pipeline, profile="forge", clip_skip=1)
    assert torch.equal(plain[0].context, same[0].context) and not torch.equal(plain[0].context, forge[0].context)
    assert torch.equal(plain[0].vector, forge[0].vector)  # what is pooled is of the last layer
    diffusers = [conditioned(monkeypatch, pipeline, profile="diffusers", negative="blurry", clip_skip=skip) for skip in (None, 1)]
    assert not torch.equal(diffusers[0][0].context, diffusers[1][0].context)
    assert torch.equal(diffusers[0][1].context, diffusers[1][1].context)


@pytest.mark.parametrize(
    ("profile", "original", "target"),
    [("comfyui", 64, 64), ("a1111", 64, 64), ("diffusers", 64, 64), ("sgm", 1024, 64), ("invokeai", 1024, 1024)],
)
def test_sizes_that_are_not_given(profile, original, target):
    job = Job("x", width=64, height=64, profile=profile)
    told = conditioning.sizes_told(job, profiles.load_profile(profile).size_defaults)
    for each in told:
        assert (each["original"], each["crop"], each["target"]) == ((original, original), (0, 0), (target, target))
    given = dataclasses.replace(job, original=(512, 640), target=(32, 48), crop=(1, 2))
    for each in conditioning.sizes_told(given, profiles.load_profile(profile).size_defaults):
        assert (each["original"], each["crop"], each["target"]) == ((512, 640), (1, 2), (32, 48))


# (none given, "", " ", "blurry"): whether the negative is zeros; and whether an empty prompt is.
ZEROS = {
    "comfyui": ([False, False, False, False], False),
    "a1111": ([True, True, False, False], False),
    "forge": ([True, True, False, False], False),
    "diffusers": ([True, False, False, False], False),
    "invokeai": ([True, True, False, False], True),
    "sgm": ([True, True, True, True], False),
}


@pytest.mark.parametrize("profile", ZEROS)
def test_the_empty_negative(monkeypatch, pipeline, profile):
    width = pipeline.family.towers[-1].projection
    negatives, prompt = ZEROS[profile]
    for negative, zeros in zip((None, "", " ", "blurry"), negatives, strict=True):
        cond, uncond = conditioned(monkeypatch, pipeline, profile=profile, negative=negative)
        assert (not uncond.context.any(), not uncond.vector[:, :width].any()) == (zeros, zeros), negative
        assert uncond.vector[:, width:].any() and cond.context.any()
    assert bool(conditioned(monkeypatch, pipeline, profile=profile, prompt="")[0].context.any()) != prompt


def test_each_tower_by_its_own_text(monkeypatch, pipeline):
    """InvokeAI: of an empty prompt beside a second one CLIP-L's part alone is zeros."""
    width, first = pipeline.family.towers[-1].projection, pipeline.family.towers[0].width
    cond, _ = conditioned(monkeypatch, pipeline, profile="invokeai", prompt="", prompt_2="in oils")
    assert not cond.context[..., :first].any() and cond.context[..., first:].any() and cond.vector[:, :width].any()


@pytest.mark.parametrize("profile", ["sgm", "invokeai"])
def test_a_refiner_has_no_zeros(pipeline, profile):
    """A family with an aesthetic score: sgm encodes its negative, InvokeAI leaves empty texts as they are."""
    vector = pipeline.family.towers[-1].projection + 5 * pipeline.family.size_embedding
    unet = dataclasses.replace(pipeline.family.unet, vector_dim=vector)
    family = dataclasses.replace(pipeline.family, numbers=("original", "crop", "aesthetic"), unet=unet)
    job = Job("", None, 64, 64, 1, 4.0, "euler", "normal", (14.0, 0.0), 1, 1, profile)
    for of_it, zeros in ((pipeline.family, True), (family, False)):
        _, away = Teller(pipeline.towers, of_it, profiles.load_profile(profile)).both(job)
        assert away.conds[0].context.any().item() != zeros


def test_zeros_that_keep_what_is_pooled(monkeypatch, pipeline):
    width, rule = pipeline.family.towers[-1].projection, {"empty_negative": "zeros-keep-pooled"}
    for negative, zeros in ((None, True), ("", True), ("blurry", False)):
        _, uncond = conditioned(monkeypatch, pipeline, negative=negative, overrides=rule)
        assert bool(uncond.context.any()) != zeros and uncond.vector[:, :width].any()


def test_the_rows_of_guidance(monkeypatch, pipeline):
    """cond first or uncond first, as the UNet gets them."""
    seen = []
    real = pipeline.unet.prepare

    def watch(context, vector, ts):
        seen.append(context)
        return real(context, vector, ts)

    monkeypatch.setattr(pipeline.unet, "prepare", watch)
    for name in ("comfyui", "a1111"):
        pipeline.generate("a red apple", "blurry", width=64, height=64, steps=1, seed=1, profile=name)
    assert torch.equal(seen[0][:1], seen[1][1:]) and torch.equal(seen[0][1:], seen[1][:1])


def test_a1111s_ddim(pipeline):
    """Its own grid, whatever the schedule: 20 steps are 19 evaluations, 30 are 30; the last x is left at its noise, scaled."""
    job, rules = resolve(Job("x", sampler="ddim", steps=20, profile="a1111"), pipeline.family)
    table = ldm.diffusion.schedules.SigmaTable(rules.alphas)
    assert list(job.sigmas) == [float(table.sigmas[t]) for t in range(951, 0, -50)]
    assert len(resolve(Job("x", sampler="ddim", steps=30, profile="a1111"), pipeline.family)[0].sigmas) == 31
    result = pipeline.generate("a red apple", width=64, height=64, steps=20, sampler="ddim", seed=3, profile="a1111")
    assert result.job.steps == 20 and len(result.job.sigmas) == 20
    again = pipeline.run(result.job)
    assert torch.equal(again.latents, result.latents)
    with pytest.raises(InputError, match="take 2 or more"):
        resolve(Job("x", sampler="ddim", steps=1, profile="a1111"), pipeline.family)


@torch.no_grad()
def test_a_run_taken_up_again(pipeline):
    """Latents after k steps, sampled on along the rest of the list with the rest of the noise, end where the whole run ends."""
    rules = profiles.load_profile("comfyui")
    kept = []
    job = Job("a red apple", width=64, height=64, steps=5, seed=6, sampler="euler_a")
    result = pipeline.run(job, lambda step: kept.append(step.x) or True)
    levels = result.job.sigmas
    random = noise.make_noise(rules, [6], (4, 8, 8), levels, samplers.get("euler_a", rules))
    cond, uncond = (pipeline.encode(text, size=(64, 64)) for text in ("a red apple", ""))
    z = pipeline.sample(cond, uncond, kept[1], levels[2:], sampler="euler_a", cfg=result.job.cfg, noise=random.after(2), schedule="karras")
    assert float((z - result.latents).abs().max()) <= 1e-6
