"""LoRA files in kohya's layout over the official blocks: read, merged into the networks' weights, and written.

A file holds for each adapted layer `lora_down.weight` (r, in), `lora_up.weight` (out, r) and `alpha`; the layer's weight moves by
alpha / r * up @ down (Hu et al. 2022, section 4.1). Names are the layer's own with underscores for dots, after `lora_unet_`, and after
`lora_te1_` and `lora_te2_` for the text towers (`lora_te_` where there is one). Source: sd-scripts `networks/lora.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint.loading import DTYPES
from ldm.checkpoint.reading import Copy, read
from ldm.checkpoint.safetensors import Header, read_header
from ldm.checkpoint.writer import Item, tensor_items
from ldm.errors import FileError, listed

_NAME = re.compile(r"(lora_(?:unet|te[12]?)_\w+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_PARTS = ("lora_down.weight", "lora_up.weight")


@dataclass(frozen=True)
class Pair:
    """What one layer moves by: down (r, in, ...), up (out, r, ...), and alpha, which is r where a file does not say."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """(out, in, ...) float32."""
        flat = self.up.float().flatten(1) @ self.down.float().flatten(1)  # (out, r) (r, in * kernel)
        return (flat * (self.alpha / self.rank)).view(self.up.shape[0], *self.down.shape[1:])


def layers(unet: nn.Module, towers: Sequence[nn.Module]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every layer that a LoRA can move, by the name that it has in a file."""
    prefixes = ["lora_te_"] if len(towers) == 1 else [f"lora_te{k + 1}_" for k in range(len(towers))]
    return {
        prefix + name.replace(".", "_"): layer
        for prefix, network in [("lora_unet_", unet), *zip(prefixes, towers, strict=True)]
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def read_lora(path: str | Path) -> dict[str, Pair]:
    """The pairs of a file by layer, on the CPU in the file's dtype. Raises FileError for what is no whole LoRA of this layout (E3007)."""
    header = read_header(path)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _tensors(header).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise FileError(f"{header.path}: tensor {name[:80]!r} is not of a LoRA in kohya's layout: convert the file first", "E3007")
        found.setdefault(match[1], {})[match[2]] = tensor
    return {layer: _pair(header, layer, parts) for layer, parts in found.items()}


def _tensors(header: Header) -> dict[str, Tensor]:
    wrong = [f"{name} {entry.dtype}" for name, entry in header.tensors.items() if entry.dtype not in DTYPES]
    if wrong:
        raise FileError(f"{header.path}: of a dtype that is not read: {listed(wrong)}: give F16, BF16 or F32", "E3007")
    made = {name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype]) for name, entry in header.tensors.items()}
    read(header, [Copy(name, header.tensors[name].start, tensor.dtype, tensor.view(-1)) for name, tensor in made.items()])
    return made


def _pair(header: Header, layer: str, parts: Mapping[str, Tensor]) -> Pair:
    if any(part not in parts for part in _PARTS):
        raise FileError(f"{header.path}: {layer} has only {', '.join(sorted(parts))}: the file is cut or of another layout", "E3007")
    down, up = (parts[part] for part in _PARTS)
    if down.ndim not in (2, 4) or up.ndim != down.ndim or up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1 or not down.numel():
        what = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise FileError(f"{header.path}: {layer} is of {what}, which do not make a product: the file is damaged", "E3007")
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise FileError(f"{header.path}: {layer}.alpha has {alpha.numel():,} values: it is one number", "E3007")
    return Pair(down, up, down.shape[0] if alpha is None else float(alpha))


@torch.no_grad()
def merge(pairs: Mapping[str, Pair], unet: nn.Module, towers: Sequence[nn.Module], strength: float = 1.0, *, source: str = "LoRA") -> None:
    """Move the weights by `strength` times every pair, the sum in float32. Nothing is moved unless every pair has its layer.

    Raises FileError (E3007) for a layer that the networks do not have, or of another shape; `source` is what it calls the file.
    """
    known = layers(unet, towers)
    wrong = list(_misfits(pairs, known))
    if wrong:
        what = f"{len(wrong)} of {len(pairs)} layers do not fit the model: {listed(wrong)}"
        raise FileError(f"{source}: {what}: use a LoRA made for this model", "E3007")
    for name, pair in pairs.items():
        weight = known[name].weight
        delta = pair.delta().to(weight.device).view(weight.shape)
        weight.copy_(weight.float() + delta * strength)


def _misfits(pairs: Mapping[str, Pair], known: Mapping[str, nn.Linear | nn.Conv2d]) -> Iterator[str]:
    for name, pair in pairs.items():
        shape = (pair.up.shape[0], *pair.down.shape[1:])
        if name not in known:
            yield f"{name} is unknown"
        elif math.prod(shape) != known[name].weight.numel() or shape[:2] != known[name].weight.shape[:2]:
            yield f"{name} is {shape}, the layer {tuple(known[name].weight.shape)}"


def lora_items(pairs: Mapping[str, Pair], dtype: torch.dtype) -> list[Item]:
    """The tensors of a file, for `writer.save`."""
    state: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        parts = {"lora_down.weight": pair.down, "lora_up.weight": pair.up, "alpha": torch.tensor(float(pair.alpha))}
        state |= {f"{name}.{part}": value for part, value in parts.items()}
    return tensor_items(state, dtype)
