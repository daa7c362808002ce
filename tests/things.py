"""Things drawn here, as scripts/emoji.py writes those of a font, which not every machine has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ldm.train.scenes import Thing

Paint = Callable[[ImageDraw.ImageDraw], Any]

SHAPES: dict[str, Paint] = {
    "disc": lambda draw: draw.ellipse((2, 2, 38, 38), (230, 200, 40, 255)),
    "block": lambda draw: draw.rectangle((4, 4, 36, 36), (60, 200, 90, 255)),
    "roof": lambda draw: draw.polygon([(20, 2), (38, 38), (2, 38)], (200, 60, 160, 255)),
    "stick": lambda draw: draw.rectangle((14, 0, 26, 40), (70, 70, 220, 255)),
    "ring": lambda draw: draw.ellipse((2, 2, 38, 38), None, (230, 60, 40, 255), 6),
    "cross": lambda draw: draw.polygon([(20, 0), (26, 14), (40, 20), (26, 26), (20, 40), (14, 26), (0, 20), (14, 14)], (90, 220, 220, 255)),
}


def drawn(shapes: Mapping[str, Paint] = SHAPES, side: int = 41) -> list[Thing]:
    things = []
    for name, paint in shapes.items():
        tile = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        paint(ImageDraw.Draw(tile))
        things.append(Thing(tile.crop(tile.getbbox()), (name,)))
    return things


def write(folder: Path, things: Sequence[Thing] = ()) -> None:
    """`things.json` and a picture of each, into a folder that is there; without `things` those of SHAPES."""
    entries = []
    for k, thing in enumerate(things or drawn()):
        thing.tile.save(folder / f"{k}.png")
        entries.append({"file": f"{k}.png", "names": thing.names, "plural": thing.plural, "weight": thing.weight})
    (folder / "things.json").write_text(json.dumps(entries), encoding="utf-8")
