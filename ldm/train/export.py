"""Trained stages -> one safetensors file in the official layout, F16, with its family's numbers in the metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.checkpoint.identity import FAMILY_KEY, UNET, VAE
from ldm.checkpoint.rename import to_open_clip
from ldm.checkpoint.writer import save, tensor_items
from ldm.models.shapes import Family, TowerShape, load_family
from ldm.train.cache import STAGES, built_on, load_pictures
from ldm.train.state import load_mean, part

if TYPE_CHECKING:
    from ldm.train.recipe import Recipe

ARCHITECTURE = "ldm-emoji-v1"


def export(recipe: Recipe, out: Path, path: Path, *, overwrite: bool = False) -> str:
    """Write the moving averages of all three stages in `out` to `path`; the line returned says what was written.

    Raises InputError when a stage has not been trained, or not on what the others are now, or where `path` exists and `overwrite` is false.
    """
    family = load_family(recipe.family)
    vae, towers, unet = (load_mean(out / stage, built_on(out, stage)) for stage in STAGES)
    scale = load_pictures(out, vae).scale
    family = dataclasses.replace(family, vae=dataclasses.replace(family.vae, scale=scale))
    tensors = official(family, vae, towers, unet)
    save(path, tensor_items(tensors, torch.float16), metadata(family), overwrite=overwrite, digest=True)
    count = sum(value.numel() for value in tensors.values())
    return f"{path}: {count:,} values, {path.stat().st_size / 2**20:.1f} MiB, VAE scale {scale:.5f}"


def official(family: Family, vae: Mapping[str, Tensor], towers: Mapping[str, Tensor], unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors under the names of the official files."""
    tensors = {UNET + name: value for name, value in unet.items()} | {VAE + name: value for name, value in vae.items()}
    for i, shape in enumerate(family.towers):
        tensors |= dict(_tower(shape, part(dict(towers), f"towers.{i}."), towers["logit_scale"][i]))
    return tensors


def _tower(shape: TowerShape, state: dict[str, Tensor], logit_scale: Tensor) -> Iterator[tuple[str, Tensor]]:
    if shape.layout == "open_clip":
        state = {**to_open_clip(state, shape.layers), "logit_scale": logit_scale}
    yield from ((shape.prefix + name, value) for name, value in state.items())


def metadata(family: Family) -> dict[str, str]:
    """The family's numbers and the fields of ModelSpec 1.0.1, without a date: the same training writes the same bytes."""
    defaults = family.defaults
    return {
        "format": "pt",
        FAMILY_KEY: json.dumps(family.to_dict(), separators=(",", ":")),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.implementation": "ldm",
        "modelspec.title": family.title,
        "modelspec.description": "Things of Noto Color Emoji on coloured backgrounds; the layout of SDXL with smaller numbers.",
        "modelspec.license": "Apache-2.0",
        "modelspec.resolution": f"{defaults.width}x{defaults.height}",
        "modelspec.prediction_type": family.prediction,
    }
