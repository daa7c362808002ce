"""A model's VAE, or its decoder alone, trained further on windows of one's own pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ldm.checkpoint.identity import VAE as PREFIX
from ldm.errors import InputError, LdmError
from ldm.train.data import Ahead
from ldm.train.fitting import Batches
from ldm.train.prepared import cut, opened, repeated, tell
from ldm.train.tune import WindowsRecipe, check
from ldm.train.vae import Reconstruction
from ldm.train.watching import counter, many

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.models.shapes import Family
    from ldm.models.vae import VAE
    from ldm.train.sources import Found
    from ldm.train.tune import TuneRecipe

Say = Callable[[str], None]
MOST = 16  # processes that open pictures beside a GPU; on a CPU the training itself needs the cores


class Windows:
    """Windows (B, h, w, 3) uint8 of pictures scaled for their buckets, as a function of (seed, step).

    A side is `side` pixels, or the bucket's where that is shorter; a batch is of one bucket. A picture that cannot be opened at first is
    counted and never used; one that is lost later is left out of its batch. Processes make the batches: what can speak is not kept.
    """

    def __init__(self, found: Found, recipe: TuneRecipe, side: int, say: Say) -> None:
        broken, notes = list[str](), Counter[str]()
        done = counter("opening pictures", len(found.examples), say)
        seen = [(at, place) for at, _, place in opened(found.examples, recipe.pictures, recipe.seed, broken, notes, done)]
        self.examples, self.places = [found.examples[at] for at, _ in seen], [place for _, place in seen]
        self.skipped = tell(found, broken, notes, len(seen), say)
        self.rows, self.side, self.seed = repeated(self.examples), side, recipe.seed
        self.batches = Batches([self.places[row].bucket for row in self.rows], recipe.optim.batch, recipe.seed)

    def batch(self, step: int) -> tuple[np.ndarray, list[str]]:
        """The windows, and a line for each picture that is lost. Raises InputError where none of them can be opened any more."""
        rng, made, lost = np.random.default_rng([self.seed, 5, step]), list[np.ndarray](), list[str]()
        for row in (self.rows[at] for at in self.batches.rows(step)):
            place = self.places[row]
            height, width = (min(self.side, side) for side in place.bucket)
            top, left = (int(rng.integers(side - part + 1)) for side, part in zip(place.scaled, (height, width), strict=True))
            try:
                picture = self.examples[row].open().rgb
            except (LdmError, OSError) as error:
                lost.append(str(error))
                continue
            made.append(np.array(cut(picture, replace(place, crop=(top, left), bucket=(height, width)))))
        if not made:
            raise InputError(f"batch {step}: no picture of it can be opened any more ({lost[-1]}): put the pictures back and resume")
        return np.stack(made), lost


class WindowsTask(Reconstruction):
    """The VAE that a recipe trains."""

    def __init__(self, family: Family, vae: VAE, found: Found, recipe: TuneRecipe, settings: WindowsRecipe, say: Say) -> None:
        check(family, recipe)
        vae.requires_grad_(True)
        if settings.part == "decoder":
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        self.data = Windows(found, recipe, settings.crop, say)
        workers = min(os.cpu_count() or 1, MOST) if next(vae.parameters()).is_cuda else 0
        self.ahead, self.say = Ahead(self.data.batch, workers, recipe.optim.steps * recipe.optim.accumulate), say
        super().__init__(vae, self.batch, settings, recipe.seed, recipe.precision)

    def batch(self, step: int) -> np.ndarray:
        windows, lost = self.ahead(step)
        for line in lost:
            self.say(f"left out of batch {step}: {line}")
        return windows

    @property
    def learns_from(self) -> list[str]:
        """What decides the data, beside the recipe."""
        return [*(example.name for example in self.data.examples), *map(str, self.data.rows)]

    def said(self) -> str:
        buckets = {place.bucket for place in self.data.places}
        return f"{many(len(self.data.places), 'picture')} in {many(len(buckets), 'bucket')}"

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was trained, under the names of an official file."""
        return {PREFIX + name: value for name, value in state.items()}
