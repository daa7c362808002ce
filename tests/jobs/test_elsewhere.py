"""Pictures of other programs become jobs: their settings by our names, the profile that follows them, and what is left out said."""

from __future__ import annotations

import json
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.jobs import elsewhere
from ldm.layers import layered, picture_layer
from ldm.metadata import foreign
from ldm.metadata.a1111 import Infotext
from ldm.metadata.foreign import Reading
from ldm.models.shapes import load_family
from ldm.options import Job
from ldm.pictures import Marks, save
from ldm.resolve import resolve
from tests.metadata.strangers import STRANGERS, Stranger, graph, sampler

LINE = "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, Model hash: 31e35c80fc, Model: xl/base"


def read(parameters: str) -> tuple[elsewhere.Layer, list[str]]:
    return elsewhere.layer(foreign.read({"parameters": parameters}))


def test_lines_of_a1111() -> None:
    layer, notes = read(f"a fox\nNegative prompt: dog\n{LINE}, VAE: fix.safetensors, RNG: CPU, Version: v1.10.1")
    assert layer == {
        "prompt": "a fox",
        "negative": "dog",
        "batch": 1,
        "profile": "a1111",
        "steps": 30,
        "seed": 5,
        "cfg": 7.0,
        "width": 512,
        "height": 768,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "model": "base",
        "vae": "fix.safetensors",
        "overrides": {"rng": "cpu"},
    }
    assert notes == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Steps: 9, Sampler: DPM++ 2M Karras, Seed: 1, Size: 64x64", {"sampler": "dpmpp_2m", "schedule": "karras"}),
        ("Steps: 9, Sampler: DPM++ SDE, Seed: 1, Size: 64x64", {"sampler": "dpmpp_sde", "schedule": "karras"}),
        ("Steps: 9, Sampler: DPM++ 2M SDE, Schedule type: Automatic, Seed: 1, Size: 64x64", {"schedule": "exponential"}),
        ("Steps: 9, Sampler: Euler a, Seed: 1, Size: 64x64", {"sampler": "euler_a", "schedule": "normal"}),
        ("Steps: 9, Sampler: Euler a, Seed: 1, ENSD: 31337", {"overrides": {"ensd": "31337"}}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Version: v1.7.0", {"overrides": {"alphas": "float16"}}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Downcast alphas_cumprod: True, Version: v1.9.0", {"overrides": {"alphas": "float16"}}),
        ("Steps: 9, Sampler: Euler, Seed: 1, SGM noise multiplier: True", {"overrides": {"start_noise": "sqrt1p"}}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Version: f2.0.1v1.10.1-previous-659", {"profile": "forge"}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Version: stable-diffusion.cpp", {"profile": "a1111"}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Version: Fooocus v2.5.5", {"profile": "comfyui"}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Version: ComfyUI", {"profile": "comfyui"}),
        ("Steps: 9, Sampler: Euler, Seed: 1, Version: ComfyUi", {"profile": "comfyui"}),
        ("Steps: 9, Sampler: DPM++ 2M, Seed: 1, Version: f0.0.17v1.8.0rc-latest-276", {"profile": "forge", "schedule": "normal"}),
        ("Steps: 9, Sampler: DPM++ 2M, Seed: 1, Version: f2.0.1v1.10.1-previous-659", {"profile": "forge", "schedule": "karras"}),
        ("Steps: 9, Sampler: Euler, Seed: 1, RNG: cuda, Version: stable-diffusion.cpp", {"overrides": {"rng": "philox"}}),
        ("Steps: 9, Sampler: Euler, Seed: 1, RNG: cpu, Version: stable-diffusion.cpp", {"overrides": {"rng": "cpu"}}),
    ],
)
def test_what_a_line_means(line: str, expected: dict[str, Any]) -> None:
    layer, _ = read(f"a fox\n{line}")
    assert {name: layer.get(name) for name in expected} == expected


def test_braces_of_a_saved_prompt_are_no_choice_any_more() -> None:
    layer, _ = read(f"a {{red|blue}} fox\n{LINE}")
    assert layer["overrides"]["choices"] == "literal"


