"""The networks of a file as diffusers and transformers build them, through their own converters, from the file itself.

Nothing of the tensors passes through our loader: what it does wrong shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.identity import UNET, VAE
from ldm.errors import InputError
from ldm.models.shapes import Family, TowerShape, UNetShape, VAEShape

NEEDED = ("diffusers", "transformers", "safetensors")


def check_installed() -> str:
    """diffusers' version. Raises InputError where it, or what it needs for this, is not there."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise InputError(f"--against diffusers: {' and '.join(absent)} not installed here: pip install 'ldm[parity]'")
    version: str = import_module("diffusers").__version__
    return version


def tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The float32 tensors of a file whose names begin with `prefix`, which stays."""
    with import_module("safetensors").safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def unet(path: Path, family: Family) -> nn.Module:
    config = unet_config(family.unet, family.size_embedding)
    convert = import_module("diffusers.loaders.single_file_utils").convert_ldm_unet_checkpoint
    state = convert(tensors(path, UNET), config | {"class_embed_type": None})
    return _filled(import_module("diffusers").UNet2DConditionModel, config, state)


def vae(path: Path, family: Family) -> nn.Module:
    config = vae_config(family.vae)
    convert = import_module("diffusers.loaders.single_file_utils").convert_ldm_vae_checkpoint
    return _filled(import_module("diffusers").AutoencoderKL, config, convert(tensors(path, VAE), config))


def tower(path: Path, shape: TowerShape) -> nn.Module:
    """A text model of transformers, with its projection where the file has one."""
    library = import_module("transformers")
    kind = library.CLIPTextModelWithProjection if shape.projection else library.CLIPTextModel
    made: nn.Module = kind(library.CLIPTextConfig(**tower_config(shape)))
    state = tensors(path, shape.prefix)
    if shape.layout == "open_clip":
        convert = import_module("diffusers.loaders.single_file_utils").convert_open_clip_checkpoint
        state = convert(made, state, prefix=shape.prefix)
    made.load_state_dict(_spelt(state, shape.prefix, set(made.state_dict())), strict=True)
    return made.eval()


def _spelt(state: Mapping[str, Tensor], prefix: str, wanted: set[str]) -> dict[str, Tensor]:
    """Without the file's prefix and its buffer; transformers 5 also drops `text_model.` from the names of the tower without projection."""
    plain = {name.removeprefix(prefix): tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    return {name if name in wanted else name.removeprefix("text_model."): tensor for name, tensor in plain.items()}


def _filled(kind: Any, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = kind(**config)
    made.load_state_dict(state, strict=True, assign=True)
    return made.eval()


def unet_config(shape: UNetShape, size_embedding: int) -> dict[str, Any]:
    """diffusers' names for our numbers; its `attention_head_dim` is the number of heads."""
    widths = tuple(shape.model_channels * mult for mult in shape.channel_mult)
    depths = shape.transformer_depth
    return {
        "sample_size": 16,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": widths,
        "layers_per_block": shape.num_res_blocks,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "transformer_layers_per_block": tuple(depth or shape.middle_depth for depth in depths),
        "attention_head_dim": tuple(shape.num_heads or width // shape.head_dim for width in widths),
        "cross_attention_dim": shape.context_dim,
        "use_linear_projection": shape.linear_proj,
        "norm_num_groups": shape.norm_groups,
        "addition_embed_type": "text_time" if shape.vector_dim else None,
        "addition_time_embed_dim": size_embedding if shape.vector_dim else None,
        "projection_class_embeddings_input_dim": shape.vector_dim or None,
    }


def vae_config(shape: VAEShape) -> dict[str, Any]:
    widths = tuple(shape.ch * mult for mult in shape.ch_mult)
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": shape.num_res_blocks,
        "latent_channels": shape.z_channels,
        "norm_num_groups": shape.norm_groups,
        "scaling_factor": shape.scale,
    }


def tower_config(shape: TowerShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "hidden_act": shape.activation,
        "projection_dim": shape.projection or shape.width,
        "eos_token_id": shape.vocab - 1,
        "bos_token_id": shape.vocab - 2,
    }
