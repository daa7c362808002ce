"""OpenCLIP's tensor names beside those of `ldm.models.clip`, which are transformers': the one renaming in the engine, both ways.

Source: open_clip `src/open_clip/transformer.py`; `in_proj` stacks the rows of q, k and v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection": "text_projection",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_sources(layers: int) -> dict[str, tuple[str, int | None]]:
    """Our name -> (the file's name, which third of its rows; None: all of them)."""
    sources: dict[str, tuple[str, int | None]] = {ours: (theirs, None) for ours, theirs in TOP.items()}
    for i in range(layers):
        mine, file = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            sources |= {f"{mine}.{ours}.{kind}": (f"{file}.{theirs}.{kind}", None) for ours, theirs in LAYER.items()}
            sources |= {f"{mine}.self_attn.{name}_proj.{kind}": (f"{file}.attn.in_proj_{kind}", third) for third, name in enumerate("qkv")}
    return sources


def to_open_clip(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A tower's state under OpenCLIP's names, as the official files keep bigG."""
    import torch

    parts: dict[str, list[Tensor]] = {}
    for ours, (theirs, _) in open_clip_sources(layers).items():  # q, k, v come in this order
        parts.setdefault(theirs, []).append(state[ours])
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}


def from_open_clip(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The inverse of `to_open_clip`."""
    sources = open_clip_sources(layers).items()
    return {ours: state[theirs] if third is None else state[theirs].chunk(3)[third] for ours, (theirs, third) in sources}
