"""What the experiments share: a pipeline so small that a step takes milliseconds, a part of many cases, and what can come of one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.samplers import SAMPLERS
from ldm.errors import CODES, LdmError
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.pipeline import Pipeline

NAMES = list(SAMPLERS)
SMALL = {"width": 32, "height": 24, "steps": 4, "cfg": 5.0, "seed": 5}


def some(cases: Sequence[Any], count: int | None) -> list[Any]:
    """`count` of the cases, evenly spread; all for None."""
    if count is None or count >= len(cases):
        return list(cases)
    return [cases[k * len(cases) // count] for k in range(count)]


def tiny_family(prediction: str = "epsilon", *, zero_terminal: bool = False) -> Family:
    """SDXL's layout with two levels and a few channels: a step in milliseconds."""
    family = load_family("sdxl-base")
    towers = [replace(tower, width=8, layers=2, heads=2, mlp=16, projection=tower.projection and 8) for tower in family.towers]
    widths: dict[str, Any] = {"model_channels": 8, "norm_groups": 4, "head_dim": 8, "context_dim": 16, "vector_dim": 8 + 6 * 8}
    unet = replace(family.unet, channel_mult=(1, 2), num_res_blocks=1, transformer_depth=(0, 1), middle_depth=1, **widths)
    vae = replace(family.vae, ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=4)
    changes: dict[str, Any] = {"prediction": prediction, "zero_terminal": zero_terminal, "unet": unet, "vae": vae, "towers": tuple(towers)}
    return replace(family, size_embedding=8, **changes)


@cache
def tiny_parts() -> tuple[UNet, VAE, list[CLIPText]]:
    family = tiny_family()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = UNet(family.unet), VAE(family.vae), [CLIPText(shape) for shape in family.towers]
    for module in (*parts[:2], *parts[2]):
        module.eval().requires_grad_(False)
    return parts


def tiny(prediction: str = "epsilon", *, zero_terminal: bool = False) -> Pipeline:
    """A pipeline of that family; all share their weights."""
    return Pipeline(tiny_family(prediction, zero_terminal=zero_terminal), *tiny_parts(), source="tiny")


def outcome(run: Callable[[], Tensor], *, within: float = math.inf) -> str:
    """finite, refused (an LdmError of one line with a remedy and a code), or what went wrong."""
    try:
        values = run()
    except LdmError as error:
        good = re.fullmatch(r".+: .+", str(error)) and len(str(error)) < 500 and error.code in CODES
        return "refused" if good else f"a refusal without words: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return "finite" if values.isfinite().all() and float(values.abs().max()) <= within else "not finite, or far away"


def tally(found: Counter[str]) -> tuple[str, bool]:
    """In words, and whether nothing but finite and refused came."""
    wrong = {words: number for words, number in found.items() if words not in ("finite", "refused")}
    few = f" {dict(list(wrong.items())[:3])}" if wrong else ""
    return f"{found['finite']} finite, {found['refused']} refused, {sum(wrong.values())} others{few}", not wrong
