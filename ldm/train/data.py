"""Pictures with captions, composed on the fly: one thing, somewhere, on a coloured background.

Sample i is a function of (seed, i) alone, so that a resumed run sees the data in the same order, and the six size and
crop numbers are what was really done (Podell et al. 2023, algorithm 1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ldm.errors import InputError

if TYPE_CHECKING:
    from ldm.train.recipe import Data

Pair = tuple[int, int]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (215, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 60),
    "green": (45, 150, 70),
    "cyan": (70, 205, 215),
    "blue": (40, 85, 215),
    "purple": (125, 60, 175),
    "pink": (250, 150, 195),
    "brown": (115, 70, 40),
    "black": (15, 15, 18),
    "grey": (130, 130, 132),
    "white": (245, 245, 245),
}
CAPTIONS = (
    ("{thing} on {colour} background", 0.5),
    ("{name}, {colour_name} background", 0.15),
    ("{name} on {colour_name}", 0.1),
    ("a picture of {thing} on {colour} background", 0.1),
    ("{thing}", 0.1),
    ("{name}", 0.05),
)
JITTER = 4  # largest change of a background's channel, of 255
MARGIN = 0.5  # a larger canvas is at most this share larger, on each axis


@dataclass(frozen=True)
class Thing:
    tile: Image.Image  # RGBA, cut to what is drawn
    names: tuple[str, ...]  # most usual first
    plural: bool = False


@dataclass(frozen=True)
class Sample:
    image: np.ndarray  # (H, W, 3) uint8
    caption: str
    numbers: tuple[int, int, int, int, int, int]  # original height and width, crop top and left, target height and width
    thing: int
    colour: int


def load_things(folder: Path) -> list[Thing]:
    """The things that scripts/emoji.py wrote: `things.json` and one RGBA picture each. Raises InputError for a broken set."""
    try:
        index = json.loads((folder / "things.json").read_text(encoding="utf-8"))
        return [Thing(Image.open(folder / e["file"]).convert("RGBA"), tuple(e["names"]), e["plural"]) for e in index]
    except (OSError, ValueError, KeyError, TypeError, UnidentifiedImageError) as error:
        raise InputError(f"{folder}: not a set of things ({error}): make one with scripts/emoji.py") from error


class Composer:
    """Endless samples of (B, size, size) pictures from a set of things."""

    def __init__(self, things: Sequence[Thing], data: Data, seed: int) -> None:
        self.things, self.data, self.seed = things, data, seed

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        thing, colour = int(rng.integers(len(self.things))), int(rng.integers(len(COLOURS)))
        image, original, crop = self._picture(rng, self.things[thing], list(COLOURS.values())[colour])
        caption = make_caption(rng, self.things[thing], list(COLOURS)[colour])
        size = self.data.size
        return Sample(np.asarray(image), caption, (*original, *crop, size, size), thing, colour)

    def _picture(self, rng: np.random.Generator, thing: Thing, colour: Colour) -> tuple[Image.Image, Pair, Pair]:
        """The picture, its original size and its crop."""
        size, kind = self.data.size, rng.random()
        if kind < self.data.crop_share:
            height, width = (size + int(extra) for extra in rng.integers(0, int(size * MARGIN), 2))
            top, left = (int(rng.integers(0, side - size + 1)) for side in (height, width))
            canvas = self._canvas(rng, thing, colour, height, width, size)
            return canvas.crop((left, top, left + size, top + size)), (height, width), (top, left)
        if kind < self.data.crop_share + self.data.small_share:
            side = int(rng.integers(size // 2, size))
            small = self._canvas(rng, thing, colour, side, side, side)
            return small.resize((size, size), Image.Resampling.BICUBIC), (side, side), (0, 0)
        return self._canvas(rng, thing, colour, size, size, size), (size, size), (0, 0)

    def _canvas(self, rng: np.random.Generator, thing: Thing, colour: Colour, height: int, width: int, unit: int) -> Image.Image:
        """The thing somewhere on a canvas; its longer side is a share of `unit`, its place most often near the middle."""
        background = tuple(int(c) for c in np.clip(np.add(colour, rng.integers(-JITTER, JITTER + 1, 3)), 0, 255))
        canvas = Image.new("RGB", (width, height), background)
        share = rng.uniform(self.data.smallest, self.data.largest) * unit / max(thing.tile.size)
        tile = thing.tile.resize([max(1, round(side * share)) for side in thing.tile.size], Image.Resampling.BILINEAR, reducing_gap=2.0)
        left, top = (int(rng.random(2).mean() * (free + 1)) for free in (width - tile.width, height - tile.height))
        canvas.paste(tile, (left, top), tile)
        return canvas


def make_caption(rng: np.random.Generator, thing: Thing, colour: str) -> str:
    template = CAPTIONS[int(rng.choice(len(CAPTIONS), p=[share for _, share in CAPTIONS]))][0]
    name = thing.names[0] if rng.random() < 0.6 else thing.names[int(rng.integers(len(thing.names)))]
    phrase = name if thing.plural else with_article(name)
    return template.format(thing=phrase, name=name, colour=with_article(colour), colour_name=colour)


def with_article(name: str) -> str:
    """ "an" before a written vowel, as in "an owl"; "unicorn" and its like begin with a spoken consonant."""
    return f"{'an' if name[0].lower() in 'aeiou' and not name.startswith('uni') else 'a'} {name}"


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