def test_what_cannot_be_followed_is_said() -> None:
    _, notes = read(f"a fox\n{LINE}, Denoising strength: 0.4, Hires upscale: 2, FreeU Stages: 1, Version: v1.9.0")
    assert len(notes) == 3
    assert "graphics card's generator" in notes[0] and "another picture" in notes[1]
    assert "Hires upscale 2, FreeU Stages 1" in notes[2]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("Seed: 1e9", "Seed is '1e9', which is not a whole number"),
        ("Seed: " + "9" * 5000, "Seed is '9999"),
        ("CFG scale: nan", "CFG scale is 'nan', which is not a number"),
        ("Size: 1024", "Size is '1024', which is not two whole numbers"),
        ("Denoising strength: inf", "Denoising strength is 'inf'"),
        ("Sampler: Euler b", "unknown sampler 'Euler b': did you mean"),
        ("Schedule type: kuras", "unknown schedule 'kuras'"),
    ],
)
def test_values_that_make_no_sense(pair: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(f"a fox\nSteps: 9, App: x, Sampler: Euler, {pair}")
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_graph_of_comfyui() -> None:
    graph_ = graph(**{"3": sampler(sampler_name="dpmpp_2m_sde_gpu", scheduler="karras", cfg=5.5, denoise=1)})
    layer, notes = elsewhere.layer(foreign.read({"prompt": json.dumps(graph_)}))
    assert (layer["profile"], layer["sampler"], layer["schedule"], layer["cfg"]) == ("comfyui", "dpmpp_2m_sde", "karras", 5.5)
    assert (layer["width"], layer["height"], layer["model"]) == (1024, 768, "sd_xl_base_1.0.safetensors")
    assert notes == []


def test_a_graph_with_two_texts_sizes_and_a_negative_of_zeros() -> None:
    (texts,) = (each.texts for each in STRANGERS if "SDXL's sizes" in each.name)
    layer, notes = elsewhere.layer(foreign.read(texts))
    assert (layer["clip_skip"], layer["original"], layer["crop"], layer["target"]) == (3, (1024, 2048), (8, 64), (256, 512))
    assert layer["overrides"] == {"empty_negative": "zeros"} and not layer.get("negative")
    assert "Steps run 0 to 12" in notes[-1]
    (texts,) = (each.texts for each in STRANGERS if "SDXL's node" in each.name)
    layer, _ = elsewhere.layer(foreign.read(texts))
    assert (layer["prompt"], layer["prompt_2"]) == ("small", "big")
    with pytest.raises(InputError, match="no settings that are understood"):
        elsewhere.layer(foreign.read(next(each.texts for each in STRANGERS if "put together" in each.name)))


def test_a1111_before_it_had_schedules_apart() -> None:
    for name, schedule in (("DPM++ 2M", "normal"), ("DPM++ 3M SDE", "normal"), ("Restart", "karras"), ("DPM++ 2M Karras", "karras")):
        layer, _ = read(f"a fox\nSteps: 9, Sampler: {name}, Seed: 1, Version: v1.6.0")
        assert layer["schedule"] == schedule


def test_invokeai_and_novelai_and_fooocus() -> None:
    invoke = {"positive_prompt": "a fox", "steps": 30, "scheduler": "dpmpp_2m_k", "cfg_scale": 7.5, "seed": 3}
    layer, _ = elsewhere.layer(foreign.read({"invokeai_metadata": json.dumps(invoke)}))
    assert (layer["profile"], layer["sampler"], layer["schedule"]) == ("invokeai", "dpmpp_2m", "karras")
    novel = {"prompt": "a fox", "steps": 28, "sampler": "k_euler_ancestral", "noise_schedule": "native", "scale": 5, "seed": 3, "uc": "dog"}
    layer, notes = elsewhere.layer(foreign.read({"Software": "NovelAI", "Comment": json.dumps(novel)}))
    assert (layer["sampler"], layer["schedule"], layer["negative"]) == ("euler_a", "normal", "dog")
    assert "not public" in notes[0]
    fooocus = {"prompt": "a fox", "steps": 30, "resolution": "(1152, 896)", "guidance_scale": 4, "sampler": "dpmpp_2m_sde_gpu"}
    fooocus |= {"scheduler": "karras", "seed": "77", "base_model": "juggernautXL", "styles": "['Fooocus V2']", "version": "Fooocus v2.5.5"}
    layer, notes = elsewhere.layer(foreign.read({"parameters": json.dumps(fooocus), "fooocus_scheme": "fooocus"}))
    assert (layer["width"], layer["height"], layer["seed"], layer["model"], layer["cfg"]) == (1152, 896, 77, "juggernautXL", 4.0)
    assert "Styles ['Fooocus V2']" in notes[-1]


def test_the_profile_of_every_engine() -> None:
    like = {"fooocus": "comfyui", "swarmui": "comfyui", "novelai": "a1111", "sd.cpp": "a1111"}
    own = {name: name for name in ("a1111", "forge", "comfyui", "invokeai")}
    assert {name: engine.profile for name, engine in elsewhere.ENGINES.items()} == own | like
    for dialect, profile in (own | like).items():
        assert elsewhere.layer(Reading(dialect, Infotext("a fox")))[0]["profile"] == profile


def swarm(**said: Any) -> tuple[elsewhere.Layer, list[str]]:
    return read(json.dumps({"sui_image_params": {"prompt": "a fox", "sampler": "euler", "scheduler": "normal", **said}}))


def invoke(**said: Any) -> tuple[elsewhere.Layer, list[str]]:
    said = {"positive_prompt": "a fox", "seed": 1, "scheduler": "euler", "rand_device": "cpu", **said}
    return elsewhere.layer(foreign.read({"invokeai_metadata": json.dumps(said)}))


def novel(**said: Any) -> tuple[elsewhere.Layer, list[str]]:
    said = {"prompt": "a fox", "steps": 9, "sampler": "k_euler", **said}
    return elsewhere.layer(foreign.read({"Software": "NovelAI", "Comment": json.dumps(said)}))


def fooocus(**said: Any) -> tuple[elsewhere.Layer, list[str]]:
    said = {"prompt": "a fox", "sampler": "euler", "scheduler": "karras", **said}
    return elsewhere.layer(foreign.read({"parameters": json.dumps(said), "fooocus_scheme": "fooocus"}))


LORA = {"model": {"key": "9f", "name": "ink"}, "weight": 0.5}


@pytest.mark.parametrize(
    ("program", "said", "words"),
    [
        (swarm, {"loras": ["ink"], "loraweights": ["0.5"], "refinermodel": "xl"}, "loras ink, loraweights 0.5, refinermodel xl"),
        (swarm, {"refinercontrolpercentage": 0.2, "freeu": True, "tomorrow": [{"a": 1}]}, "centage 0.2, freeu True, tomorrow given"),
        (swarm, {"a\nb": "c"}, "a\nb c"),
        (invoke, {"loras": [LORA], "refiner_model": {"name": "xl_refiner"}}, "loras ink, refiner_model xl_refiner"),
        (invoke, {"cfg_rescale_multiplier": 0.7, "seamless_x": True}, "cfg_rescale_multiplier 0.7, seamless_x True"),
        (invoke, {"rand_device": "mps", "generation_mode": "sdxl_inpaint"}, "rand_device mps, generation_mode sdxl_inpaint"),
        (novel, {"cfg_rescale": 0.2, "sm": True, "sm_dyn": True}, "cfg_rescale 0.2, sm True, sm_dyn True"),
        (novel, {"dynamic_thresholding": True, "dynamic_thresholding_mimic_scale": 10.0}, "thresholding True, dynamic_thresholding_mimic"),
        (fooocus, {"loras": [["ink", 0.5, "9f"]], "adm_guidance": "(1.5, 0.8, 0.3)"}, "loras ink, adm_guidance (1.5, 0.8, 0.3)"),
        (
            fooocus,
            {"refiner": "xl", "refiner_switch": 0.5, "lora_combined_1": "ink : 0.5"},
            "xl, refiner_switch 0.5, lora_combined_1 ink : 0.5",
        ),
    ],
)
def test_every_setting_of_theirs_is_followed_or_said(program: Any, said: dict[str, Any], words: str) -> None:
    (note,) = [note for note in program(**said)[1] if note.startswith("left out")]
    assert words in note


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (swarm, {"images": 4, "aspectratio": "1:1", "automaticvae": True, "loras": [], "variationseed": 5, "swarm_version": "0.9"}),
        (swarm, {"freeu": False, "personalnote": "mine", "refinersteps": 0, "seamlesstileable": None}),
        (invoke, {"generation_mode": "sdxl_txt2img", "vae": None, "loras": [], "seamless_x": False, "cfg_rescale_multiplier": 0}),
        (
            novel,
            {"sm": False, "n_samples": 1, "dynamic_thresholding": False, "dynamic_thresholding_percentile": 0.999, "uncond_scale": 0.0},
        ),
        (
            novel,
            {"cfg_rescale": 0.0, "request_type": "PromptGenerateRequest", "signed_hash": "x", "controlnet_strength": 1.0, "version": 1},
        ),
        (fooocus, {"loras": [], "refiner": "None", "refiner_switch": 0.5, "performance": "Speed", "metadata_scheme": "fooocus"}),
    ],
)
def test_what_says_nothing_is_not_said(program: Any, said: dict[str, Any]) -> None:
    assert not [note for note in program(**said)[1] if note.startswith("left out")]


