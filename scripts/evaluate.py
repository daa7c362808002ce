"""How well the model in the box draws what it is asked for, on combinations that were held out of its training.

    python scripts/evaluate.py THINGS [--alike] [--model FILE] [--count 200] [--seed N] [--json FILE] [--sheet FILE.png]
                               [--only drawn,data,vae]

THINGS is the folder that scripts/emoji.py writes. Its things are asked for as often as in training, or with --alike each as often as
any other; all of them can be mistaken for one. The prompts are scenes with a held-out combination: two fifths of one thing, a fifth each
of a place, a pair in a named relation, and a number of things. What is measured, by pixels alone:

colour    the nearest of the twelve colours to the median of the picture's border is the one asked for
top-1/5   what stands out from the background, cut out, is nearest to the picture of the thing asked for, or that is among the
          five nearest, of all things (for a pair: of both)
side      the thing's centre is on the side asked for
relation  of a pair, each is nearer to what was asked for in its place than to the other, and one of them is among the five nearest
          (of what is no thing at all, one half in two would be right)
position  the side or the relation, whichever was asked for
count     so many parts of like size stand out as were asked for
all       all of these that apply, with top-5

The same is measured of the training set's own pictures of these scenes ("data"), and of those after the VAE ("vae"): what could be reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import ldm
from ldm.commands.streams import answered
from ldm.resources import configs
from ldm.train.data import Composer, load_things, to_tensor
from ldm.train.recipe import load_recipe
from ldm.train.scenes import COLOURS, NUMBERS, PLACES, RELATIONS, Scene, Thing, draw, tinted
from scripts.grid import background, grid

KINDS = ("one", "one", "place", "pair", "count")
SIDE = 24  # pixels of what is compared
FAR = 40  # of 255: a pixel that differs so much from the border's median stands out
GRAIN = 32  # cells a side in which parts are told apart
FILLED = 0.3  # of a cell
SMALLEST = 0.25  # a part counts from this share of the largest
NEAREST = 5  # things among which the one asked for has to be
Box = tuple[int, int, int, int]  # left, top, right, bottom
Verdict = dict[str, bool]


WAYS = ("drawn", "data", "vae")
OFTEN = "often drawn"  # beside a way: of the scenes with nothing but the things that are drawn the most often


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("things", type=Path)
    parser.add_argument("--alike", action="store_true", help="every thing as often as any other")
    parser.add_argument("--model", help="default: the model in the box")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="the first 64 pictures")
    parser.add_argument("--only", default=",".join(WAYS))
    args = parser.parse_args()
    if args.count < 1 or args.seed < 0 or set(args.only.split(",")) - set(WAYS):
        parser.error(f"give --count 1 or more, --seed 0 or more, and --only of {', '.join(WAYS)}")
    return answered(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> None:
    things = load_things(args.things)
    if args.alike:
        things = [dataclasses.replace(thing, weight=1.0) for thing in things]
    composer = Composer(things, load_recipe(configs() / "train" / "emoji.toml").data, args.seed)
    scenes, judge = held_scenes(composer.things, args.count, args.seed), Judge(composer.things)
    makers, begun = ways(composer, ldm.load(args.model, device=args.device), args.seed), time.perf_counter()
    figures = {}
    for way in args.only.split(","):
        pictures = [makers[way](scene, k) for k, scene in enumerate(scenes)]
        verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
        found = {way: verdicts, f"{way}, {OFTEN}": [each for each, scene in zip(verdicts, scenes, strict=True) if often(scene, things)]}
        for name, chosen in found.items():
            if chosen and (name == way or len(chosen) < len(verdicts)):
                figures[name] = scores(chosen)
                told = (f"{measure} {right}/{of} = {right / of:.2f}" for measure, (right, of) in figures[name].items() if of)
                print(f"{name:20}", "  ".join(told), flush=True)
        if way == "drawn" and args.sheet:
            grid(pictures[:64], 8).save(args.sheet, optimize=True)
    print(f"{len(scenes)} prompts, {time.perf_counter() - begun:.0f} s")
    if args.json:
        kept = {"count": len(scenes), "seed": args.seed, "alike": args.alike, "scores": figures}
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def often(scene: Scene, things: Sequence[Thing]) -> bool:
    """Whether all its things are of those that are drawn the most often."""
    most = max(thing.weight for thing in things)
    return all(things[placed.thing].weight == most for placed in scene.placed)


def held_scenes(things: Sequence[Thing], count: int, seed: int) -> list[Scene]:
    """Scenes with something held out, whose captions name all that is measured."""
    found: list[Scene] = []
    for k in range(count):
        rng = np.random.default_rng([seed, 5, k])
        while True:
            scene = draw(rng, things, held=True, kind=KINDS[k % len(KINDS)])
            if scene.caption.endswith((f"{scene.colour} background", f" on {scene.colour}")) and scene.said != "and":
                break
        found.append(scene)
    return found


def ways(composer: Composer, pipeline: ldm.Pipeline, seed: int) -> dict[str, Callable[[Scene, int], Image.Image]]:
    """How a scene becomes a picture: drawn by the model, or composed as in training, or that through the VAE."""
    size = composer.data.size

    def drawn(scene: Scene, k: int) -> Image.Image:
        return pipeline.generate(scene.caption, "", seed=seed * 1000 + k, width=size, height=size).images[0]

    def data(scene: Scene, k: int) -> Image.Image:
        return Image.fromarray(composer.whole(scene, (size, size), np.random.default_rng([seed, 6, k])).image)

    @torch.no_grad()
    def vae(scene: Scene, k: int) -> Image.Image:
        weight = next(pipeline.vae.parameters())
        image = to_tensor(np.asarray(data(scene, k))[None].copy()).to(weight)
        decoded = pipeline.vae.decode(pipeline.vae.encode(image)[0])[0].float().cpu()
        return Image.fromarray(((decoded.permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().byte().numpy())

    return {"drawn": drawn, "data": data, "vae": vae}


def scores(verdicts: Sequence[Verdict]) -> dict[str, tuple[int, int]]:
    """Of each measure: how many are right, of how many to which it applies."""
    names = ("colour", "top-1", "top-5", "side", "relation", "position", "count", "all")
    return {name: (sum(each.get(name, False) for each in verdicts), sum(name in each for each in verdicts)) for name in names}


class Judge:
    """Whether a picture shows a scene."""

    def __init__(self, things: Sequence[Thing]) -> None:
        self.things = things
        self.known = lru_cache(maxsize=None)(self._known)

    def __call__(self, picture: Image.Image, scene: Scene) -> Verdict:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
        shown = standing_out(pixels)
        found = parts(shown)
        verdict = {"colour": background(picture) == scene.colour}
        if scene.kind == "pair":
            verdict |= self._pair(pixels, shown, scene)
        else:
            boxes = [whole(shown)] if scene.kind in ("one", "place") else found[:3]
            verdict |= self._ranked([self._rank(pixels, box, scene.colour, scene.placed[0].hue, scene.placed[0].thing) for box in boxes])
        if scene.kind == "place":
            verdict["side"] = verdict["position"] = placed(whole(shown), shown.shape, PLACES[scene.said])
        if scene.kind == "count":
            verdict["count"] = len(found) == {word: number for number, word in NUMBERS.items()}[scene.said]
        return {**verdict, "all": all(right for name, right in verdict.items() if name != "top-1")}

    def _pair(self, pixels: np.ndarray, shown: np.ndarray, scene: Scene) -> Verdict:
        """The picture is halved along the relation's axis."""
        across = RELATIONS[scene.said][0][1] == 0.5
        half = shown.shape[1 if across else 0] // 2
        first = shown.copy()
        (first[:, half:] if across else first[half:])[...] = False
        boxes = [whole(first), whole(shown & ~first)]
        if RELATIONS[scene.said][0] > RELATIONS[scene.said][1]:
            boxes.reverse()
        one, other = (each.thing for each in scene.placed)
        straight = [self._rank(pixels, box, scene.colour, None, thing) for box, thing in zip(boxes, (one, other), strict=True)]
        turned = [self._rank(pixels, box, scene.colour, None, thing) for box, thing in zip(boxes, (other, one), strict=True)]
        relation = all(boxes) and min(straight) < NEAREST and (one == other or sum(straight) < sum(turned))
        return self._ranked(min(straight, turned, key=sum)) | {"relation": relation, "position": relation}

    @staticmethod
    def _ranked(ranks: Sequence[int]) -> Verdict:
        return {"top-1": bool(ranks) and max(ranks) < 1, "top-5": bool(ranks) and max(ranks) < NEAREST}

    def _rank(self, pixels: np.ndarray, box: Box | None, colour: str, hue: str | None, thing: int) -> int:
        """How many things are nearer to what is in the box than `thing` is."""
        if box is None:
            return len(self.things)
        cut = Image.fromarray(pixels.astype(np.uint8)).crop(box)
        distances = np.square(self.known(colour, hue) - fitted(cut, COLOURS[colour])).mean(axis=1)
        return int((distances < distances[thing]).sum())

    def _known(self, colour: str, hue: str | None) -> np.ndarray:
        """Every thing on `colour`, (things, values)."""
        made = []
        for thing in self.things:
            tile = tinted(thing.tile, hue) if hue and thing.tints else thing.tile
            whole = Image.new("RGB", tile.size, COLOURS[colour])
            whole.paste(tile, (0, 0), tile)
            made.append(fitted(whole, COLOURS[colour]))
        return np.stack(made)


