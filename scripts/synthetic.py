"""Writes a checkpoint in an official layout with values drawn from the tensors' names, for tests and benchmarks.

    python -m scripts.synthetic sd_xl_base_1.0 --out base.safetensors                # full size: 6.9 GB
    python -m scripts.synthetic sd_xl_base_1.0 --out tiny.safetensors --scale tiny   # all its names, a fraction of its widths
    python -m scripts.synthetic sdxl_vae --out vae.safetensors

Names and shapes are those of the modules on the meta device. A scaled file carries its numbers as `ldm.family`. Memory stays under
1 GB: a tensor is drawn when its turn comes, in pieces, each from a generator seeded by the name and the piece's number.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from ldm.checkpoint.identity import FAMILY_KEY
from ldm.checkpoint.loading import Part, family_parts
from ldm.checkpoint.writer import Item, head, ordered, save
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family, TowerShape, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE

Array = np.ndarray[Any, np.dtype[Any]]

FILES = {"sd_xl_base_1.0": "sdxl-base", "sd_xl_refiner_1.0": "sdxl-refiner", "sdxl_vae": "sdxl-base"}
HEADERS = {"sd_xl_base_1.0": 402_436}  # bytes of JSON in the official file, which is not padded: its data starts at 402,444
PIECE = 2**20  # values a generator
DTYPES = ("F16", "BF16", "F32", "mixed")
# The last layer of each residual branch: small, so that a stream through 70 transformer blocks stays of order one.
BRANCH_ENDS = tuple(f"{layer}.weight" for layer in ("to_out.0", "net.2", "proj_out", "out_layers.3", "out_proj", "fc2", "c_proj", "conv2"))


def write(
    path: str | os.PathLike[str],
    family: Family,
    *,
    dtype: str = "F16",
    position_ids: str | None = "F16",
    logit_scale: bool = True,
    metadata: dict[str, str] | None = None,
    embed_family: bool | None = None,
    header_bytes: int | None = None,
    pad: int = 8,
    overwrite: bool = False,
) -> Path:
    """A full checkpoint of a family, in `dtype` (F16, BF16, F32, F64 or mixed).

    `position_ids` is the dtype of that leftover, None leaves it out; `embed_family` None: where the numbers are not official ones;
    `header_bytes` stretches the metadata until the unpadded header has that length. Data follows at a multiple of `pad` otherwise.
    """
    shapes = {name: shape for part in parts(family) for name, shape in file_shapes(part)}
    items = [_item(name, shape, dtype) for name, shape in shapes.items()] + _extras(family, dtype, position_ids, logit_scale)
    said = dict(metadata or {})
    if embed_family is True or (embed_family is None and not is_official(family)):
        said[FAMILY_KEY] = json.dumps(family.to_dict())
    if header_bytes is not None:
        said["modelspec.thumbnail"] = ""
        said["modelspec.thumbnail"] = "=" * (header_bytes + 8 - len(head(ordered(items), said, 1)))
        pad = 1
    return save(path, items, said, overwrite=overwrite, pad=pad)


def write_vae(path: str | os.PathLike[str], family: Family, *, dtype: str = "F32", ema: bool = True, overwrite: bool = False) -> Path:
    """A VAE alone as sdxl_vae.safetensors has it, with the two EMA scalars that are found there."""
    with torch.device("meta"):
        part = Part(VAE(family.vae), "", torch.float32)
    items = [_item(name, shape, dtype) for name, shape in file_shapes(part)]
    if ema:
        items.append(Item("model_ema.decay", "F32", (), np.float32(0.9999).tobytes()))
        items.append(Item("model_ema.num_updates", "I32", (), np.int32(1).tobytes()))
    return save(path, items, overwrite=overwrite)


def parts(family: Family) -> list[Part]:
    """The family's modules on the meta device with their places in a file."""
    with torch.device("meta"):
        towers = [CLIPText(shape) for shape in family.towers]
        unet, vae = UNet(family.unet), VAE(family.vae)
    return family_parts(family, unet=unet, vae=vae, towers=towers, dtype=torch.float32, vae_dtype=torch.float32)