def test_a_note_that_is_too_long_says_how_much_more() -> None:
    _, notes = swarm(**{f"knob{at}": at + 1 for at in range(20)})
    assert "knob11 12 and 8 more" in notes[-1] and "knob12" not in notes[-1]


def test_swarmuis_variation_and_layer_are_followed() -> None:
    layer, notes = swarm(variationseed=8, variationseedstrength=0.25, clipstopatlayer=-2, initimagecreativity=0.6)
    assert (layer["subseed"], layer["subseed_strength"], layer["clip_skip"]) == (8, 0.25, 2)
    assert notes == ["it was made from another picture, or enlarged: what is made here begins with noise alone"]


def test_swarmui_without_a_sampler_is_its_default() -> None:
    layer, notes = read(json.dumps({"sui_image_params": {"prompt": "a fox", "seed": 1}}))
    assert (layer["sampler"], layer["schedule"]) == ("euler", "normal")
    assert "SwarmUI's default, which is taken here: Sampler is euler, Schedule type is normal" in notes[0]
    layer, notes = read(json.dumps({"sui_image_params": {"prompt": "a fox", "sampler": "heun"}}))
    assert (layer["sampler"], layer["schedule"]) == ("heun", "normal") and notes[0].endswith("here: Schedule type is normal")
    assert swarm()[1] == []


