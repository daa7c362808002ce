"""LoRAs of every dialect, and textual inversions: which tool's names, for which model, of which rank.

Names: kohya-ss/sd-scripts `networks/lora.py`, LyCORIS `lycoris/modules/`, PEFT `tuners/lora/`, diffusers `loaders/`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from ldm.checkpoint.identity import CROSS, Identity, any_holding, counted, shape

if TYPE_CHECKING:
    from ldm.checkpoint.safetensors import Header

Shape = tuple[int, ...]
Modules = dict[str, dict[str, Shape]]  # a module's name -> its tensors' short names -> shapes

_PART = re.compile(
    r"(.+?)(?:\.((?:hada|lokr)_\w+|oft_blocks|oft_diag|diff|diff_b|on_input|[ab][12]\.weight)|\.lora_(down|up|mid)\.weight"
    r"|\.lora_([AB])(?:\.\w+)?\.weight|[._]lora(?:_linear_layer)?\.(down|up)\.weight)"
)
_CROSS_KEY = re.compile(r".*attn2[._](?:processor[._])?to_k")
_LAST_BLOCK = re.compile(r".*(?:output_blocks_8_0_out_layers_3|up_blocks[._]2[._]resnets[._]2[._]conv2)")  # 320 wide in SDXL base alone
_TOWERS = (("text tower 1", ("lora_te_", "lora_te1_", "text_encoder.")), ("text tower 2", ("lora_te2_", "text_encoder_2.")))
_METHODS = {"hada_": "LoHa", "lokr_": "LoKr", "mid": "LoCon", "oft_": "OFT", "on_input": "IA3", "diff": "full difference"}
_SMALL = ("lora_A", "down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # tensors whose first side is the rank, as they are looked for
_LORA = "LoRAs are not applied yet: give an SDXL base, refiner or Turbo checkpoint"
_EMBEDDING = "embeddings are not read yet: give an SDXL base, refiner or Turbo checkpoint"


def adapter(header: Header) -> Identity | None:
    """The identity of a LoRA or an embedding; None where the file is neither."""
    return _embedding(header) or _lora(header)


def _lora(header: Header) -> Identity | None:
    modules = _modules(header)
    if not modules:
        return None
    method, model = _method(modules), _model(modules)
    tucker = any(part in parts for parts in modules.values() for part in ("mid", "hada_t1", "lokr_t1", "lokr_t2"))
    where = counted(sorted(Counter(map(_where, modules)).items()))
    details = (_rank(modules), f"{len(modules):,} modules ({where})", *(("Tucker decomposition",) if tucker else ()))
    name = f"{method} for {model}" if model else f"{method} for a model that is not known"
    return Identity("LoRA", model, _layout(header, method), name, details, remedy=_LORA)


def _modules(header: Header) -> Modules:
    found: Modules = {}
    for name, entry in header.tensors.items():
        match = _PART.fullmatch(name)
        if match:
            parts = found.setdefault(match[1], {})
            parts[match[2] or match[3] or (f"lora_{match[4]}" if match[4] else match[5])] = entry.shape
    return found


def _method(modules: Modules) -> str:
    parts = {part for module in modules.values() for part in module}
    return next((method for start, method in _METHODS.items() if any(part.startswith(start) for part in parts)), "LoRA")


def _layout(header: Header, method: str) -> str:
    if any_holding(header, ".lora_A.", ".lora_B."):
        return "PEFT's names"
    if any_holding(header, ".lora.down.", ".lora_linear_layer.", "_lora.down."):
        return "diffusers' names"
    owner = "kohya's names" if method == "LoRA" else "LyCORIS' names"
    if any_holding(header, "lora_unet_input_blocks", "lora_unet_middle_block", "lora_unet_output_blocks"):
        return f"{owner} over the official blocks"
    return f"{owner} over diffusers' blocks"


def _where(module: str) -> str:
    return next((tower for tower, starts in _TOWERS if module.removeprefix("base_model.model.").startswith(starts)), "UNet")


def _rank(modules: Modules) -> str:
    ranks = {_small(parts)[0] for parts in modules.values() if _small(parts)}
    if not ranks:
        return "without a rank"
    return f"rank {min(ranks)}" if len(ranks) == 1 else f"ranks {min(ranks)} to {max(ranks)}"


def _small(parts: dict[str, Shape]) -> Shape:
    return next((parts[part] for part in _SMALL if parts.get(part)), ())


def _model(modules: Modules) -> str:
    """The model by what its cross-attention reads, by the width of its last block, or by its towers."""
    if any("double_blocks" in name or "single_transformer_blocks" in name for name in modules):
        return "Flux"
    if any("joint_blocks" in name or name.startswith(("transformer.transformer_blocks", "lora_transformer_")) for name in modules):
        return "a diffusion transformer (SD 3 or another)"
    widths = {_reads(parts) for name, parts in modules.items() if _CROSS_KEY.fullmatch(name)}
    if len(widths) == 1:
        return CROSS.get(widths.pop(), "")
    if any(_LAST_BLOCK.fullmatch(name) and _gives(parts) == 320 for name, parts in modules.items()):
        return CROSS[2048]
    return _model_by_towers(modules)


def _model_by_towers(modules: Modules) -> str:
    if any(_where(name) == "text tower 2" or name.startswith("lora_te1_") for name in modules):
        return CROSS[2048]
    widths = {_reads(parts) for name, parts in modules.items() if _where(name) == "text tower 1" and name.endswith("q_proj")}
    return {frozenset({768}): "SD 1.x or SDXL base (CLIP ViT-L/14)", frozenset({1024}): "SD 2.x"}.get(frozenset(widths), "")


def _reads(parts: dict[str, Shape]) -> int:
    """How wide the input of a module is."""
    if "lokr_w1" in parts or "lokr_w1_b" in parts:
        sides = [parts.get(whole) or parts.get(f"{whole}_b") or (0, 0) for whole in ("lokr_w1", "lokr_w2")]
        return sides[0][-1] * sides[1][-1]
    return next(iter(_small(parts)[1:2]), 0)


def _gives(parts: dict[str, Shape]) -> int:
    """How wide the output of a module is; LoHa's first factor is transposed beside a core tensor."""
    sides = next((parts[part] for part in ("lora_B", "up", "hada_w1_a") if parts.get(part)), (0, 0))
    return sides[1 if "hada_t1" in parts else 0]


def _embedding(header: Header) -> Identity | None:
    small, large = shape(header, "clip_l"), shape(header, "clip_g")
    if len(large) == 2:
        return _inversion("SDXL base", "clip_l and clip_g" if small else "clip_g alone", large[0])
    names = list(header.tensors)
    sides = shape(header, names[0]) if len(names) == 1 else ()
    if not 1 <= len(sides) <= 2 or sides[-1] not in (768, 1024, 1280):
        return None
    model = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL base"}[sides[-1]]
    if names[0] == "emb_params":
        return _inversion(model, "emb_params", sides[0] if len(sides) > 1 else 1)
    half = {768: "SD 1.x, or for CLIP-L of SDXL", 1280: "bigG of SDXL"}.get(sides[-1], model)
    return _inversion(half, f"diffusers' layout (token {names[0][:40]!r})", sides[0] if len(sides) > 1 else 1)


def _inversion(model: str, layout: str, vectors: int) -> Identity:
    details = (f"{vectors:,} vector{'s' if vectors != 1 else ''}",)
    return Identity("embedding", model, layout, f"textual inversion embedding for {model}", details, remedy=_EMBEDDING)
