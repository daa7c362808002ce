"""Experiments on a model as it is: what it is told of crops and sizes, guidance, samplers and their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from scripts.evaluate import Judge, Verdict, held_scenes, scores
from scripts.experiments.common import Asked, Found, Table, columns, pictures, sheet
from scripts.experiments.measures import Pair, mean, offset, sharpness, spread

CROPS = ((1.0, 0.0), (1.0, 0.125), (1.0, 0.25), (1.0, 0.375), (1.5, 0.0), (1.5, 0.25), (1.5, 0.5))  # original and corner, of the side
ORIGINALS = (0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of the side, from the smallest that training has
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
SEEDS = 4  # pictures of one scene, where they are held against each other
SOLVERS = {  # with the schedule
    "euler": "karras",
    "euler_a": "karras",
    "ddim": "ddim_uniform",
    "dpmpp_2m": "karras",
    "unipc": "karras",
    "dpmpp_sde": "karras",
}
STEPS = (4, 6, 8, 10, 15, 20, 30, 50)
MANY = 200  # steps of what the others are held against
NEAR = 10.0  # of 255


def crop(asked: Asked) -> Found:
    rows, shown = list[list[Any]](), {}
    for original, corner in ((round(a * asked.size), round(b * asked.size)) for a, b in CROPS):
        drawn = asked.drawn(original=(original, original), crop=(corner, corner))
        there = original >= corner + asked.size
        right, down, seen = moved(drawn)
        data = moved(windows(asked, original, corner) if there else [])
        rows.append([original, corner, original / 2 - corner - asked.size / 2, right, down, *data[:2], f"{seen} of {len(drawn)}"])
        shown[f"{original}, {corner}"] = drawn
        asked.say(f"crop: original {original}, corner {corner}")
    head = ["original", "crop", "where the middle then is", "right", "down", "data: right", "data: down", "seen"]
    alone, both = ([row for row in rows if (row[0] == asked.size) == own] for own in (True, False))
    own, data = slope(both), slope(both, 5)
    said = f"For each pixel that the numbers say the things move {plain(slope(alone))} where the crop alone changes, "
    said += f"{plain(own)} where it is of a larger original, in the data {plain(data)}{learned(own, data)}."
    return Found([Table(head, rows)], said, columns(shown), "Original and crop above each column, the same seeds below each other.")


def moved(drawn: Sequence[np.ndarray]) -> tuple[Pair, Pair, int]:
    """How far the thing is from the middle, right and down, and in how many pictures there is one."""
    found = [each for each in map(offset, drawn) if each is not None]
    return mean([each[1] for each in found]), mean([each[0] for each in found]), len(found)


def slope(rows: Sequence[Sequence[Any]], at: int = 3) -> float | None:
    """How much of the way in column 2 the things have gone, by the pair of columns from `at` on."""
    points = [(row[2], (row[at][0] + row[at + 1][0]) / 2) for row in rows if row[at][0] is not None]
    if len({told for told, _ in points}) < 2:
        return None
    told, gone = np.array(points).T
    return float(np.polyfit(told, gone, 1)[0])


def plain(value: float | None) -> str:
    return "(not known)" if value is None else f"{round(value, 2) + 0.0:.2f}"  # no -0


def learned(own: float | None, data: float | None) -> str:
    """How much of what the data does the model does."""
    return "" if own is None or not data else f": the model follows {round(100 * own / data)} % of it"


def windows(asked: Asked, original: int, corner: int) -> list[np.ndarray]:
    """What the data shows for these numbers: canvases with the thing in the middle, cut at the corner."""
    made = []
    for scene, rng in asked.singles():
        canvas = asked.composer.render(scene, (original, original), asked.size, rng)
        made.append(np.asarray(canvas.crop((corner, corner, corner + asked.size, corner + asked.size)), dtype=np.float32))
    return made


def size(asked: Asked) -> Found:
    rows, shown = list[list[Any]](), {}
    for original in (round(share * asked.size) for share in ORIGINALS):
        drawn = asked.drawn(original=(original, original))
        data = sharp(enlarged(asked, original)) if original <= asked.size else [[None, None], [None, None]]
        rows.append([original, *sharp(drawn), *data])
        shown[f"{original}"] = drawn
        asked.say(f"size: original {original}")
    head = ["original", "difference of neighbours", "fine share", "data: difference", "data: fine share"]
    least, own = rows[0], next(row for row in rows if row[0] == asked.size)
    grown, there = (own[at][0] / least[at][0] if least[at][0] else None for at in (1, 3))
    said = f"From {least[0]} to {own[0]} the difference of neighbours grows {plain(grown)} times"
    said += f", in the data {plain(there)} times{learned(grown and grown - 1, there and there - 1)}." if asked.folder else "."
    return Found([Table(head, rows)], said, columns(shown), "The original size above each column, the same seeds below each other.")


def sharp(drawn: Sequence[np.ndarray]) -> list[Pair]:
    found = list(map(sharpness, drawn))
    return [mean([each[k] for each in found]) for k in (0, 1)]


def enlarged(asked: Asked, original: int) -> list[np.ndarray]:
    """What the data shows for this size: composed so small, and enlarged."""
    made, wide = [], (asked.size, asked.size)
    for scene, rng in asked.singles():
        small = asked.composer.render(scene, (original, original), original, rng)
        made.append(np.asarray(small.resize(wide, Image.Resampling.BICUBIC), dtype=np.float32))
    return made


class Scenes:
    """Scenes with something held out of training, some pictures of each, and how many of them show what was asked for."""

    def __init__(self, asked: Asked, seeds: int) -> None:
        things = asked.composer.things
        self.asked, self.judge = asked, Judge(things)
        self.seeds = min(seeds, asked.count)
        self.scenes = held_scenes(things, asked.count // self.seeds, asked.seed)

    def drawn(self, **changes: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Pixels of all pictures, and the latents of each scene's."""
        made = [self.asked.batch(scene.caption, at, self.seeds, **changes) for at, scene in enumerate(self.scenes)]
        return [each for result in made for each in pictures(result)], [result.latents.cpu().numpy() for result in made]

    def agreement(self, drawn: Sequence[np.ndarray]) -> dict[str, float | None]:
        """The share of pictures that are right, by measure."""
        owners = [scene for scene in self.scenes for _ in range(self.seeds)]
        verdicts: list[Verdict] = [
            self.judge(Image.fromarray(pixels.astype(np.uint8)), scene) for pixels, scene in zip(drawn, owners, strict=True)
        ]
        return {name: right / of if of else None for name, (right, of) in scores(verdicts).items()}


