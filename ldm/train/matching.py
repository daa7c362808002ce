"""A model's text towers trained further on one's own pictures and captions, contrastively, against a small picture encoder on latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.checkpoint.rename import to_open_clip
from ldm.errors import InputError
from ldm.train.draws import generator
from ldm.train.fitting import Batches
from ldm.train.optim import autocast
from ldm.train.state import part
from ldm.train.towers import Matcher, agreement, shortened
from ldm.train.tune import check
from ldm.train.watching import many
from ldm.train.words import shuffled, token_ids

if TYPE_CHECKING:
    from ldm.models.clip import CLIPText
    from ldm.models.shapes import Family
    from ldm.train.prepared import Prepared
    from ldm.train.tune import TuneRecipe

EVERY = (0, 0)  # the one bucket of all pictures


class MatchingTask:
    """The mean over the towers of the contrastive loss. A batch is of all buckets; no picture is in it twice."""

    def __init__(self, family: Family, towers: Sequence[CLIPText], data: Prepared, recipe: TuneRecipe) -> None:
        check(family, recipe)
        if len(data.z) < 2:
            raise InputError("one picture alone: captions are learned by telling pictures apart: give more of them")
        self.data, self.recipe, self.shapes = data, recipe, family.towers
        self.device = next(towers[0].parameters()).device
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(recipe.seed)
            self.module = Matcher(towers, family.vae.z_channels).to(self.device).requires_grad_(True)
        self.batches = Batches([EVERY] * len(data.rows), recipe.optim.batch, recipe.seed)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        random = generator(self.recipe.seed, step)
        rows = list(dict.fromkeys(self.data.rows[at] for at in self.batches.rows(step)))
        texts = [shuffled(self.data.captions[row], self.data.keep[row], random) for row in rows]
        ids = [shortened(token_ids(texts, shape.pad_token), shape.vocab - 1).to(self.device) for shape in self.shapes]
        with autocast(self.device, self.recipe.precision):
            pictures = self.features(rows)
            with torch.set_grad_enabled(step >= self.recipe.towers.alone):
                captions = self.module.captions(ids)
        loss, figures = agreement(pictures, captions, self.module.logit_scale)
        return loss, figures | {"pictures": len(rows)}

    def features(self, rows: Sequence[int]) -> list[Tensor]:
        """Of the pictures of `rows`, by tower (B, D); those of one size go through the encoder together."""
        sizes: dict[torch.Size, list[int]] = {}
        for place, row in enumerate(rows):
            sizes.setdefault(self.data.z[row].shape, []).append(place)
        stacks = [torch.stack([self.data.z[rows[place]] for place in places]).to(self.device) for places in sizes.values()]
        back = torch.tensor([place for places in sizes.values() for place in places], device=self.device).argsort()
        by_tower = zip(*(self.module.pictures(stack) for stack in stacks), strict=True)
        return [torch.cat(parts)[back] for parts in by_tower]

    @property
    def learns_from(self) -> list[str]:
        """What decides the data, beside the recipe."""
        return self.data.decided()

    def said(self) -> str:
        return f"{many(len(self.data.z), 'picture')}, {many(len(set(self.data.captions)), 'caption')}"

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The towers, under the names of an official file; what served the training alone is left out."""
        made: dict[str, Tensor] = {}
        for i, shape in enumerate(self.shapes):
            own = part(dict(state), f"towers.{i}.")
            own = to_open_clip(own, shape.layers) if shape.layout == "open_clip" else own
            made |= {shape.prefix + name: value for name, value in own.items()}
        return made
