"""The same networks as other people build them, filled with our weights through their own converters."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.models.clip import CLIPText
from ldm.models.shapes import TowerShape, UNetShape
from ldm.models.unet import UNet
from ldm.models.vae import VAE


def unet_config(shape: UNetShape, size_embedding: int) -> dict[str, Any]:
    """diffusers' names for our numbers."""
    widths = tuple(shape.model_channels * mult for mult in shape.channel_mult)
    return {
        "sample_size": 16,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": widths,
        "layers_per_block": shape.num_res_blocks,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in shape.transformer_depth),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(shape.transformer_depth)),
        "transformer_layers_per_block": tuple(depth or shape.middle_depth for depth in shape.transformer_depth),
        "attention_head_dim": tuple(shape.num_heads or width // shape.head_dim for width in widths),
        "cross_attention_dim": shape.context_dim,
        "use_linear_projection": shape.linear_proj,
        "norm_num_groups": shape.norm_groups,
        "addition_embed_type": "text_time" if shape.vector_dim else None,
        "addition_time_embed_dim": size_embedding if shape.vector_dim else None,
        "projection_class_embeddings_input_dim": shape.vector_dim or None,
    }


def diffusers_unet(ours: UNet, size_embedding: int) -> UNet2DConditionModel:
    config = unet_config(ours.shape, size_embedding)
    theirs = UNet2DConditionModel(**config)
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_unet_checkpoint(state, config | {"class_embed_type": None}), strict=True)
    return theirs.eval()


def diffusers_vae(ours: VAE) -> AutoencoderKL:
    widths = tuple(ours.shape.ch * mult for mult in ours.shape.ch_mult)
    config = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": ours.shape.num_res_blocks,
        "latent_channels": ours.shape.z_channels,
        "norm_num_groups": ours.shape.norm_groups,
    }
    theirs = AutoencoderKL(**config)
    state = {f"first_stage_model.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_vae_checkpoint(state, config), strict=True)
    return theirs.eval()


def transformers_tower(ours: CLIPText) -> torch.nn.Module:
    """transformers' text model under its own names (its projection is a Linear: ours transposed)."""
    shape: TowerShape = ours.shape
    config = CLIPTextConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        hidden_act=shape.activation,
        projection_dim=shape.projection or shape.width,
        eos_token_id=shape.vocab - 1,
        bos_token_id=shape.vocab - 2,
    )
    theirs = (CLIPTextModelWithProjection if shape.projection else CLIPTextModel)(config)
    theirs.load_state_dict(renamed(ours, set(theirs.state_dict())), strict=True)
    return theirs.eval()


def renamed(ours: CLIPText, wanted: set[str]) -> dict[str, Tensor]:
    """transformers 5 drops `text_model.` from CLIPTextModel's keys; the projection is transposed."""
    state = dict(ours.state_dict())
    if "text_projection" in state:
        state["text_projection.weight"] = state.pop("text_projection").T.contiguous()
    return {name if name in wanted else name.removeprefix("text_model."): tensor for name, tensor in state.items()}