@pytest.mark.parametrize(("vae", "expected"), [("Default (model)", None), ("None", None), ("fix.safetensors", "fix.safetensors")])
def test_fooocus_own_word_for_no_vae(vae: str, expected: str | None) -> None:
    assert fooocus(vae=vae)[0].get("vae") == expected


def test_which_of_a_batch_is_not_known() -> None:
    latents = {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 4}}
    layer, notes = elsewhere.layer(foreign.read({"prompt": json.dumps(graph(**{"5": latents}))}))
    assert layer["batch"] == 1 and notes == ["it is one of a batch of 4, and which one is not said: the first is made"]
    assert swarm(batchsize=2)[1] == ["it is one of a batch of 2, and which one is not said: the first is made"]
    assert read(f"a fox\n{LINE}, Batch size: 4, RNG: NV, Version: v1.10.1")[1] == []  # a seed of its own for each


@pytest.mark.parametrize("ensd", ["-5", "31337"])
def test_a_delta_of_the_seed_makes_a_job(ensd: str) -> None:
    layer, _ = read(f"a fox\n{LINE}, ENSD: {ensd}")
    assert layer["overrides"] == {"ensd": ensd}
    assert resolve(layered({}, {name: layer[name] for name in layer if name != "model"}), load_family("sdxl-base"))[1].ensd == int(ensd)