def fitted(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """SIDE x SIDE pixels with the whole of it in the middle, flat."""
    scale = SIDE / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BOX)
    canvas = Image.new("RGB", (SIDE, SIDE), colour)
    canvas.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return np.asarray(canvas, dtype=np.float32).ravel()


def standing_out(pixels: np.ndarray) -> np.ndarray:
    """Where a picture (H, W, 3) is far from the median of its upper and lower border."""
    middle = np.median(np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)]), axis=0)
    return np.abs(pixels - middle).max(-1) > FAR


def whole(shown: np.ndarray) -> Box | None:
    """Around all that stands out, but for single specks; None where nothing does."""
    rows, columns = (np.flatnonzero(shown.mean(axis=axis) > 0.02) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) and len(columns) else None


def parts(shown: np.ndarray) -> list[Box]:
    """Boxes around the parts that do not touch, the largest first, without those far smaller."""
    height, width = (side // GRAIN * GRAIN for side in shown.shape)
    cell = (height // GRAIN, width // GRAIN)
    free = shown[:height, :width].reshape(GRAIN, cell[0], GRAIN, cell[1]).mean(axis=(1, 3)) > FILLED
    found = []
    while free.any():
        members = _flood(free, tuple(np.argwhere(free)[0]))
        (top, left), (bottom, right) = members.min(axis=0), members.max(axis=0) + 1
        found.append((len(members), (int(left) * cell[1], int(top) * cell[0], int(right) * cell[1], int(bottom) * cell[0])))
    found.sort(key=lambda each: -each[0])
    return [box for count, box in found if count >= SMALLEST * found[0][0]]


def _flood(free: np.ndarray, start: tuple[int, ...]) -> np.ndarray:
    """The cells that hang together with `start`, sides and corners; they are taken out of `free`."""
    members, waiting = [], [start]
    free[start] = False
    while waiting:
        row, column = waiting.pop()
        members.append((row, column))
        near = [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        for each in near:
            if 0 <= each[0] < len(free) and 0 <= each[1] < len(free[0]) and free[each]:
                free[each] = False
                waiting.append(each)
    return np.array(members)


def placed(box: Box | None, shape: tuple[int, ...], wanted: tuple[float, float]) -> bool:
    """Whether the box's centre is on the wanted side of the middle by 8 % of the picture, and nearer to the middle on the other axis."""
    if box is None:
        return False
    off = ((box[0] + box[2]) / 2 / shape[1] - 0.5, (box[1] + box[3]) / 2 / shape[0] - 0.5)
    axis = 0 if wanted[0] != 0.5 else 1
    return off[axis] * (wanted[axis] - 0.5) > 0 and abs(off[axis]) > max(0.08, abs(off[1 - axis]))


if __name__ == "__main__":
    sys.exit(main())
