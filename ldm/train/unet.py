"""The third stage: the UNet predicts the noise of latents, with the text and the true sizes and crops as conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ldm.models.unet import ResBlock, SpatialTransformer, UNet
from ldm.ops.embedding import sinusoid
from ldm.train.draws import generator, order
from ldm.train.losses import diffusion_loss, level_weight, noised, target

if TYPE_CHECKING:
    from ldm.models.shapes import Family
    from ldm.train.cache import Features, Pictures
    from ldm.train.recipe import Recipe

EMPTY = 0  # the empty caption's row


class UNetTask:
    """Mean squared error of the prediction at a uniformly drawn training step, on the noise levels the engine samples with."""

    def __init__(self, family: Family, pictures: Pictures, features: Features, sigmas: Tensor, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.module = UNet(family.unet)
        initialise(self.module)
        convert_conv2d_weight_memory_format(self.module, torch.channels_last)  # a third faster on a CPU
        self.family, self.pictures, self.features, self.sigmas, self.recipe = family, pictures, features, sigmas, recipe
        self.z = pictures.z * pictures.scale

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings, random = self.recipe.unet, generator(self.recipe.seed, step)
        rows = order(self.recipe.seed, step, settings.optim.batch, len(self.z))
        z, noise = self.z[rows], torch.randn((len(rows), *self.z.shape[1:]), generator=random)
        t = torch.randint(len(self.sigmas), (len(rows),), generator=random)
        context, vector = self.conditions(rows, random)
        sigma = self.sigmas[t]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            x = noised(z, noise, sigma).to(memory_format=torch.channels_last)
            predicted = self.module.denoise(x, t.float(), context, vector)
        weight = level_weight(settings.weighting, sigma, settings.gamma, self.family.prediction)
        wanted = target(z, noise, sigma, self.family.prediction)
        plain = (predicted.detach() - wanted).square().mean()
        return diffusion_loss(predicted, wanted, weight), {"mse": float(plain)}

    def conditions(self, rows: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """context (B, 77, D) and vector (B, V); a share of the captions is replaced by the empty one, the numbers stay."""
        dropped = torch.rand(len(rows), generator=random) < self.recipe.unet.dropout
        caption = torch.where(dropped, EMPTY, self.pictures.caption[rows].long())
        numbers = sinusoid(self.pictures.numbers[rows].flatten(), self.family.size_embedding).view(len(rows), -1)  # (6 B, E) -> (B, 6 E)
        return self.features.context[caption].float(), torch.cat([self.features.pooled[caption], numbers], dim=-1)


@torch.no_grad()
def initialise(unet: UNet) -> None:
    """Residual branches and the last layer begin at zero, so that the untrained network predicts zero."""
    last: list[nn.Module] = [unet.out[-1]]
    last += [block.out_layers[-1] for block in unet.modules() if isinstance(block, ResBlock)]
    last += [block.proj_out for block in unet.modules() if isinstance(block, SpatialTransformer)]
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()