def cfg(asked: Asked) -> Found:
    scenes, rows, shown = Scenes(asked, SEEDS), list[list[Any]](), {}
    for scale in SCALES:
        drawn, latents = scenes.drawn(cfg=scale)
        right = scenes.agreement(drawn)
        distances = [spread(each) for each in latents] if scenes.seeds > 1 else []
        relative = [distance / float(each.std()) for distance, each in zip(distances, latents, strict=False)]
        shares = [share(right[name], len(drawn)) for name in ("colour", "top-5", "all")]
        rows.append([scale, *shares, mean(distances), mean(relative)])
        shown[f"{scale:g}"] = drawn
        asked.say(f"cfg: {scale}")
    head = ["scale", "colour right", "thing in the first 5", "all right", "distance between seeds", "in standard deviations"]
    said = f"Most pictures are right in all at scale {best(rows, 3)}; in standard deviations the seeds of a prompt are furthest apart at "
    said += f"{best(rows, 5)}. Scales within a standard error of the best are named with it."
    return Found([Table(head, rows)], said, columns(shown), "The scale above each column, the same seeds below each other.")


def share(value: float | None, count: int) -> Pair:
    """With its standard error, as if the pictures were independent."""
    return [None, None] if value is None else [value, float(np.sqrt(value * (1 - value) / count))]


def best(rows: Sequence[Sequence[Any]], at: int) -> str:
    """The scales whose value in a column is within a standard error of the largest."""
    top = max(rows, key=lambda row: row[at][0] or 0.0)[at]
    return ", ".join(f"{row[0]:g}" for row in rows if (row[at][0] or 0.0) >= (top[0] or 0.0) - (top[1] or 0.0))


def steps(asked: Asked) -> Found:
    scenes = Scenes(asked, 1)
    distances, right, shown = [], [], []
    for sampler, schedule in SOLVERS.items():
        end = scenes.drawn(sampler=sampler, schedule=schedule, steps=MANY)[0]
        runs = [scenes.drawn(sampler=sampler, schedule=schedule, steps=count)[0] for count in STEPS]
        distances.append([sampler, *(apart(run, end) for run in runs)])
        right.append([sampler, *(scenes.agreement(run)["all"] for run in [*runs, end])])
        shown.append([run[0] for run in [*runs, end]])
        asked.say(f"steps: {sampler}")
    head = ["sampler", *map(str, STEPS), str(MANY)]
    tables = [
        Table(head[:-1], distances, f"Distance to the same sampler's picture of {MANY} steps:\n\n"),
        Table(head, right, "Share of pictures in which all is right:\n\n"),
    ]
    return Found(tables, settled(distances), sheet(shown, heads=head[1:]), "A row a sampler in the tables' order, steps above; one seed.")


def apart(drawn: Sequence[np.ndarray], end: Sequence[np.ndarray]) -> Pair:
    """The root of the mean squared difference of pixels, of 255."""
    return mean([float(np.sqrt(np.square(one - other).mean())) for one, other in zip(drawn, end, strict=True)])


def settled(distances: Sequence[Sequence[Any]]) -> str:
    """From how few steps on each sampler stays near its end."""
    ends = {}
    for name, *found in distances:
        far = [at for at, (distance, _) in enumerate(found) if distance >= NEAR]
        ends[name] = STEPS[far[-1] + 1] if far and far[-1] + 1 < len(STEPS) else None if far else STEPS[0]
    said = ", ".join(f"{name} {'never' if steps is None else f'from {steps} on'}" for name, steps in ends.items())
    return f"Nearer than {NEAR:g} to the picture of {MANY} steps: {said}."
