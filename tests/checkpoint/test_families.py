"""Which family a file is, by the manifests of public files; official names and shapes against the modules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.checkpoint.families import FAMILY_KEY, least_tensors, looks_like, notes, probes, recognise, vae_prefix
from ldm.checkpoint.leftovers import is_leftover
from ldm.checkpoint.loading import match
from ldm.checkpoint.safetensors import Entry, Header
from ldm.errors import InputError
from ldm.models.shapes import load_family
from scripts import synthetic
from tests.checkpoint import builders

BASE = [
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_0.9.safetensors",
    "sd_xl_turbo_1.0.safetensors",
    "sd_xl_turbo_1.0_fp16.safetensors",
    "sdxl_finetune_all_f16.safetensors",
    "sdxl_finetune_position_ids_i64.safetensors",
]
REFINER = ["sd_xl_refiner_1.0.safetensors", "sd_xl_refiner_0.9.safetensors"]
VAES = [
    "sdxl_vae.safetensors",
    "sdxl_vae_fp16_fix.safetensors",
    "sdxl_vae_fp16_plain.safetensors",
    "vae-ft-mse-840000-ema-pruned.safetensors",
]
KINDS = {
    "sdxl_inpainting": "an inpainting checkpoint",
    "sd-v1-5-inpainting": "an SD 1.x checkpoint",
    "v1-5-pruned": "an SD 1.x checkpoint",
    "v2-1_768": "an SD 2.x checkpoint",
    "control": "a ControlNet",
    "sd-controlnet": "a ControlNet",
    "sd_xl_offset_example-lora": "a LoRA",
    "lcm-lora": "a LoRA",
    "hyper-sdxl-lora": "a LoRA",
    "example_ti": "a textual inversion embedding",
    "example_": "a LoRA",
    "taesdxl": "a TAESD",
}


def kind(name: str) -> str:
    """What a public file is, by its name."""
    folder = {"/unet/": "a UNet in diffusers' layout", "/vae/": "a VAE in diffusers' layout", "/text_encoder": "a CLIP text encoder alone"}
    by_folder = [words for part, words in folder.items() if part in name]
    return by_folder[0] if by_folder else next((words for start, words in KINDS.items() if name.startswith(start)), "a VAE alone")


@pytest.mark.parametrize(("family", "files"), [("sdxl-base", BASE), ("sdxl-refiner", REFINER)])
def test_official_families(family: str, files: list[str]) -> None:
    for name in files:
        assert recognise(builders.header(name)) == load_family(family), name


@pytest.mark.parametrize("name", sorted(set(builders.manifests()) - {*BASE, *REFINER}))
def test_every_other_public_file_is_named(name: str) -> None:
    header = builders.header(name)
    assert looks_like(header).startswith(kind(name))
    with pytest.raises(InputError, match=f"{name}: this is {kind(name)}.*: expected an SDXL base or refiner checkpoint"):
        recognise(header)


@pytest.mark.parametrize("name", sorted(builders.manifests()))
def test_vae(name: str) -> None:
    header = builders.header(name)
    if name in VAES:
        assert vae_prefix(header) == ""
    elif any(tensor.startswith("first_stage_model.") for tensor in header.tensors):
        assert vae_prefix(header) == "first_stage_model."
    else:
        with pytest.raises(InputError, match="expected a VAE in the official layout"):
            vae_prefix(header)


@pytest.mark.parametrize(
    ("family", "file", "counts"),
    [("sdxl-base", BASE[0], [197 - 1, 390 - 1, 248, 1680]), ("sdxl-refiner", REFINER[0], [390 - 1, 248, 1220])],
)
def test_official_names_and_shapes_are_the_modules(family: str, file: str, counts: list[int]) -> None:
    """Nothing but position_ids and logit_scale is left of the official files."""
    found = [dict(synthetic.file_shapes(part)) for part in synthetic.parts(load_family(family))]
    assert [len(shapes) for shapes in found] == counts
    ours = {name: shape for shapes in found for name, shape in shapes.items()}
    theirs = builders.shapes(file)
    rest = set(theirs) - set(ours)
    assert all(name.endswith(("position_ids", "logit_scale")) for name in rest)
    assert ours == {name: shape for name, shape in theirs.items() if name not in rest}


@pytest.mark.parametrize("file", [*BASE, *REFINER])
def test_official_files_are_accounted_for(file: str) -> None:
    header = builders.header(file)
    match(header, synthetic.parts(recognise(header)))


def test_vae_leftovers() -> None:
    part = next(part for part in synthetic.parts(load_family("sdxl-base")) if part.prefix == "first_stage_model.")
    for name in VAES[:3]:
        match(builders.header(name), [replace(part, prefix="")])


def test_declared_family() -> None:
    family = synthetic.tiny()
    text = json.dumps(family.to_dict())
    parts = [part for part in synthetic.parts(family) if part.prefix != "first_stage_model."]  # the VAE may be elsewhere
    tensors = {name: Entry("F16", shape, 0, 0) for part in parts for name, shape in synthetic.file_shapes(part)}
    header = Header(Path("box.safetensors"), 0, 0, tensors, {FAMILY_KEY: text}, (0, 0, 0))
    assert recognise(header) == family
    assert least_tensors(family) <= len(tensors) < 1.4 * least_tensors(family)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for stands, message in {Entry("F16", (), 0, 0): rf"{first} is \(\), not", None: f"{first} is absent, not"}.items():
        changed = {name: entry for name, entry in {**tensors, first: stands}.items() if entry is not None}
        with pytest.raises(InputError, match=message):
            recognise(replace(header, tensors=changed))
    with pytest.raises(InputError, match="has 2,098 or more, and the file 8"):
        recognise(replace(header, tensors={name: tensors[name] for name in probes(family)}))
    for bad, message in {
        "[1]": "is not a JSON object",
        "{": "is not a JSON object",
        text.replace('"model_channels": 16', '"model_channels": 24'): r"input_blocks.0.0.weight is \(16, 4, 3, 3\), not \(24, 4, 3, 3\)",
        text.replace('"model_channels"', '"modl_channels"'): "box.safetensors: ldm.family in its metadata: .*missing key 'model_channels'",
    }.items():
        with pytest.raises(InputError, match=message):
            recognise(replace(header, metadata={FAMILY_KEY: bad}))


def test_markers() -> None:
    header = builders.header(BASE[0])
    base = load_family("sdxl-base")
    marked = replace(header, tensors={**header.tensors, "v_pred": Entry("F16", (0,), 0, 0), "ztsnr": Entry("F16", (0,), 0, 0)})
    assert recognise(marked).prediction == "v"
    assert recognise(replace(header, metadata={"modelspec.prediction_type": "v"})).prediction == "v"
    assert recognise(replace(header, metadata={"modelspec.prediction_type": "epsilon"})) == base
    assert [note.split(";")[0] for note in notes(marked, base)] == ["the file is marked as trained with zero terminal SNR (ztsnr)"]
    assert "SDXL-Turbo" in notes(builders.header("sd_xl_turbo_1.0.safetensors"), base)[0]
    assert notes(header, base) == notes(builders.header("sd_xl_base_0.9.safetensors"), base) == []


def test_leftovers_are_exact() -> None:
    """The name alone does not excuse a tensor, nor does a part of it."""
    scalar, steps = Entry("F32", (), 0, 4), Entry("F32", (1000,), 0, 4000)
    assert is_leftover("model_ema.decay", scalar) and is_leftover("denoiser.sigmas", steps) and is_leftover("betas", steps)
    for name, entry in {
        "model_ema.decay": steps,
        "model_ema.diffusion_modelinput_blocks00weight": scalar,
        "denoiser.sigmas": scalar,
        "x.betas": steps,
        "betas2": steps,
        "conditioner.embedders.1.model.logit_scale.x": scalar,
    }.items():
        assert not is_leftover(name, entry), name


def test_strange_files() -> None:
    def strange(*names: str) -> str:
        return looks_like(Header(Path("x"), 0, 0, {name: Entry("F16", (4, 4), 0, 0) for name in names}, {}, (0, 0, 0)))

    assert strange() == strange("a", "b") == "not recognised by its tensors"
    first = "model.diffusion_model.input_blocks.0.0.weight"
    assert strange(first, "model.diffusion_model.out.2.weight") == "a UNet without its text towers"
    assert strange(first, "conditioner.embedders.0.model.ln_final.weight").startswith("a checkpoint of an unknown family")
    assert strange("model.diffusion_model.joint_blocks.0.x", "b") == "an SD 3 checkpoint"
    assert strange("double_blocks.0.img_attn.norm", "b") == "a Flux checkpoint"
