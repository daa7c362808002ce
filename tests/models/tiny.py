"""Families of tiny width with the official structure, for parity at each stage in seconds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ldm.models.shapes import Family, load_family


def tiny(name: str) -> Family:
    """An official family with its levels and depths, and a fraction of its widths."""
    family = load_family(name)
    towers = tuple(
        replace(tower, width=width, layers=3, heads=4, mlp=4 * width, projection=tower.projection and 24)
        for tower, width in zip(family.towers[::-1], (32, 16), strict=False)
    )[::-1]
    numbers = sum(1 if number == "aesthetic" else 2 for number in family.numbers)
    unet = replace(
        family.unet,
        model_channels=16,
        transformer_depth=tuple(min(depth, 2) for depth in family.unet.transformer_depth),
        middle_depth=2,
        head_dim=8,
        context_dim=sum(tower.width for tower in towers),
        vector_dim=24 + numbers * 8,
        norm_groups=8,
    )
    return replace(family, size_embedding=8, unet=unet, vae=replace(family.vae, ch=16, norm_groups=8), towers=towers)


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter drawn: nothing is left at one or zero, where a fault could hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(
                noise * fan_in**-0.5 if parameter.dim() > 1 else 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            )
    return module.eval()
