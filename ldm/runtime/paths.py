"""The ways in which a model can be in memory: which of its weights stay, and which come from the file when their turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ldm.checkpoint.identity import UNET
from ldm.devices import dtype_of

if TYPE_CHECKING:
    from ldm.checkpoint.safetensors import Header


@dataclass(frozen=True)
class Path:
    """Each field is one thing more that is not in memory all the time, in the order in which they are given up."""

    towers: bool = False  # read layer by layer for every text
    keys: bool = False  # the weights of the text's keys and values, read for every prompt
    vae: bool = False  # read for every picture, which is decoded in bands
    anew: bool = False  # what the CPU's convolutions keep of their weights, made at every call
    blocks: bool = False  # the UNet's, read for every evaluation,
    kept: int = 0  # but for so many of the first
    stored: torch.dtype | None = None  # in which those are kept, where it is narrower than what they compute in


RESIDENT = Path()
KINDS = ("towers", "keys", "vae", "anew", "blocks")
LEAST = Path(towers=True, keys=True, vae=True, anew=True, blocks=True)


class Member(NamedTuple):
    """A block of a network: the call in which it works, and the names of its weights in the network."""

    module: nn.Module
    call: str  # of the block
    names: tuple[str, ...]


Turns = tuple[str, list[Member]]  # the network's call, and its blocks in the order in which they work


def turns(network: nn.Module, path: Path) -> list[Turns]:
    """The blocks of a network that are not in memory all the time; a VAE is one, without a call."""
    from ldm.models.clip import CLIPText, Embeddings, Layer
    from ldm.models.unet import CrossAttention, Downsample, ResBlock, TransformerBlock, UNet, Upsample
    from ldm.models.vae import VAE

    found: list[Turns] = []
    if isinstance(network, VAE) and path.vae:
        found.append(("", [Member(network, "", tuple(network.state_dict()))]))
    if isinstance(network, CLIPText) and path.towers:
        found.append(("forward", list(_members(network, (Embeddings, Layer)))))
    if isinstance(network, UNet) and path.keys:
        found.append(("keys", list(_members(network, (CrossAttention,), "keys"))))
    if isinstance(network, UNet) and path.blocks:
        found.append(("forward", list(_members(network, (ResBlock, TransformerBlock, Downsample, Upsample)))))
    return found


def concerning(network: nn.Module, path: Path) -> object:
    """What two paths must have alike to keep a network in the same way."""
    kept = _kept(network, path)
    return [(call, len(blocks)) for call, blocks in turns(network, path)], kept, path.stored if kept else None


def _kept(network: nn.Module, path: Path) -> int:
    from ldm.models.unet import UNet

    return path.kept if isinstance(network, UNet) and path.blocks else 0


def staying(network: nn.Module, path: Path, call: str) -> int:
    """How many of the first blocks stay in memory ready for use."""
    return _kept(network, path) if call == "forward" and not narrower(path, dtype_of(network)) else 0


def holding(network: nn.Module, path: Path, call: str) -> int:
    """How many of the first blocks stay in memory as the file has them, and are converted at every turn."""
    return _kept(network, path) if call == "forward" and narrower(path, dtype_of(network)) else 0


def members(network: nn.Module, path: Path, call: str) -> list[Member]:
    """The blocks that take turns in one call of a network."""
    return next((found for name, found in turns(network, path) if name == call), [])


def absent(network: nn.Module, path: Path) -> frozenset[str]:
    """The names of the weights that are not filled when the model is loaded."""
    return frozenset(
        name for call, blocks in turns(network, path) for member in blocks[staying(network, path, call) :] for name in member.names
    )


def narrower(path: Path, dtype: torch.dtype) -> bool:
    """Whether what is kept is converted at every turn."""
    return path.stored is not None and path.stored.itemsize < dtype.itemsize


def stored_in(header: Header) -> torch.dtype | None:
    """The dtype of all of the UNet's tensors in a file; None where they have several."""
    from ldm.checkpoint.loading import DTYPES

    found = {entry.dtype for name, entry in header.tensors.items() if name.startswith(UNET)}
    return DTYPES.get(found.pop()) if len(found) == 1 else None


def _members(network: nn.Module, kinds: tuple[type[nn.Module], ...], call: str = "forward") -> Iterator[Member]:
    """Modules of some kinds, in the order in which they stand; weights of other calls than theirs are left out."""
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            names = [f"{name}.{each}" for each in module.state_dict() if _own(each, module, call)]
            yield Member(module, call, tuple(names))


def _own(name: str, module: nn.Module, call: str) -> bool:
    """K and V of a text are made by "keys", shifts before any block works."""
    from ldm.models.unet import ResBlock, TransformerBlock

    if call == "keys":
        return name.startswith(("to_k.", "to_v."))
    if isinstance(module, ResBlock):
        return not name.startswith("emb_layers.")
    return not (isinstance(module, TransformerBlock) and name.startswith(("attn2.to_k.", "attn2.to_v.")))
