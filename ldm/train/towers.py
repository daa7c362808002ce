"""The second stage: both text towers, contrastively against one small picture encoder on latents (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.models.clip import CLIPText, TextOutput
from ldm.train.losses import contrastive_loss

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

    def __init__(self, towers: Sequence[CLIPText], channels: int) -> None:
        super().__init__()
        shapes = [tower.shape for tower in towers]
        self.widths = [shape.projection or shape.width for shape in shapes]
        self.towers = nn.ModuleList(towers)
        self.picture = PictureEncoder(channels, sum(self.widths))
        self.heads = nn.ModuleList(nn.Identity() if s.projection else nn.Linear(s.width, s.width, bias=False) for s in shapes)
        self.logit_scale = nn.Parameter(torch.full((len(shapes),), math.log(1 / 0.07)))

    def texts(self) -> list[CLIPText]:
        return [tower for tower in self.towers if isinstance(tower, CLIPText)]

    def pictures(self, z: Tensor) -> list[Tensor]:
        """Features of latents (B, 4, h, w), by tower (B, D)."""
        return list(self.picture(z).split(self.widths, dim=-1))

    def captions(self, ids: Sequence[Tensor]) -> list[Tensor]:
        """Features of token ids (B, 77), by tower (B, D)."""
        return [head(pooled(tower, part)) for head, tower, part in zip(self.heads, self.texts(), ids, strict=True)]


def initialise(tower: CLIPText) -> CLIPText:
    """Larger than CLIP's 0.02: narrow towers learn faster so. Rows of words that never occur stay as they are."""
    nn.init.normal_(tower.text_model.embeddings.token_embedding.weight, std=0.5)
    nn.init.normal_(tower.text_model.embeddings.position_embedding.weight, std=0.1)
    return tower


def pooled(tower: CLIPText, ids: Tensor) -> Tensor:
    """The tower's own pooled vector, or for a tower without one its normed last layer at the first end token."""
    output: TextOutput = tower(ids)
    return tower.summary(ids, output.last) if output.pooled is None else output.pooled


def agreement(pictures: Sequence[Tensor], captions: Sequence[Tensor], logit_scale: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The mean of the towers' losses; "agree": the share of pictures to which their own caption is the nearest, by the last tower.

    The scale is held between 1 and 100 where it lies, as open_clip does it: a clamp in the loss would leave one beyond without a gradient.
    """
    with torch.no_grad():
        logit_scale.clamp_(0, SCALE_LIMIT)
    losses = [contrastive_loss(*each) for each in zip(pictures, captions, logit_scale.exp(), strict=True)]
    nearest = (pictures[-1].float() @ nn.functional.normalize(captions[-1].float(), dim=-1).T).argmax(1)
    own = torch.arange(len(nearest), device=nearest.device)
    return torch.stack(losses).mean(), {"agree": float((nearest == own).float().mean())}


def shortened(ids: Tensor, end: int) -> Tensor:
    """Without the padding that all rows share: attention is causal, so that what follows the end token changes nothing before it."""
    return ids[:, : int((ids == end).int().argmax(-1).max()) + 1]
