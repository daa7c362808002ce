"""The third stage: the UNet predicts the noise of composed pictures' latents, by the same task as on one's own pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ldm.models.unet import ResBlock, SpatialTransformer, UNet
from ldm.train.noising import Noising
from ldm.train.prepared import composed
from ldm.train.recipe import PicturesRecipe
from ldm.train.tune import LossRecipe, TuneRecipe, TuneTask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ldm.models.clip import CLIPText
    from ldm.models.shapes import Family
    from ldm.train.cache import Pictures
    from ldm.train.recipe import Recipe


def unet_task(
    family: Family,
    unet: UNet,
    towers: Sequence[CLIPText],
    pictures: Pictures,
    recipe: Recipe,
    say: Callable[[str], None] = lambda _: None,
) -> TuneTask:
    settings = recipe.unet
    whole = TuneRecipe(
        *("unet", recipe.seed, recipe.precision, PicturesRecipe(recipe.data.size, recipe.data.step), settings.optim),
        noise=Noising(settings.offset, settings.pyramid, settings.perturbation),
        loss=LossRecipe(settings.weighting, settings.gamma, settings.huber, settings.dropout),
        checkpointing=settings.checkpointing,
    )
    return TuneTask(family, unet, towers, composed(pictures), whole, say)


@torch.no_grad()
def initialise(unet: UNet) -> None:
    """Residual branches and the last layer begin at zero, so that the untrained network predicts zero."""
    last: list[nn.Module] = [unet.out[-1]]
    last += [block.out_layers[-1] for block in unet.modules() if isinstance(block, ResBlock)]
    last += [block.proj_out for block in unet.modules() if isinstance(block, SpatialTransformer)]
    for layer in last:
        for parameter in layer.parameters():
            parameter.zero_()