def test_invokeais_unipc_is_diffusers() -> None:
    for name, made in (("unipc", ("unipc_bh2", "normal")), ("unipc_k", ("unipc_bh2", "karras"))):
        layer, _ = invoke(scheduler=name)
        assert (layer["sampler"], layer["schedule"]) == made


def test_invokeais_noise_and_vae() -> None:
    layer, notes = invoke(rand_device="cuda", vae={"key": "9f", "name": "fix"})
    assert layer["overrides"] == {"rng": "philox"} and layer["vae"] == "fix" and "graphics card's generator" in notes[0]
    layer, notes = invoke()
    assert "overrides" not in layer and len(notes) == 1


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a cat++ on a mat", "cat++"),
        ("a (red fox)1.3", ")1.3"),
        ("a (red fox)--, snow", "fox)--"),
        ('("a fox", "snow").blend(1, 0.5)', ".blend("),
        ('("a fox", "snow").and()', ".and("),
        ("a cat.swap(dog)", ".swap("),
    ],
)
def test_invokeais_weights_are_told(prompt: str, shown: str) -> None:
    notes = invoke(positive_prompt=prompt)[1]
    assert "taken as plain words" in notes[0] and shown in notes[0]
    assert "plain words" in invoke(negative_prompt=prompt)[1][0]


@pytest.mark.parametrize("text", ["a" * 400_000, "a+" * 200_000, ")" * 400_000, "+" * 400_000, "1" * 400_000])
def test_long_prompts_take_time_by_their_length(text: str) -> None:
    start = process_time()
    invoke(positive_prompt=f"{text}x")
    assert process_time() - start < 5


def test_plain_words_of_invokeai_are_no_weights() -> None:
    assert len(invoke(positive_prompt="a well-made (red) fox, 35mm, f1.4, sci-fi - night, e.g. a 1.3 m cat. Snow (deep)")[1]) == 1


@pytest.mark.parametrize("stranger", STRANGERS, ids=[each.name for each in STRANGERS])
def test_every_stranger_gives_a_job_or_one_line(stranger: Stranger) -> None:
    try:
        layer, _ = elsewhere.layer(foreign.read(stranger.texts))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert layered({}, layer).prompt == stranger.prompt


NAMES = ["Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "ENSD", "RNG", "Clip skip", "Denoising strength", "Version"]
VALUES = st.text(max_size=20) | st.integers().map(str) | st.floats().map(str) | st.sampled_from(["Euler", "Karras", "64x64", "True"])


@given(st.sampled_from([*elsewhere.ENGINES, "unknown"]), st.dictionaries(st.sampled_from(NAMES), VALUES), st.text(max_size=20))
def test_any_settings_give_a_layer_or_one_line(dialect: str, settings: dict[str, str], prompt: str) -> None:
    try:
        layer, notes = elsewhere.layer(Reading(dialect, Infotext(prompt, "", settings)))
    except InputError as error:
        assert len(str(error)) < 500
        return
    assert layer["prompt"] == prompt and all(isinstance(note, str) for note in notes)


def test_a_profile_in_any_case() -> None:
    assert layered({"prompt": "a fox", "profile": "A1111"}).profile == "a1111"
    assert resolve(Job("a fox", profile="ComfyUI"), load_family("sdxl-base"))[0].profile == "comfyui"


def test_a_picture_of_another_program_is_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "theirs.png"
    save(Image.new("RGB", (8, 8)), path, Marks(f"a fox\n{LINE}, RNG: NV, Version: v1.10.1", None))
    layer, notes = picture_layer(str(path))
    job = layered({"steps": 2}, layer)
    assert (job.prompt, job.steps, job.profile, job.model, notes) == ("a fox", 2, "a1111", "base", [])
    bare = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(bare)
    with pytest.raises(InputError, match="no settings that are understood"):
        picture_layer(str(bare))
