"""The same networks as other people build them, filled with our weights through their own converters."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.models.clip import CLIPText
from ldm.models.shapes import TowerShape
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.parity.foreign import tower_config, unet_config, vae_config


def diffusers_unet(ours: UNet, size_embedding: int) -> UNet2DConditionModel:
    config = unet_config(ours.shape, size_embedding)
    theirs = UNet2DConditionModel(**config)
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_unet_checkpoint(state, config | {"class_embed_type": None}), strict=True)
    return theirs.eval()


def diffusers_vae(ours: VAE) -> AutoencoderKL:
    config = vae_config(ours.shape)
    theirs = AutoencoderKL(**config)
    state = {f"first_stage_model.{name}": tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(convert_ldm_vae_checkpoint(state, config), strict=True)
    return theirs.eval()


def transformers_tower(ours: CLIPText) -> torch.nn.Module:
    """transformers' text model under its own names (its projection is a Linear: ours transposed)."""
    shape: TowerShape = ours.shape
    config = CLIPTextConfig(**tower_config(shape))
    theirs = (CLIPTextModelWithProjection if shape.projection else CLIPTextModel)(config)
    theirs.load_state_dict(renamed(ours, set(theirs.state_dict())), strict=True)
    return theirs.eval()


def renamed(ours: CLIPText, wanted: set[str]) -> dict[str, Tensor]:
    """transformers 5 drops `text_model.` from CLIPTextModel's keys; the projection is transposed."""
    state = dict(ours.state_dict())
    if "text_projection" in state:
        state["text_projection.weight"] = state.pop("text_projection").T.contiguous()
    return {name if name in wanted else name.removeprefix("text_model."): tensor for name, tensor in state.items()}
