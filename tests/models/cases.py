"""One input for each network at tiny width: what ours gives for it, and what other people's libraries give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.ops.embedding import sinusoid
from tests.models.tiny import drawn, tiny

FAMILIES = ("sdxl-base", "sdxl-refiner")
T = 317.0


def unet(family: Family) -> UNet:
    return drawn(UNet(family.unet), seed=1)  # type: ignore[return-value]


def vae(family: Family) -> VAE:
    return drawn(VAE(family.vae), seed=2)  # type: ignore[return-value]


def towers(family: Family) -> list[CLIPText]:
    return [drawn(CLIPText(shape), seed=3 + i) for i, shape in enumerate(family.towers)]  # type: ignore[misc]


def inputs(family: Family) -> dict[str, Tensor]:
    """x, context, pooled vector, size numbers, image, and token ids with an early and a late end token."""
    generator = torch.Generator().manual_seed(7)
    numbers = sum(1 if number == "aesthetic" else 2 for number in family.numbers)
    ids = torch.randint(0, 49000, (2, 77), generator=generator)
    ids[:, 0], ids[0, 20:], ids[1, 60] = 49406, 49407, 49407
    return {
        "x": torch.randn(2, 4, 16, 24, generator=generator),
        "context": torch.randn(2, 77, family.unet.context_dim, generator=generator),
        "pooled": torch.randn(2, 24, generator=generator),
        "numbers": torch.rand(2, numbers, generator=generator) * 1024,
        "image": torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1,
        "z": torch.randn(2, 4, 8, 6, generator=generator),
        "ids": ids,
    }


@torch.no_grad()
def ours(name: str) -> dict[str, Tensor]:
    """By stage: UNet, VAE encode and decode, each tower's hidden states and pooled vector."""
    family = tiny(name)
    given, out = inputs(family), {}
    fourier = sinusoid(given["numbers"].flatten(), family.size_embedding).reshape(2, -1)
    network, autoencoder = unet(family), vae(family)
    prepared = network.prepare(given["context"], torch.cat([given["pooled"], fourier], 1), [999.0, T])
    out["unet"] = network(given["x"], prepared, 1)
    out["vae.mean"], out["vae.logvar"] = autoencoder.encode(given["image"])
    out["vae.decode"] = autoencoder.decode(given["z"])
    for i, tower in enumerate(towers(family)):
        out |= {f"tower{i}.{key}": value for key, value in tower(given["ids"])._asdict().items() if value is not None}
    return out


@torch.no_grad()
def theirs(name: str) -> dict[str, Tensor]:
    """The same stages by diffusers and transformers."""
    from tests.models import foreign

    family = tiny(name)
    given, out = inputs(family), {}
    network = foreign.diffusers_unet(unet(family), family.size_embedding)
    added: dict[str, Any] = {"text_embeds": given["pooled"], "time_ids": given["numbers"]}
    out["unet"] = network(given["x"], T, given["context"], added_cond_kwargs=added).sample
    autoencoder = foreign.diffusers_vae(vae(family))
    moments = autoencoder.encode(given["image"]).latent_dist
    out["vae.mean"], out["vae.logvar"] = moments.mean, moments.logvar
    out["vae.decode"] = autoencoder.decode(given["z"]).sample
    for i, tower in enumerate(towers(family)):
        text = foreign.transformers_tower(tower)(given["ids"], output_hidden_states=True)
        out[f"tower{i}.penultimate"], out[f"tower{i}.last"] = text.hidden_states[-2:]
        if tower.shape.projection:
            out[f"tower{i}.pooled"] = text.text_embeds
    return out
