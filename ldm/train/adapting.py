"""LoRA while it is learned: frozen layers, each with a product of two thin matrices beside it (Hu et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.checkpoint.lora import Pair, layers
from ldm.models.unet import Downsample, ResBlock, SpatialTransformer, UNet, Upsample
from ldm.train.recipe import LoraRecipe, Target


class Adapted(nn.Module):
    """layer(x) + alpha / r * up(down(x)); up begins at zero, so the first step is that of the layer alone.

    Source of the first values: sd-scripts `networks/lora.py` (Kaiming, a = sqrt 5).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, alpha / rank
        if isinstance(layer, nn.Conv2d):
            kernel: dict[str, tuple[int, ...]] = {"kernel_size": layer.kernel_size, "stride": layer.stride}
            self.lora_down: nn.Module = nn.Conv2d(layer.in_channels, rank, **kernel, padding=layer.padding, bias=False)  # type: ignore[arg-type]
            self.lora_up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_up.get_parameter("weight"))

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.lora_up(self.lora_down(x)) * self.scale

    def learned(self) -> nn.ModuleDict:
        return nn.ModuleDict({"lora_down": self.lora_down, "lora_up": self.lora_up})


def adapt(unet: UNet, towers: Sequence[nn.Module], recipe: LoraRecipe) -> dict[str, Adapted]:
    """Freeze the networks and put an `Adapted` in the place of every layer that the recipe names; by their names in a file."""
    for network in (unet, *towers):
        network.requires_grad_(False)
    chosen = {id(layer) for layer in _targets(unet, towers, recipe.targets)}
    made = {name: Adapted(layer, recipe.rank, recipe.alpha) for name, layer in layers(unet, towers).items() if id(layer) in chosen}
    by_layer = {id(adapted.layer): adapted for adapted in made.values()}
    for network in (unet, *towers):
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if id(child) in by_layer and parent is not by_layer[id(child)]:
                    setattr(parent, name, by_layer[id(child)])
    return made


def _targets(unet: UNet, towers: Sequence[nn.Module], targets: Sequence[Target]) -> Iterator[nn.Module]:
    """The layers of the recipe's targets. "convolution" is every layer of residual blocks and of the steps between resolutions.

    Source: sd-scripts `networks/lora.py`, whose modules these are; the first and the last convolution are of none of them.
    """
    kinds = {"transformer": (SpatialTransformer,), "convolution": (ResBlock, Downsample, Upsample)}
    chosen = tuple(kind for target in targets for kind in kinds.get(target, ()))
    yield from (layer for block in unet.modules() if isinstance(block, chosen) for layer in block.modules())
    if "towers" in targets:
        yield from (layer for tower in towers for layer in tower.modules())


def pairs(adapted: Mapping[str, Adapted], learned: Mapping[str, Tensor]) -> dict[str, Pair]:
    """For a file: of each layer what was learned, as it stands in the state of `gathered`."""
    both = {name: [learned[f"{name}.{part}.weight"] for part in ("lora_down", "lora_up")] for name in adapted}
    return {name: Pair(down, up, adapted[name].scale * len(down)) for name, (down, up) in both.items()}


def gathered(adapted: Mapping[str, Adapted]) -> nn.ModuleDict:
    """All that is learned, as one module: its state is what a run saves."""
    return nn.ModuleDict({name: each.learned() for name, each in adapted.items()})


@torch.no_grad()
def first_values(adapted: Mapping[str, Adapted], seed: int) -> None:
    """The down matrices drawn again from `seed`, whatever was drawn before."""
    random = torch.Generator().manual_seed(seed)
    for each in adapted.values():
        nn.init.kaiming_uniform_(each.lora_down.get_parameter("weight"), a=5**0.5, generator=random)
