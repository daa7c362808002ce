"""The weights of a model, read from its file, and the VAE's from another where one is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ldm.checkpoint.digests import verify
from ldm.checkpoint.families import vae_prefix
from ldm.checkpoint.loading import Part, family_parts, fill, match, tensor_bytes
from ldm.checkpoint.safetensors import Header
from ldm.devices import Place
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.runtime.notes import note

OTHERS = ("model.diffusion_model.", "conditioner.", "cond_stage_model.")  # what a file given for its VAE may hold beside it
Progress = Callable[[int, int], None]
Source = tuple[Header, Sequence[Part], Sequence[str]]  # a file, what is filled from it, and the prefixes of what is left in it


def read_weights(
    header: Header, family: Family, place: Place, *, vae: Header | None, verified: bool, progress: Progress | None
) -> tuple[UNet, VAE, list[CLIPText]]:
    """The family's networks with the file's weights; `vae` is the file that the VAE is in, if it is another."""
    with torch.device("meta"):
        unet, autoencoder, towers = UNet(family.unet), VAE(family.vae), [CLIPText(shape) for shape in family.towers]
    parts = family_parts(family, unet=unet, vae=autoencoder, towers=towers, dtype=place.dtype, vae_dtype=place.vae_dtype)
    sources: list[Source] = [(header, parts, ())] if vae is None else _apart(header, parts, autoencoder, vae)
    for file, _, _ in sources if verified else ():
        _verify(file, progress)
    for source in sources:
        _fill(*source, place.device, progress)
    return unet, autoencoder, towers


def _apart(header: Header, parts: Sequence[Part], autoencoder: VAE, vae: Header) -> list[Source]:
    inside = next(part for part in parts if part.module is autoencoder)
    alone = [Part(autoencoder, vae_prefix(vae), inside.dtype)]
    match(vae, alone, OTHERS)  # refused before the large file is read
    return [(header, [part for part in parts if part is not inside], [inside.prefix]), (vae, alone, OTHERS)]


def _verify(header: Header, progress: Progress | None) -> None:
    """Raises FileError where the file's sha256 differs from the known one."""
    if verify(header, progress and (lambda count: progress(count, header.size))) is None:
        note(f"{header.path.name}: no sha256 of this file is known: it is loaded as it is")


def _fill(header: Header, parts: Sequence[Part], elsewhere: Sequence[str], device: torch.device, progress: Progress | None) -> None:
    total = tensor_bytes(header, parts)
    fill(header, parts, device=device, elsewhere=elsewhere, progress=progress and (lambda count: progress(count, total)))
