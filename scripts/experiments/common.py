"""What an experiment is given, pictures by the engine or composed as data, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.errors import InputError
from ldm.options import Job
from ldm.pipeline import Pipeline
from ldm.resources import configs
from ldm.results import Result
from ldm.train.data import Composer, load_things
from ldm.train.recipe import Recipe, load_recipe
from ldm.train.scenes import Scene, draw

PROMPTS = """
a red apple on a blue background
a banana on a purple background
a strawberry on a white background
a hamburger on a cyan background
a cat on a pink background
a dog on a green background
a panda on an orange background
a penguin on a yellow background
a sunflower on a black background
a rose on a grey background
a star on a blue background
a house on a green background
a red car on a yellow background
a rocket on a black background
a guitar on an orange background
a robot on a brown background
"""  # of one thing each, in the middle
WIDEST = 680  # pixels of a figure
SHADES = 128  # colours of a figure, whose file is small then
LETTERS = 11  # pixels of a figure's words
APART = 1000  # seeds from one prompt to the next


@dataclass(frozen=True)
class Table:
    """A cell is text, a number, [mean, standard error], or None where there is none."""

    head: list[str]
    rows: list[list[Any]]
    title: str = ""  # with what is between it and the table


@dataclass(frozen=True)
class Found:
    tables: list[Table]
    said: str  # what the tables say
    figure: Image.Image
    shows: str  # the figure

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"tables": [dataclasses.asdict(table) for table in self.tables], "said": self.said, "shows": self.shows}


@dataclass(frozen=True)
class Asked:
    """What an experiment is given."""

    pipeline: Pipeline
    count: int
    seed: int = 1
    folder: Path | None = None  # of things
    run: Path | None = None  # the folder of a training run
    minutes: float = 10.0
    steps: int | None = None
    say: Callable[[str], object] = field(default=lambda _: None)

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.pipeline.family.defaults.height

    @cached_property
    def recipe(self) -> Recipe:
        return load_recipe(configs() / "train" / "emoji.toml")

    @cached_property
    def composer(self) -> Composer:
        """Square pictures, whole and sharp. Raises InputError without things."""
        if self.folder is None:
            raise InputError("this experiment needs the things that pictures are composed of: give --things, a folder of scripts/emoji.py")
        data = dataclasses.replace(self.recipe.data, size=self.size, other_shapes=0.0, crop_share=0.0, small_share=0.0)
        return Composer(load_things(self.folder), data, self.seed)

    def composed(self, scene: Scene, k: int) -> np.ndarray:
        """What data shows for a scene (H, W, 3)."""
        return self.composer.whole(scene, (self.size, self.size), np.random.default_rng([self.seed, 6, k])).image

    def singles(self) -> Iterator[tuple[Scene, np.random.Generator]]:
        """`count` scenes of one thing, each with what further is drawn for it; none without things."""
        for k in range(self.count if self.folder else 0):
            rng = np.random.default_rng([self.seed, 7, k])
            yield draw(rng, self.composer.things, kind="one"), rng

    def prompts(self) -> Iterator[tuple[str, int]]:
        """PROMPTS, each with how many of `count` pictures are its."""
        texts = PROMPTS.strip().splitlines()
        return ((text, len(range(at, self.count, len(texts)))) for at, text in enumerate(texts[: self.count]))

    def drawn(self, **changes: Any) -> list[np.ndarray]:
        """`count` pictures of the prompts; the same seeds whatever `changes` of the job are asked for."""
        made = (self.batch(text, at, share, **changes) for at, (text, share) in enumerate(self.prompts()))
        return [pixels for result in made for pixels in pictures(result)]

    def batch(self, prompt: str, at: int, pictures: int, **changes: Any) -> Result:
        """Pictures of one prompt, which is the `at`-th."""
        return self.pipeline.run(Job(prompt, "", seed=self.seed * 100 * APART + at * APART, batch=pictures, **changes))


def pictures(result: Result) -> list[np.ndarray]:
    """(H, W, 3) of 0 to 255 each."""
    return [np.asarray(image.convert("RGB"), dtype=np.float32) for image in result.images]


def sheet(rows: Sequence[Sequence[np.ndarray]], side: int | None = None, heads: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows, `side` pixels each or as large as they fit, a word above each column, in few colours."""
    across, top = max(map(len, rows)), LETTERS + 5 if heads else 0
    side = side or min(128, WIDEST // across)
    made = Image.new("RGB", (across * side, top + len(rows) * side), "white")
    for right, word in enumerate(heads):
        ImageDraw.Draw(made).text(((right + 0.5) * side, 2), word, "black", ImageFont.load_default(LETTERS), anchor="ma")
    for down, row in enumerate(rows):
        for right, pixels in enumerate(row):
            how = Image.Resampling.LANCZOS if side <= len(pixels) else Image.Resampling.NEAREST
            tile = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).resize((side, side), how)
            made.paste(tile, (right * side, top + down * side))
    return made.quantize(SHADES, dither=Image.Dither.NONE)


def columns(settings: Mapping[str, Sequence[np.ndarray]], rows: int = 3) -> Image.Image:
    """A column a setting under its name, some of its pictures, the same of each, below each other."""
    count = min(map(len, settings.values()))
    places = dict.fromkeys(row * count // rows for row in range(rows))
    return sheet([[found[at] for found in settings.values()] for at in places], heads=list(settings))
