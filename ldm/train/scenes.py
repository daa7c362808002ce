"""What a composed picture shows and what its caption says: one to three things on a coloured background, placed, sized and tinted as named.

Some combinations of a thing with a colour, a place, a number or another thing are held out of training, so that what is drawn for
them is not remembered. No thing is held out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")
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
HUES = {"red": 0, "orange": 28, "yellow": 52, "green": 125, "cyan": 185, "blue": 225, "purple": 275, "pink": 330}  # degrees
KINDS = {"one": 0.5, "place": 0.15, "pair": 0.17, "count": 0.12, "three": 0.06}
# Shares of the shorter side that a thing's longer one takes, and the words for it.
SIZES = {"": (0.6, 0.85), "small": (0.3, 0.42), "big": (0.88, 0.98)}
SIZE_SHARES = (0.75, 0.15, 0.1)
TINTED = 0.15  # of single things whose hue may be changed
PLACES = {
    "on the left of": (0.25, 0.5),
    "on the right of": (0.75, 0.5),
    "at the top of": (0.5, 0.25),
    "at the bottom of": (0.5, 0.75),
}  # the centre (x, y)
SIDES, STACK = ((0.26, 0.5), (0.74, 0.5)), ((0.5, 0.26), (0.5, 0.74))
RELATIONS = {"to the left of": SIDES, "to the right of": SIDES[::-1], "above": STACK, "below": STACK[::-1]}
TRIANGLE = ((0.5, 0.27), (0.26, 0.73), (0.74, 0.73))
ROW = ((0.18, 0.5), (0.5, 0.5), (0.82, 0.5))
SWAY = 0.03  # a centre is at most this far from where it is said to be
CAPTIONS = (
    ("{thing} on {colour} background", 0.5),
    ("{name}, {colour_name} background", 0.15),
    ("{name} on {colour_name}", 0.1),
    ("a picture of {thing} on {colour} background", 0.1),
    ("{thing}", 0.1),
    ("{name}", 0.05),
)
GROUPED = (("{thing} on {colour} background", 0.8), ("{thing}, {colour_name} background", 0.1), ("{thing}", 0.1))
HELD = 12  # one of so many combinations is held out
NUMBERS = {2: "two", 3: "three"}
UNVOWELLED = re.compile("uni|use|one|u[kf]")  # written vowels, spoken consonants


@dataclass(frozen=True)
class Thing:
    tile: Image.Image  # RGBA, cut to what is drawn
    names: tuple[str, ...]  # most usual first
    plural: bool = False
    weight: float = 1.0  # how often it is drawn, beside the others

    @property
    def tints(self) -> list[str]:
        """The hues that it may be given: none where its name has a colour or little of it is coloured."""
        if set(re.findall(r"\w+", self.names[0].lower())) & (set(COLOURS) | {"gold", "silver", "rainbow"}) or coloured(self.tile) < 0.4:
            return []
        return list(HUES)


@dataclass(frozen=True)
class Placed:
    thing: int  # into the list of things
    share: float  # its longer side, of the picture's shorter one
    at: tuple[float, float]  # the centre (x, y), of width and height
    hue: str | None = None


@dataclass(frozen=True)
class Scene:
    kind: str  # of KINDS
    colour: str  # of COLOURS
    placed: tuple[Placed, ...]
    caption: str
    said: str = ""  # the place or the relation
    combinations: tuple[str, ...] = ()

    @property
    def held(self) -> bool:
        """Whether a combination in it is kept from training."""
        return any(held_out(each) for each in self.combinations)


def held_out(combination: str) -> bool:
    """The same in every run, on every machine and for every list of things."""
    return zlib.crc32(combination.encode()) % HELD == 0


def draw(rng: np.random.Generator, things: Sequence[Thing], *, held: bool = False, kind: str | None = None) -> Scene:
    """A scene of `kind`, or of a drawn one, in which something is held out, or nothing is."""
    writer = Writer(rng, things)
    while True:
        scene = writer.scene(kind or pick(rng, list(KINDS), list(KINDS.values())))
        if scene.held == held:
            return scene


class Writer:
    """Draws the things, their places and the words for them."""

    def __init__(self, rng: np.random.Generator, things: Sequence[Thing]) -> None:
        weights = np.array([thing.weight for thing in things])
        self.rng, self.things, self.shares = rng, things, np.cumsum(weights / weights.sum())

    def scene(self, kind: str) -> Scene:
        makers: dict[str, Callable[[str], Scene]] = {
            "one": self._one,
            "place": self._place,
            "pair": self._pair,
            "count": self._count,
            "three": self._three,
        }
        return makers[kind](pick(self.rng, list(COLOURS)))

    def _one(self, colour: str) -> Scene:
        thing, size = self._thing(), pick(self.rng, list(SIZES), SIZE_SHARES)
        hues = self.things[thing].tints if self.rng.random() < TINTED else []
        hue = pick(self.rng, hues) if hues else None
        words = [word for word in (size, hue) if word]
        first = self.things[thing].names[0]
        combinations = [f"{first} on {colour}", *(f"{word} {first}" for word in words)]
        placed = self._at(thing, (0.5, 0.5), self.rng.uniform(*SIZES[size]), hue)
        return Scene("one", colour, (placed,), self._caption(CAPTIONS, self._named(thing, *words), colour), "", tuple(combinations))

    def _place(self, colour: str) -> Scene:
        thing, place = self._thing(), pick(self.rng, list(PLACES))
        name, first = self._named(thing), self.things[thing].names[0]
        caption = f"{name[0]} {place} {with_article(colour)} background"
        placed = self._at(thing, PLACES[place], self.rng.uniform(0.38, 0.5))
        return Scene("place", colour, (placed,), caption, place, (f"{first} on {colour}", f"{first} {place}"))

    def _pair(self, colour: str) -> Scene:
        one, other = self._thing(), self._thing()
        relation = pick(self.rng, [*RELATIONS, "and"], (0.2, 0.2, 0.2, 0.2, 0.2))
        centres = RELATIONS[relation] if relation in RELATIONS else (SIDES, STACK)[int(self.rng.integers(2))]
        share = self.rng.uniform(0.38, 0.47)
        placed = tuple(self._at(thing, at, share) for thing, at in zip((one, other), centres, strict=True))
        phrase = f"{self._named(one)[0]} {relation} {self._named(other)[0]}"
        return self._group("pair", colour, placed, phrase, relation)

    def _count(self, colour: str) -> Scene:
        thing = self._thing(lambda each: countable(each))
        number = int(self.rng.integers(2, 4))
        share = self.rng.uniform(0.38, 0.45)
        placed = tuple(self._at(thing, at, share) for at in (SIDES if number == 2 else TRIANGLE))
        return self._group("count", colour, placed, f"{NUMBERS[number]} {plural(self.things[thing].names[0])}", NUMBERS[number])

    def _three(self, colour: str) -> Scene:
        things = [self._thing() for _ in range(3)]
        share = self.rng.uniform(0.27, 0.32)
        names = [self._named(thing)[0] for thing in things]
        placed = tuple(self._at(thing, at, share) for thing, at in zip(things, ROW, strict=True))
        return self._group("three", colour, placed, f"{names[0]}, {names[1]} and {names[2]}", "and")

    def _group(self, kind: str, colour: str, placed: tuple[Placed, ...], phrase: str, said: str) -> Scene:
        names = [self.things[each.thing].names[0] for each in placed]
        combinations = {f"{name} on {colour}": None for name in names} | {f" {said} ".join(names): None}
        return Scene(kind, colour, placed, self._caption(GROUPED, (phrase, phrase), colour), said, tuple(combinations))

    def _thing(self, wanted: Callable[[Thing], bool] = lambda _: True) -> int:
        while True:
            found = min(int(np.searchsorted(self.shares, self.rng.random())), len(self.things) - 1)
            if wanted(self.things[found]):
                return found

    def _at(self, thing: int, centre: tuple[float, float], share: float, hue: str | None = None) -> Placed:
        x, y = (place + self.rng.uniform(-SWAY, SWAY) for place in centre)
        return Placed(thing, float(share), (float(x), float(y)), hue)

    def _named(self, thing: int, *words: str) -> tuple[str, str]:
        """With an article where there is one thing, and without."""
        found = self.things[thing]
        own = found.names[0] if self.rng.random() < 0.6 else pick(self.rng, found.names)
        name = " ".join([*words, own])
        return (name if found.plural else with_article(name)), name

    def _caption(self, forms: Sequence[tuple[str, float]], names: tuple[str, str], colour: str) -> str:
        form = pick(self.rng, [form for form, _ in forms], [share for _, share in forms])
        return form.format(thing=names[0], name=names[1], colour=with_article(colour), colour_name=colour)


def pick(rng: np.random.Generator, values: Sequence[T], shares: Sequence[float] | None = None) -> T:
    return values[int(rng.choice(len(values), p=shares))]


def with_article(name: str) -> str:
    """ "an" before a written vowel, as in "an owl"; "unicorn" and its like begin with a spoken consonant."""
    return f"{'an' if name[0].lower() in 'aeiou' and not UNVOWELLED.match(name.lower()) else 'a'} {name}"


def countable(thing: Thing) -> bool:
    """Whether its name has a plural that `plural` finds."""
    return not thing.plural and re.fullmatch(r"(?!(person|man|woman|mx) )[a-zA-Z][a-zA-Z -]*", thing.names[0]) is not None


def plural(name: str) -> str:
    """Of a name whose last word is counted; of "slice of pizza" the first."""
    head, joint, rest = next(_cuts(name), (name, "", ""))
    for pattern, ending in ((r"(s|x|z|ch|sh)$", r"\1es"), (r"([^aeiou])y$", r"\1ies"), (r"man$", "men"), (r"$", "s")):
        made, changes = re.subn(pattern, ending, head, count=1)
        if changes:
            return made + joint + rest
    return name


def _cuts(name: str) -> Iterator[tuple[str, str, str]]:
    return (name.partition(joint) for joint in (" of ", " with ", " without ", " in ", " on ") if joint in name)


def coloured(tile: Image.Image) -> float:
    """The share of what is drawn that has a hue."""
    drawn, hued = _masks(tile)
    return float((drawn & hued).sum() / max(1, drawn.sum()))


def tinted(tile: Image.Image, hue: str) -> Image.Image:
    """With the hue of all that has one replaced; lightness and strength stay."""
    values = np.asarray(tile.convert("RGB").convert("HSV")).copy()
    values[..., 0][_masks(tile)[1]] = round(HUES[hue] / 360 * 255)
    made = Image.fromarray(values, "HSV").convert("RGB")
    made.putalpha(tile.getchannel("A"))
    return made


def _masks(tile: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Where it is drawn, and where it has a hue."""
    values = np.asarray(tile.convert("RGB").convert("HSV"))
    return np.asarray(tile.getchannel("A")) > 128, (values[..., 1] > 60) & (values[..., 2] > 50)
