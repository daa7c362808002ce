"""Export: the official names, the family in the metadata, and the weights that the loader gives back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

import ldm
from ldm.models.shapes import Family
from ldm.train.cache import load_pictures
from ldm.train.export import export
from ldm.train.recipe import Recipe
from ldm.train.state import load_mean


def test_a_trained_run_is_exported_in_the_official_layout(trained: Path, family: Family, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export(recipe, trained, path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        note = file.metadata()
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    wanted = load_mean(trained / "unet")["input_blocks.0.0.weight"].half()
    assert torch.equal(tensors["model.diffusion_model.input_blocks.0.0.weight"], wanted)
    in_proj = tensors["conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"]
    assert in_proj.shape == (24, 8)
    stored = Family.from_dict(json.loads(note["ldm.family"]))
    assert stored.vae.scale == load_pictures(trained, load_mean(trained / "vae")).scale
    assert stored.unet == family.unet


def test_an_exported_model_is_loaded_and_makes_a_picture(trained: Path, recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export(recipe, trained, path)
    pipeline = ldm.load(path, device="cpu")
    mean = load_mean(trained / "towers")["towers.1.text_model.encoder.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(pipeline.towers[1].text_model.encoder.layers[1].self_attn.k_proj.weight, mean.half().float())
    result = pipeline.generate("a circle on a blue background", seed=1, steps=2)
    assert result.images[0].size == (32, 32)
