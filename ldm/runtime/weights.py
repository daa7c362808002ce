"""The weights of a model, read from its file, and the VAE's from another where one is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ldm.checkpoint.digests import verify
from ldm.checkpoint.families import vae_prefix
from ldm.checkpoint.loading import Part, family_parts, match
from ldm.checkpoint.safetensors import Header
from ldm.devices import Place
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.runtime import heap
from ldm.runtime.keeping import Keeper, Progress, Source
from ldm.runtime.notes import note
from ldm.runtime.paths import RESIDENT, Path, stored_in

OTHERS = ("model.diffusion_model.", "conditioner.", "cond_stage_model.")  # what a file given for its VAE may hold beside it


def read_weights(
    header: Header,
    family: Family,
    place: Place,
    *,
    vae: Header | None,
    verified: bool,
    progress: Progress | None,
    way: tuple[Path, int | None, int] = (RESIDENT, None, 0),
) -> tuple[tuple[UNet, VAE, list[CLIPText]], Keeper]:
    """The family's networks with the file's weights, and who keeps them, by a `way` that `plan` gives.

    `vae` is the file that the VAE is in, if it is another.
    """
    with torch.device("meta"):
        unet, autoencoder, towers = UNet(family.unet), VAE(family.vae), [CLIPText(shape) for shape in family.towers]
    parts = family_parts(family, unet=unet, vae=autoencoder, towers=towers, dtype=place.dtype, vae_dtype=place.vae_dtype)
    if place.int8:  # from what the file has: the floats are gone before the run
        parts = [replace(part, dtype=stored_in(header) or part.dtype) if part.module is unet else part for part in parts]
    sources: list[Source] = [(header, parts, ())] if vae is None else _apart(header, parts, autoencoder, vae)
    for file, _, _ in sources if verified else ():
        _verify(file, progress)
    keeper = Keeper(sources, place.device, *way)
    keeper.fill(progress)
    if place.int8:
        from ldm.runtime.quantise import reduced

        unet, keeper = reduced(unet, place.dtype), Keeper(device=place.device)
        heap.trim()  # what quantising has freed
    return (unet, autoencoder, towers), keeper


def _apart(header: Header, parts: Sequence[Part], autoencoder: VAE, vae: Header) -> list[Source]:
    inside = next(part for part in parts if part.module is autoencoder)
    alone = [Part(autoencoder, vae_prefix(vae), inside.dtype)]
    match(vae, alone, OTHERS)  # refused before the large file is read
    return [(header, [part for part in parts if part is not inside], [inside.prefix]), (vae, alone, OTHERS)]


def _verify(header: Header, progress: Progress | None) -> None:
    """Raises FileError where the file's sha256 differs from the known one."""
    if verify(header, progress and (lambda count: progress(count, header.size))) is None:
        note(f"{header.path.name}: no sha256 of this file is known: it is loaded as it is")
