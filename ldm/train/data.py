"""Pictures with captions, composed on the fly from tiles: what `ldm.train.scenes` says, rendered in a bucket's shape.

Sample i is a function of (seed, i) alone, so that a resumed run sees the data in the same order, and the six size and
crop numbers are what was really done (Podell et al. 2023, algorithm 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from ldm.errors import InputError, LdmError
from ldm.train import scenes
from ldm.train.fitting import Size, sizes
from ldm.train.scenes import COLOURS, Scene, Thing, countable, draw, pick, tinted

if TYPE_CHECKING:
    from ldm.train.recipe import Data

T = TypeVar("T")
JITTER = 4  # largest change of a background's channel, of 255
MARGIN = 0.5  # a larger canvas is at most this share larger, on each axis
LONGEST = 1.7  # side to side, of the buckets
SMALL = 0.4  # the least size, beside the bucket's, of a picture that is enlarged
RULES = {name: value for name, value in [*vars(scenes).items(), *list(globals().items())] if name.isupper() and len(name) > 1}


@dataclass(frozen=True)
class Sample:
    image: np.ndarray  # (H, W, 3) uint8
    scene: Scene
    numbers: tuple[int, int, int, int, int, int]  # original height and width, crop top and left, target height and width

    @property
    def caption(self) -> str:
        return self.scene.caption


def load_things(folder: Path) -> list[Thing]:
    """The things that scripts/emoji.py wrote: `things.json` and one RGBA picture each. Raises InputError for a broken set."""
    try:
        index = json.loads((folder / "things.json").read_text(encoding="utf-8"))
        things = [Thing(Image.open(folder / e["file"]).convert("RGBA"), tuple(e["names"]), e["plural"], float(e["weight"])) for e in index]
        wrong = next((_fault(thing) for thing in things if _fault(thing)), "")
        if wrong or not any(countable(thing) for thing in things):
            raise ValueError(wrong or "none of them can be counted")
        return things
    except (OSError, ValueError, KeyError, TypeError, UnidentifiedImageError) as error:
        raise InputError(f"{folder}: not a set of things ({error}): make one with scripts/emoji.py") from error


def _fault(thing: Thing) -> str:
    if not thing.names or not all(isinstance(name, str) and len(name) > 1 for name in thing.names):
        return f"{thing.names!r:.80} are no names"
    return "" if 0 < thing.weight < math.inf else f"{thing.names[0]!r:.80} has the weight {thing.weight}"


class Composer:
    """Endless samples from a set of things."""

    def __init__(self, things: Sequence[Thing], data: Data, seed: int) -> None:
        self.things, self.data, self.seed = things, data, seed
        square = (data.size, data.size)
        self.others = [size for size in sizes(data.size**2, data.step, LONGEST) if size != square]

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        scene, kind = draw(rng, self.things), rng.random()
        bucket = pick(rng, self.others) if self.others and rng.random() < self.data.other_shapes else (self.data.size,) * 2
        if scene.kind == "one" and kind < self.data.crop_share:
            return self.window(scene, bucket, rng)
        if scene.kind == "one" and kind < self.data.crop_share + self.data.small_share:
            share = rng.uniform(SMALL, 1.0)
            small = (round(bucket[0] * share), round(bucket[1] * share))
            image = self.render(scene, small, min(small), rng).resize(bucket[::-1], Image.Resampling.BICUBIC)
            return Sample(np.asarray(image), scene, (*small, 0, 0, *bucket))
        return self.whole(scene, bucket, rng)

    def whole(self, scene: Scene, bucket: Size, rng: np.random.Generator) -> Sample:
        return Sample(np.asarray(self.render(scene, bucket, min(bucket), rng)), scene, (*bucket, 0, 0, *bucket))

    def window(self, scene: Scene, bucket: Size, rng: np.random.Generator) -> Sample:
        """Cut from a larger canvas in whose middle the thing stands."""
        height, width = (side + int(rng.integers(0, int(side * MARGIN))) for side in bucket)
        top, left = int(rng.integers(0, height - bucket[0] + 1)), int(rng.integers(0, width - bucket[1] + 1))
        canvas = self.render(scene, (height, width), min(bucket), rng)
        image = canvas.crop((left, top, left + bucket[1], top + bucket[0]))
        return Sample(np.asarray(image), scene, (height, width, top, left, *bucket))

    def render(self, scene: Scene, size: Size, unit: int, rng: np.random.Generator) -> Image.Image:
        """The scene on a canvas of `size` (height, width); shares of a thing's size are of `unit` pixels."""
        background = tuple(int(c) for c in np.clip(np.add(COLOURS[scene.colour], rng.integers(-JITTER, JITTER + 1, 3)), 0, 255))
        canvas = Image.new("RGB", size[::-1], background)
        for placed in scene.placed:
            tile = self.things[placed.thing].tile
            share = placed.share * unit / max(tile.size)
            tile = tinted(tile, placed.hue) if placed.hue else tile
            tile = tile.resize([max(1, round(side * share)) for side in tile.size], Image.Resampling.BILINEAR, reducing_gap=2.0)
            canvas.paste(tile, (_start(placed.at[0], size[1], tile.width), _start(placed.at[1], size[0], tile.height)), tile)
        return canvas


def _start(centre: float, side: int, length: int) -> int:
    """Where a tile begins whose centre is asked for: inside, where it fits."""
    return round(min(max(centre * side - length / 2, 0), max(side - length, 0)))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


class Ahead(Generic[T]):
    """`make(k)` for k = 0, 1, ..., made by `workers` processes before it is asked for; with none of them when it is."""

    def __init__(self, make: Callable[[int], T], workers: int, end: int) -> None:
        self._make, self._workers, self._end = make, workers, end
        self._next = -1
        self._made: Iterator[T | LdmError] = iter(())

    def __call__(self, k: int) -> T:
        if not self._workers:
            return self._make(k)
        if k != self._next:
            self._made = iter(self._begun(k))
        self._next = k + 1
        made = next(self._made)
        if isinstance(made, LdmError):
            raise made
        return made

    def _begun(self, first: int) -> DataLoader[T | LdmError]:
        calls = _Calls(self._make)
        return DataLoader(calls, batch_size=None, sampler=range(first, self._end), num_workers=self._workers, collate_fn=_same)


class _Calls(Dataset[T | LdmError]):
    """An error of ours is handed over as it is: the loader would put a traceback into its message."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, k: int) -> T | LdmError:
        try:
            return self._make(k)
        except LdmError as error:
            return error


def _same(value: T) -> T:
    return value
