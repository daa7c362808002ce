"""A UNet with its large linear layers in 8 bits: it stands beside the one it is made of, and neither knows of the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ldm.devices import dtype_of, name_of
from ldm.errors import InputError
from ldm.models.unet import TransformerBlock, UNet
from ldm.ops.fp8 import GEGLUFP8, AddNormFP8, LinearFP8
from ldm.ops.int8 import LinearInt8
from ldm.ops.linear import plain

Kind = Literal["int8", "fp8"]
KEPT = ("attn2.to_k", "attn2.to_v")  # the text's keys and values, made once a prompt: nothing to gain
IN_TURNS = "weights that are read when their turn comes stay as they are: leave out --max-memory, or give it more"


class Site(NamedTuple):
    """A layer of a transformer block, and where it is."""

    owner: nn.Module
    name: str
    layer: nn.Linear


def quantise(unet: UNet, kind: Kind) -> UNet:
    """A UNet that shares all tensors of `unet` but the weights of its transformer blocks' linear layers, which it has in 8 bits.

    Everything else computes as before: convolutions, norms, embeddings, the projections in and out of the blocks, the text's keys and
    values. Its state_dict() is refused: what it would give is rounded. Raises InputError for weights that are not in memory, and for
    layers that are not as they were built.
    """
    if any(each.is_meta for each in unet.parameters()):
        raise InputError(f"{'dtype' if kind == 'int8' else 'speed'} {kind}: {IN_TURNS}")
    memo: dict[int, Any] = {id(each): each for each in (*unet.parameters(), *unet.buffers())}
    copied = copy.deepcopy(unet, memo)
    make: Callable[[nn.Linear], nn.Module] = LinearInt8.of if kind == "int8" else LinearFP8.of
    for block in (each for each in copied.modules() if isinstance(each, TransformerBlock)):
        for site in list(sites(block)):
            if kind == "int8" or LinearFP8.fits(site.layer):
                setattr(site.owner, site.name, make(site.layer))
        if kind == "fp8":
            _hand_on_rows(block)
    hold: Any = copied.register_state_dict_pre_hook
    hold(_refuse)
    return copied


def sites(block: nn.Module) -> Iterator[Site]:
    """The linear layers of a transformer block that are worth it."""
    for path, layer in block.named_modules():
        if isinstance(layer, nn.Linear) and not path.endswith(KEPT):
            owner, _, name = path.rpartition(".")
            if not plain(layer, type(layer)):
                raise InputError(f"a layer with a hook cannot be quantised: {path}: remove it first")
            yield Site(block.get_submodule(owner), name, layer)


def added(unet: UNet, kind: Kind) -> int:
    """Bytes of the weights that `quantise` makes, scales with them; int8: less those that they stand for, which `reduced` lets go."""
    layers = [site.layer for block in unet.modules() if isinstance(block, TransformerBlock) for site in sites(block)]
    weights = [layer.weight for layer in layers if kind == "int8" or LinearFP8.fits(layer)]
    made = sum(each.numel() + torch.float32.itemsize * len(each) for each in weights)
    return made - sum(each.nbytes for each in weights) if kind == "int8" else made


def _hand_on_rows(block: TransformerBlock) -> None:
    """What is quantised in the kernel before is handed on as rows: by the norms, and by the gate."""
    readers = {"norm1": (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v), "norm2": (block.attn2.to_q,)}
    for name, layers in readers.items():
        if all(isinstance(layer, LinearFP8) for layer in layers):
            setattr(block, name, AddNormFP8.of(getattr(block, name)))
    net: Any = block.ff.net
    if isinstance(net[0].proj, LinearFP8) and isinstance(net[2], LinearFP8):
        setattr(block, "norm3", AddNormFP8.of(block.norm3))  # noqa: B010
        net[0] = GEGLUFP8(net[0].proj)


def reduced(unet: UNet, dtype: torch.dtype) -> UNet:
    """`unet` in int8, everything else in `dtype` and in memory of its own: the floats, one allocation, go with `unet`."""
    made = quantise(unet, "int8")
    for name, each in list(made.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(owner), leaf, nn.Parameter(each.detach().to(dtype, copy=True), requires_grad=False))
    return made


def precision(unet: UNet) -> str:
    """The name of the dtype that the network computes in, "int8" where its linear layers do."""
    return "int8" if any(isinstance(each, LinearInt8) for each in unet.modules()) else name_of(dtype_of(unet))


def check_free(unet: UNet) -> None:
    """Raises InputError where the UNet must stay what it is."""
    if precision(unet) == "int8":
        raise InputError("a model in dtype int8 stays on the CPU as it was loaded: load it again")


def _refuse(module: nn.Module, *_: Any) -> None:
    raise InputError("state_dict of a quantised UNet: its weights are rounded to 8 bits: load the model in float32 to save it")
