"""The tensors that official files and re-saves carry beside the networks: named here, with their source, and never read.

Anything that is neither part of a network nor in this list is an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ldm.checkpoint.safetensors import Entry

STEPS = 1000  # of the training schedule
SCHEDULE = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod"
    "|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2"
)


class Leftover(NamedTuple):
    pattern: str  # of the whole name
    shape: tuple[int, ...]
    source: str


LEFTOVERS = (
    Leftover(
        r"conditioner\.embedders\.\d\.(transformer|model\.transformer)\.text_model\.embeddings\.position_ids",
        (1, 77),
        "sd_xl_base_1.0 (F16) and re-saves (I64); under model.transformer in ComfyUI's saves (sd-scripts, library/sdxl_model_util.py)",
    ),
    Leftover(r"conditioner\.embedders\.\d\.model\.logit_scale", (), "sd_xl_base_1.0: CLIP's training temperature"),
    Leftover(r"denoiser\.\w+", (STEPS,), "sd_xl_turbo_1.0, sd_xl_base_0.9: buffers of sgm's DiscreteDenoiser"),
    Leftover(SCHEDULE, (STEPS,), "v1-5-pruned and merges made with its tools: buffers of ldm's DDPM"),
    Leftover(r"model_ema\.(decay|num_updates)", (), "sdxl_vae, v1-5-pruned: state of ldm's LitEma"),
    Leftover(r"v_pred|ztsnr", (0,), "NoobAI-XL v-prediction: markers of the training objective"),
    Leftover(r"edm_vpred\.sigma_(max|min)", (), "CosXL; ComfyUI, comfy_extras/nodes_model_merging.py"),
)
_PATTERNS = tuple((re.compile(leftover.pattern), leftover.shape) for leftover in LEFTOVERS)


def is_leftover(name: str, entry: Entry) -> bool:
    """Whether a tensor is one of the list, by its whole name and its shape."""
    return any(entry.shape == shape and pattern.fullmatch(name) for pattern, shape in _PATTERNS)