def file_shapes(part: Part) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a part as the file has it; thirds of rows are one tensor there."""
    for name, tensor in part.module.state_dict().items():
        file_name, third = part.source(name)
        if third is None:
            yield file_name, tuple(tensor.shape)
        elif third == 0:
            yield file_name, (3 * tensor.shape[0], *tensor.shape[1:])


def tiny(name: str = "sdxl-base") -> Family:
    """An official family with all its layers, and so all its names, at a fraction of its widths."""
    family = load_family(name)
    towers = tuple(_tiny_tower(tower) for tower in family.towers)
    numbers = sum(1 if number == "aesthetic" else 2 for number in family.numbers)
    unet = replace(
        family.unet,
        model_channels=16,
        head_dim=8,
        context_dim=sum(tower.width for tower in towers),
        vector_dim=towers[-1].projection + 16 * numbers,
        norm_groups=8,
    )
    vae = replace(family.vae, ch=16, norm_groups=8)
    return replace(family, name=f"{name}-tiny", title=f"{family.title}, tiny", size_embedding=16, unet=unet, vae=vae, towers=towers)


def _tiny_tower(tower: TowerShape) -> TowerShape:
    width = 32 if tower.projection else 16
    return replace(tower, width=width, heads=4, mlp=4 * width, projection=tower.projection and 32)


def is_official(family: Family) -> bool:
    return family in [load_family(name) for name in set(FILES.values())]


def values(name: str, shape: Sequence[int], dtype: str) -> Array:
    """The tensor `name` as a flat array of the dtype's bits: the same on every machine, in every file."""
    mean, std = map(np.float32, spread(name, shape))
    count = math.prod(shape)
    if count < len(quantiles()):
        return _rounded(mean + std * quantiles()[_ranks(name, 0, count)], dtype)
    table = _rounded(mean + std * quantiles(), dtype)
    out = np.empty(count, table.dtype)
    for start in range(0, count, PIECE):
        piece = out[start : start + PIECE]
        np.take(table, _ranks(name, start // PIECE, len(piece)), out=piece, mode="clip")
    return out


def _ranks(name: str, piece: int, count: int) -> Array:
    """16 random bits a value, seeded by the name and the piece."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{piece}".encode()).digest()[:16], "little")
    return np.random.SFC64(seed).random_raw(-(-count // 4)).astype("<u8", copy=False).view("<u2")[:count]


@cache
def quantiles() -> Array:
    """The normal distribution at 65,536 equal steps of probability, float32: 16 random bits choose one, ten times as fast as drawing."""
    upper = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)], np.float32)
    return np.concatenate([-upper[::-1], upper])


def spread(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor's values: activations stay of order one through the whole network."""
    if len(shape) < 2:
        return (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)  # the other vectors are the norms' weights
    if "token_embedding" in name:
        return 0.0, 0.5
    if "position" in name:
        return 0.0, 0.1
    fan_in = shape[0] if name.endswith("text_projection") else math.prod(shape[1:])
    return 0.0, (0.3 if name.endswith(BRANCH_ENDS) else 1.0) / math.sqrt(fan_in)


def _numpy_dtype(dtype: str) -> str:
    return {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]


def _rounded(x: Array, dtype: str) -> Array:
    """float32 in a dtype, to nearest even; bfloat16 as its 16 bits."""
    if dtype != "BF16":
        return x.astype(_numpy_dtype(dtype))
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def _item(name: str, shape: tuple[int, ...], dtype: str) -> Item:
    kind = ("F16", "BF16", "F32")[hashlib.sha256(name.encode()).digest()[0] % 3] if dtype == "mixed" else dtype
    return Item(name, kind, shape, partial(_bytes, name, shape, kind))


def _bytes(name: str, shape: tuple[int, ...], dtype: str) -> memoryview:
    return values(name, shape, dtype).data


def _extras(family: Family, dtype: str, position_ids: str | None, logit_scale: bool) -> list[Item]:
    """What official files carry beside the networks."""
    kind = "F32" if dtype == "mixed" else dtype
    items = []
    for tower in family.towers:
        if tower.layout == "hf" and position_ids is not None:
            ids = np.arange(tower.length).astype("<i8" if position_ids == "I64" else _numpy_dtype(position_ids))
            items.append(Item(f"{tower.prefix}text_model.embeddings.position_ids", position_ids, (1, tower.length), ids.tobytes()))
        if tower.layout == "open_clip" and logit_scale:
            items.append(Item(f"{tower.prefix}logit_scale", kind, (), partial(_bytes, f"{tower.prefix}logit_scale", (), kind)))
    return items


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint in an official layout with values drawn from the tensors' names.")
    parser.add_argument("file", choices=list(FILES), help="the official file whose layout is written")
    parser.add_argument("--out", type=Path, required=True, help="where to")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="official widths, or a fraction of them")
    parser.add_argument("--dtype", choices=DTYPES, help="default: F16, for a VAE F32")
    parser.add_argument("--position-ids", choices=("F16", "F32", "I64"), default="F16", help="dtype of position_ids")
    parser.add_argument("--no-position-ids", action="store_true", help="leave position_ids out")
    parser.add_argument("--no-logit-scale", action="store_true", help="leave logit_scale out")
    parser.add_argument("--misaligned", action="store_true", help="a header of the official file's length, without padding")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    family = load_family(FILES[options.file]) if options.scale == "full" else tiny(FILES[options.file])
    if options.file == "sdxl_vae":
        write_vae(options.out, family, dtype=options.dtype or "F32", overwrite=options.overwrite)
    else:
        write(
            options.out,
            family,
            dtype=options.dtype or "F16",
            position_ids=None if options.no_position_ids else options.position_ids,
            logit_scale=not options.no_logit_scale,
            metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.title": f"synthetic {options.file}"},
            header_bytes=HEADERS.get(options.file, 402_436) if options.misaligned else None,
            overwrite=options.overwrite,
        )
    print(options.out)


if __name__ == "__main__":
    main()
