"""`ldm compare A B`: what made two pictures, side by side, the likeliest cause of their difference first; and where their pixels differ."""

from __future__ import annotations

import json
from pathlib import Path

from ldm.commands.streams import printable, say
from ldm.compare import pixels
from ldm.compare.effects import Difference, differences
from ldm.compare.pixels import Apart
from ldm.compare.sides import Side, side
from ldm.flags import Parser
from ldm.pictures import FORMATS


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code: 0, whether they differ or not."""
    options = parser().parse_args(argv)
    a, b = (side(path) for path in (options.a, options.b))
    both = all(Path(path).suffix.lower() in FORMATS for path in (options.a, options.b))
    apart = pixels.apart(Path(options.a), Path(options.b)) if both else None
    for each in (a, b):
        for note in each.notes:
            say(f"ldm: note: {each.where}: {note}")
    found = differences(a, b) if a.known and b.known else []
    if options.format == "json":
        print(json.dumps(_facts(a, b, found, apart, both)), flush=True)
        return 0
    said = _lines(found) if a.known and b.known else ["what made them is not recorded in both"]
    for line in [*_sides(a, b), _pixels(apart, both), *said]:
        print(printable(line), flush=True)
    return 0


def parser() -> Parser:
    """The verb's flags."""
    parser = Parser(prog="ldm compare", description="Say why two pictures differ: the likeliest cause first, then what follows from it.")
    parser.add_argument("a", metavar="A", help="a picture, or a job as .json or .toml")
    parser.add_argument("b", metavar="B", help="what to hold against it")
    parser.add_argument("--format", choices=("human", "json"), default="human", help="lines for people, or one JSON object")
    return parser


def _sides(a: Side, b: Side) -> list[str]:
    return [f"{name}  {each.where}: {each.program}, profile {each.rules.name}" for name, each in (("A", a), ("B", b))]


def _pixels(apart: Apart | None, both: bool) -> str:
    if not both:
        return "pixels: a job has none"
    if apart is None:
        return "pixels: the sizes differ, so they are not compared"
    if apart.psnr is None or apart.box is None or apart.worst is None:
        return "pixels: equal"
    where = "{},{} to {},{}".format(*apart.box)
    worst = "{},{} to {},{}".format(*apart.worst)
    figures = f"max {apart.max}, mean {apart.mean:.3g} of 255, PSNR {apart.psnr:.1f} dB"
    return f"pixels: {figures}; {apart.share:.1%} of them differ, within {where}, most at {worst}"


def _lines(found: list[Difference]) -> list[str]:
    if not found:
        return ["nothing that is recorded differs"]
    lines = []
    for number, each in enumerate(found, 1):
        effect = "no effect here" if each.effect == "none" else each.effect
        lines.append(f"{number}. {each.what} ({effect}): {each.a} | {each.b}")
        lines += [f"   {each.more}"] if each.more else []
    return lines


def _facts(a: Side, b: Side, found: list[Difference], apart: Apart | None, both: bool) -> dict[str, object]:
    sides = {name: {"where": each.where, "program": each.program, "profile": each.rules.name} for name, each in (("a", a), ("b", b))}
    listed = [{"what": each.what, "a": each.a, "b": each.b, "effect": each.effect, "more": each.more} for each in found]
    return {**sides, "same_size": apart is not None if both else None, "pixels": apart and apart.to_dict(), "differences": listed}
