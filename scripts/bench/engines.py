"""Both engines over the same drawn weights: ours as the pipeline runs it, diffusers as its documentation says is fastest."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoint.loading import Place, flat_size, last_channels, views
from ldm.checkpoint.reading import allocate
from ldm.checkpoint.safetensors import Entry
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.parity.foreign import tower_config, unet_config, vae_config
from ldm.pipeline import Pipeline

PROMPT, NEGATIVE = "a red apple on a blue table, studio light", "blurry, low quality"
NOWHERE = Entry("F32", (), 0, 0)  # in a file
Module = TypeVar("Module", bound=nn.Module)
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1}


ABSENT = "diffusers is not installed"


def has_diffusers() -> bool:
    return all(find_spec(name) is not None for name in ("diffusers", "transformers"))


def drawn(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """A module of the meta device with values drawn from its tensors' names, in memory as the loader lays them out."""
    places: Any = [Place(name, tensor.shape, name, NOWHERE, None, False) for name, tensor in module.state_dict().items()]
    state = views(allocate(flat_size(places, dtype), device), places, dtype)
    for name, tensor in state.items():
        draw(name, tensor)
    if device.type == "cuda":
        last_channels(state)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def draw(name: str, target: Tensor) -> None:
    """On a GPU there: gigabytes in a moment; on the CPU the same as in a file of scripts.synthetic."""
    from scripts import synthetic

    if target.device.type == "cpu":
        target.copy_(torch.from_numpy(synthetic.values(name, target.shape, "F32")).view(target.shape))
        return
    mean, std = synthetic.spread(name, target.shape)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    target.normal_(mean, std, generator=torch.Generator(target.device).manual_seed(seed))


def unet(family: Family, device: torch.device, dtype: torch.dtype) -> UNet:
    with torch.device("meta"):
        made = UNet(family.unet)
    return drawn(made, device, dtype)


def vae(family: Family, device: torch.device, dtype: torch.dtype) -> VAE:
    with torch.device("meta"):
        made = VAE(family.vae)
    return drawn(made, device, dtype)


def towers(family: Family, device: torch.device, dtype: torch.dtype) -> list[CLIPText]:
    with torch.device("meta"):
        made = [CLIPText(shape) for shape in family.towers]
    return [drawn(tower, device, dtype) for tower in made]


def pipeline(family: Family, device: torch.device, dtype: torch.dtype) -> Pipeline:
    return Pipeline(family, unet(family, device, dtype), vae(family, device, dtype), towers(family, device, dtype), source="drawn")


def evaluation(ours: UNet, context: Tensor, vector: Tensor, t: float, count: int) -> Callable[[Tensor], Tensor]:
    """The UNet as the sampler meets it, its text and steps prepared: x (rows * count, 4, h, w) -> the prediction."""
    from ldm.runtime.evaluation import prediction
    from ldm.text.conditioning import Conditioning

    predict = prediction(ours, Conditioning(context, vector), count, [t])
    return lambda x: predict(x, t)


def plain(ours: nn.Module) -> dict[str, Tensor]:
    """As a file has them."""
    return {name: tensor.contiguous() for name, tensor in ours.state_dict().items()}


def their_unet(ours: UNet, family: Family) -> nn.Module:
    """diffusers' UNet over the tensors of ours, which it shares but for the kernels that ours has with their channels last."""
    from scripts import theirs

    return theirs.unet_of(plain(ours), unet_config(family.unet, family.size_embedding) | {"sample_size": 128})


def their_vae(ours: VAE, family: Family) -> nn.Module:
    from scripts import theirs

    return theirs.vae_of(plain(ours), vae_config(family.vae) | {"force_upcast": False})


def their_tower(ours: CLIPText) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from tests.models.foreign import renamed

    kind = CLIPTextModelWithProjection if ours.shape.projection else CLIPTextModel
    with torch.device("meta"):
        made = kind(CLIPTextConfig(**tower_config(ours.shape)))
    made.load_state_dict(renamed(ours, set(made.state_dict())), strict=True, assign=True)
    for module in made.modules():
        if hasattr(module, "position_ids"):  # a buffer that no file has
            module.position_ids = torch.arange(ours.shape.length, device=next(ours.parameters()).device)[None]
    return made.eval()


def their_tokenizer(pad: str | None = None) -> Any:
    from tests.text.foreign import transformers

    made = copy.deepcopy(transformers())
    made.model_max_length = 77
    if pad is not None:
        made.pad_token = pad
    return made


def their_pipeline(ours: Pipeline) -> Any:
    """StableDiffusionXLPipeline with Euler, over the weights of ours."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    large, big = (their_tower(tower) for tower in ours.towers)
    made = StableDiffusionXLPipeline(
        vae=their_vae(ours.vae, ours.family),
        text_encoder=large,
        text_encoder_2=big,
        tokenizer=their_tokenizer(),
        tokenizer_2=their_tokenizer("!"),  # token 0, with which bigG's words are filled up
        unet=their_unet(ours.unet, ours.family),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def quickest(pipe: Any, mode: str, *, small: bool) -> Any:
    """diffusers at its best, by its guide "Accelerate inference of text-to-image diffusion models"; `small`: not compiled."""
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.fuse_qkv_projections()
    if small:
        return pipe
    inductor: Any = torch._inductor.config
    inductor.conv_1x1_as_mm = inductor.coordinate_descent_tuning = inductor.coordinate_descent_check_all_directions = True
    inductor.epilogue_fusion = False
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, mode=mode)
    pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, mode=mode)
    return pipe
