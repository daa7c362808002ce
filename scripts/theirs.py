"""The same run by other people's code: diffusers' UNet and VAE, transformers' towers, k-diffusion's sampler, from an official file.

Used by scripts/parity.py and scripts/bench.py; needs the dev and parity extras. Nothing of ldm is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tests.text.foreign import transformers as tokenizer

L_PREFIX, G_PREFIX = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
BASE_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_UNET = BASE_UNET | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}


def tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The float32 tensors of a file under a prefix, without it."""
    with safe_open(path, framework="pt") as file:
        return {name.removeprefix(prefix): file.get_tensor(name).float() for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def unet(path: Path, config: dict[str, Any]) -> torch.nn.Module:
    return unet_of(tensors(path, "model.diffusion_model."), config)


def unet_of(state: Mapping[str, Tensor], config: dict[str, Any]) -> torch.nn.Module:
    """diffusers' UNet over the tensors of an official layout, which it shares."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    renamed = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, config | {"class_embed_type": None}
    )
    with torch.device("meta"):
        made = UNet2DConditionModel(**config)
    made.load_state_dict(renamed, strict=True, assign=True)
    return made.eval()


def pipeline_folder(folder: Path) -> None:
    """The configuration files that diffusers' from_single_file asks for beside SDXL base, as its classes write them."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        UNet2DConditionModel(**BASE_UNET).save_config(folder / "unet")
        AutoencoderKL(**VAE).save_config(folder / "vae")
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    ).save_config(folder / "scheduler")
    for name, config in (("text_encoder", CLIP_L), ("text_encoder_2", CLIP_G)):
        CLIPTextConfig(**config).save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer().save_pretrained(folder / name)
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "EulerDiscreteScheduler"}
    index: dict[str, Any] = {name: ["diffusers", kind] for name, kind in parts.items()}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    index |= {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "tokenizer_2")}
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **index})
    )


def vae(path: Path) -> torch.nn.Module:
    return vae_of(tensors(path, "first_stage_model."), VAE)


def vae_of(state: Mapping[str, Tensor], config: dict[str, Any]) -> torch.nn.Module:
    """diffusers' VAE over the tensors of an official layout, which it shares."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    renamed = convert_ldm_vae_checkpoint({f"first_stage_model.{name}": tensor for name, tensor in state.items()}, config)
    with torch.device("meta"):
        made = AutoencoderKL(**config)
    made.load_state_dict(renamed, strict=True, assign=True)
    return made.eval()


def towers(path: Path) -> list[torch.nn.Module]:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    large = CLIPTextModel(CLIPTextConfig(**CLIP_L))
    names = set(large.state_dict())
    state = tensors(path, L_PREFIX)
    state = {
        name if name in names else name.removeprefix("text_model."): tensor for name, tensor in state.items() if "position_ids" not in name
    }
    large.load_state_dict(state, strict=True)
    big = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
    converted = convert_open_clip_checkpoint(
        big, {f"{G_PREFIX}{name}": tensor for name, tensor in tensors(path, G_PREFIX).items()}, prefix=G_PREFIX
    )
    converted = {name: tensor for name, tensor in converted.items() if "position_ids" not in name}
    big.load_state_dict(converted, strict=True)
    return [large.eval(), big.eval()]


def encode(path: Path, texts: list[str], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """context, pooled and time ids for each text, padded as SDXL pads: with the end token for CLIP-L, with zeros for bigG."""
    tokens, contexts, pooled = tokenizer(), [], torch.empty(0)
    ids = [tokens(text, add_special_tokens=False).input_ids[:75] for text in texts]
    for tower, pad in zip(towers(path), (49407, 0), strict=True):
        rows = torch.tensor([[49406, *row, 49407, *[pad] * (75 - len(row))] for row in ids])
        out = tower(rows, output_hidden_states=True)
        contexts.append(out.hidden_states[-2])
        pooled = out[0]
    return torch.cat(contexts, -1), pooled, torch.tensor([[*size, 0, 0, *size]] * len(texts), dtype=torch.float32)


def denoiser(network: torch.nn.Module, context: Tensor, pooled: Tensor, time_ids: Tensor, cfg: float) -> Callable[..., Tensor]:
    """x0 of x and sigma with guidance, rows [cond, uncond], timesteps interpolated in log sigma: k-diffusion's rules."""
    logs = sigma_table().log().double().numpy()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = float(np.interp(float(sigma[0].double().log()), logs, np.arange(1000)))
        rows = torch.cat([x, x]) / (sigma[0] ** 2 + 1) ** 0.5
        cond, uncond = network(rows, t, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample.chunk(2)
        return x - sigma[0] * (uncond + cfg * (cond - uncond))

    return denoise


def sigma_table() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0).float()
    return ((1 - alphas) / alphas).sqrt()


def sigma_range() -> tuple[float, float]:
    """The ends of the table in float32, as A1111 has them."""
    sigmas = sigma_table()
    return float(sigmas[0]), float(sigmas[-1])
