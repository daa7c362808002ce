"""The second stage: both text towers, contrastively against one small picture encoder on latents (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.models.clip import CLIPText, Embeddings, TextOutput
from ldm.train.draws import order
from ldm.train.losses import contrastive_loss

if TYPE_CHECKING:
    from ldm.models.shapes import TowerShape
    from ldm.train.cache import Pictures
    from ldm.train.recipe import Recipe

SCALE_LIMIT = math.log(100.0)


class PictureEncoder(nn.Sequential):
    """Latents (B, 4, h, w) -> features (B, D): three strided convolutions and a mean over positions. Not part of what is exported."""

    def __init__(self, channels: int, features: int, width: int = 64) -> None:
        super().__init__(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()),
            *(nn.Conv2d(width, width * 2, 3, stride=2, padding=1), nn.GroupNorm(8, width * 2), nn.SiLU()),
            *(nn.Conv2d(width * 2, width * 4, 3, stride=2, padding=1), nn.GroupNorm(8, width * 4), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(width * 16, features)),
        )


class Matcher(nn.Module):
    """Pictures and captions in one space, one space a tower; towers without a projection borrow one for the training."""

    def __init__(self, shapes: Sequence[TowerShape], channels: int) -> None:
        super().__init__()
        self.widths = [shape.projection or shape.width for shape in shapes]
        self.towers = nn.ModuleList(CLIPText(shape) for shape in shapes)
        self.picture = PictureEncoder(channels, sum(self.widths))
        self.heads = nn.ModuleList(nn.Identity() if s.projection else nn.Linear(s.width, s.width, bias=False) for s in shapes)
        self.logit_scale = nn.Parameter(torch.full((len(shapes),), math.log(1 / 0.07)))
        for tower in self.texts():
            initialise(tower.text_model.embeddings)

    def texts(self) -> list[CLIPText]:
        return [tower for tower in self.towers if isinstance(tower, CLIPText)]

    def forward(self, z: Tensor, ids: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features of latents (B, 4, h, w) and of ids (B, 77), each a list by tower of (B, D)."""
        captions = [head(pooled(tower, part)) for head, tower, part in zip(self.heads, self.texts(), ids, strict=True)]
        return list(self.picture(z).split(self.widths, dim=-1)), captions


def initialise(embeddings: Embeddings) -> None:
    """Larger than CLIP's 0.02: narrow towers learn faster so. Rows of words that never occur stay as they are."""
    nn.init.normal_(embeddings.token_embedding.weight, std=0.5)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.1)


def pooled(tower: CLIPText, ids: Tensor) -> Tensor:
    """The tower's own pooled vector, or for a tower without one its normed last layer at the first end token."""
    output: TextOutput = tower(ids)
    return tower.summary(ids, output.last) if output.pooled is None else output.pooled


class TowersTask:
    """The mean over the towers of the contrastive loss."""

    def __init__(self, shapes: Sequence[TowerShape], pictures: Pictures, ids: Sequence[Tensor], recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.module = Matcher(shapes, pictures.z.shape[1])
        self.shapes, self.pictures, self.ids, self.recipe = shapes, pictures, ids, recipe

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rows = order(self.recipe.seed, step, self.recipe.towers.optim.batch, len(self.pictures.z))
        caption = self.pictures.caption[rows].long()
        ids = [shortened(part[caption], shape.vocab - 1) for part, shape in zip(self.ids, self.shapes, strict=True)]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            images, texts = self.module(self.pictures.z[rows] * self.pictures.scale, ids)
        scale = self.module.logit_scale.clamp(max=SCALE_LIMIT).exp()
        losses = [contrastive_loss(image, text, scale[i]) for i, (image, text) in enumerate(zip(images, texts, strict=True))]
        agree = (images[-1].float() @ nn.functional.normalize(texts[-1].float(), dim=-1).T).argmax(1) == torch.arange(len(rows))
        return torch.stack(losses).mean(), {"agree": float(agree.float().mean())}


def shortened(ids: Tensor, end: int) -> Tensor:
    """Without the padding that all rows share: attention is causal, so that what follows the end token changes nothing before it."""
    return ids[:, : int((ids == end).int().argmax(-1).max()) + 1]
