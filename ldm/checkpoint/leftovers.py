"""The tensors that official files and re-saves carry beside the networks: named here, with their source, and never read.

Anything that is neither part of a network nor in this list is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ldm.checkpoint.identity import UNET
from ldm.checkpoint.safetensors import Entry

STEPS = 1000  # of the training schedule
SCHEDULE = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod"
    "|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2"
)


class Leftover(NamedTuple):
    pattern: str  # of the whole name
    shapes: tuple[tuple[int, ...], ...]  # that are met
    source: str


LEFTOVERS = (
    Leftover(
        r"conditioner\.embedders\.\d\.(transformer|model\.transformer)\.text_model\.embeddings\.position_ids",
        ((1, 77),),
        "sd_xl_base_1.0 (F16) and re-saves (I64); under model.transformer in ComfyUI's saves (sd-scripts, library/sdxl_model_util.py)",
    ),
    Leftover(r"conditioner\.embedders\.\d\.model\.logit_scale", ((),), "sd_xl_base_1.0: CLIP's training temperature"),
    Leftover(
        r"conditioner\.embedders\.0\.logit_scale",
        ((),),
        "ComfyUI's saves, comfy/supported_models.py SDXL.process_clip_state_dict_for_saving: CLIP-L's temperature, later left out",
    ),
    Leftover(
        r"conditioner\.embedders\.0\.(text_projection|transformer\.text_projection\.weight)",
        ((768, 768),),
        "likewise: CLIP-L's projection, of whose output SDXL makes no use",
    ),
    Leftover(r"denoiser\.(sigmas|log_sigmas)", ((STEPS,),), "sd_xl_turbo_1.0, sd_xl_base_0.9: buffers of sgm's DiscreteDenoiser"),
    Leftover(SCHEDULE, ((STEPS,),), "v1-5-pruned and merges made with its tools: buffers of ldm's DDPM"),
    Leftover(r"model_ema\.(decay|num_updates)", ((),), "sdxl_vae, v1-5-pruned: state of ldm's LitEma"),
    Leftover(r"v_pred|ztsnr", ((0,), (1,)), "NoobAI-XL, ComfyUI's saves (0); sd-scripts merges (1): markers of the training objective"),
    Leftover(r"edm_vpred\.sigma_(max|min)", ((),), "CosXL; ComfyUI, comfy_extras/nodes_model_merging.py: refused by `families`"),
    Leftover(r"edm_(mean|std)", ((4,),), "Playground v2.5: mean and deviation of the latents: refused by `families`"),
)
TEXT_PROJECTION = {  # spellings of OpenCLIP's `text_projection`, read by `loading` in place of it: transposed, as a Linear's weight
    ".weight": "ComfyUI, comfy/utils.py clip_text_transformers_convert; sd-scripts, library/sdxl_model_util.py",
    ".weight.weight": "Playground v2's single file: sd-scripts, library/sdxl_model_util.py",
}
EMA = "model_ema."  # ldm's LitEma names a copy by the parameter's name without its dots: v1-5-pruned has 686 of them
_PATTERNS = tuple((re.compile(leftover.pattern), leftover.shapes) for leftover in LEFTOVERS)


def is_leftover(name: str, entry: Entry) -> bool:
    """Whether a tensor is one of the list, by its whole name and its shape."""
    return any(entry.shape in shapes and pattern.fullmatch(name) for pattern, shapes in _PATTERNS)


def ema_copies(tensors: Mapping[str, Entry]) -> frozenset[str]:
    """The names of copies of the file's own UNet, each with the shape of what it copies; another `model_ema.` name is none."""
    if not any(name.startswith(f"{EMA}diffusion_model") for name in tensors):
        return frozenset()
    copied = ((EMA + name.removeprefix("model.").replace(".", ""), entry) for name, entry in tensors.items() if name.startswith(UNET))
    return frozenset(copy for copy, entry in copied if copy in tensors and tensors[copy].shape == entry.shape)


def leftovers(tensors: Mapping[str, Entry]) -> frozenset[str]:
    """The names of all tensors of a file that are no part of a network and are tolerated."""
    return ema_copies(tensors) | {name for name, entry in tensors.items() if is_leftover(name, entry)}
