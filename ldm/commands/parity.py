"""`ldm parity`: a model file through every stage here and in another engine, and how far apart they are."""

from __future__ import annotations

import json
from pathlib import Path

from ldm import catalogue, values
from ldm.commands.flags import made
from ldm.commands.streams import say
from ldm.errors import InputError, near_matches
from ldm.flags import Parser
from ldm.limits import LIMITS

SIDE, STEPS = 256, 4


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code: 1 where a stage is farther off than its gate."""
    options = parser().parse_args(argv)
    path = catalogue.find(options.checkpoint, "checkpoint", catalogue.places(options.models_dir))
    from ldm.checkpoint.families import recognise
    from ldm.checkpoint.safetensors import read_header
    from ldm.parity import foreign

    family = recognise(read_header(path))
    height, width = options.size or (min(family.defaults.height, SIDE), min(family.defaults.width, SIDE))
    for name, side in (("height", height), ("width", width)):
        if not LIMITS[name].allows(side):
            raise InputError(f"--size: {name} {side} is not allowed: {LIMITS[name]}: the nearest is {LIMITS[name].nearest(side)}")
    engine = f"{options.against} {foreign.check_installed()}"
    say(f"{path.name} here and in {engine}: {family.title}, {width}x{height}, float32 on {options.device}", options.json)
    from ldm.parity.stages import Case, compare

    case = Case(Path(path), family, height, width, STEPS, options.device, _known(options.samplers))
    missed = 0
    for row in compare(case, lambda what: say(f"  {what}", options.json)):
        missed += not row.met
        _show(row.stage, row.error, row.gate, options.json)
    if missed:
        say(f"ldm: {missed} stage{'s' if missed > 1 else ''} beyond the gate")
    return 1 if missed else 0


def _known(given: str | None) -> tuple[str, ...]:
    """The samplers of a list with commas."""
    from ldm.parity import schedulers

    asked = tuple(name.strip() for name in (given or "").split(",") if name.strip())
    known = schedulers.shared(False)
    for name in asked:
        if name not in known:
            raise InputError(f"--samplers: {name!r} is none that both have: {near_matches(name, known)}")
    return asked


def _show(stage: str, error: float, gate: float, as_json: bool) -> None:
    line = json.dumps({"stage": stage, "error": error, "gate": gate}) if as_json else f"{stage:32} {error:9.1e}"
    print(line if as_json or error <= gate else f"{line}   over {gate:.0e}", flush=True)


def parser() -> Parser:
    flags = made("parity", "Run a model file through every stage here and in another engine, and print relative errors.", models_dir=True)
    flags.add_argument("--checkpoint", "-m", metavar="NAME", help="model file or name; none: the model in the box")
    flags.add_argument("--against", default="diffusers", choices=["diffusers"], help="the other engine, which must be installed")
    flags.add_argument("--size", type=_size, metavar="WxH", help=f"of the picture; the model's own, at most {SIDE}x{SIDE}, without it")
    flags.add_argument("--samplers", metavar="LIST", help="run only these, commas between; all that both have without it")
    flags.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda")
    return flags


def _size(text: str) -> tuple[int, int]:
    return values.size(text)


_size.__name__ = "size"  # argparse names it when it refuses
