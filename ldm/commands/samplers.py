"""`ldm samplers`: the samplers and the schedules, what other engines call them, what a step costs; told without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache

from ldm.commands.flags import made
from ldm.diffusion import names, profiles
from ldm.diffusion.names import SOLVERS, SPACINGS, Solver, Spacing
from ldm.errors import InputError, near_matches
from ldm.flags import Parser

ENGINES = ("A1111", "ComfyUI", "diffusers")
LEGEND = "evaluations: of the network a step; noise: on the way, from one path where brownian; steps: the fewest for good results"


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code."""
    options = parser().parse_args(argv)
    samplers = [row for row in SOLVERS.values() if _asked(row, options.words)]
    schedules = [row for row in SPACINGS.values() if _asked(row, options.words)]
    if not samplers and not schedules:
        samplers, schedules = _named(" ".join(options.words))
    if not samplers and not schedules:
        near = near_matches(options.words[0], [*SOLVERS, *SPACINGS])
        raise InputError(f"no sampler or schedule has {' and '.join(options.words)!r} in its names: {near}")
    as_json = options.json or options.format == "json"
    for line in _objects(samplers, schedules) if as_json else _tables(samplers, schedules):
        print(line)
    print(end="", flush=True)
    return 0


def parser() -> Parser:
    about = "List the samplers and schedules, and what other engines call them. All these names are understood; --set is a flag."
    flags = made("samplers", about)
    flags.add_argument("words", nargs="*", metavar="WORD", help="list only those with all of these in one of their names")
    flags.add_argument("--format", choices=("human", "json"), default="human", help="human: two tables; json: as --json")
    return flags


def _asked(row: Solver | Spacing, words: Sequence[str]) -> bool:
    written = "\n".join((row.name, row.a1111, row.comfyui, row.diffusers, *row.also)).casefold()
    return all(word.casefold() in written for word in words)


def _named(text: str) -> tuple[list[Solver], list[Spacing]]:
    """Those that --sampler or --schedule would take the text for."""
    for read in (lambda: names.sampler(text), lambda: (None, names.schedule(text))):
        try:
            solver, spacing = read()
        except InputError:
            continue
        return [SOLVERS[solver]] if solver else [], [SPACINGS[spacing]] if spacing else []
    return [], []


def _objects(samplers: Sequence[Solver], schedules: Sequence[Spacing]) -> Iterator[str]:
    for sampler in samplers:
        told = {"kind": "sampler", **sampler._asdict(), "stochastic": sampler.noise != "none", "rules": _rules(sampler)}
        yield json.dumps(told)
    for schedule in schedules:
        yield json.dumps({"kind": "schedule", **schedule._asdict(), "rules": _rules(schedule)})


def _rules(row: Solver | Spacing) -> list[str]:
    """The fields of a profile that decide on it: its own, and those that list it in some profile."""
    own = row.rules.split(", ") if row.rules else []
    return own if isinstance(row, Spacing) else own + [field for field, listed in _listed().items() if row.name in listed]


@cache
def _listed() -> dict[str, set[str]]:
    """The fields that list samplers, and all that they list."""
    known = [asdict(profiles.load_profile(name)) for name in profiles.names()]
    return {field: {name for each in known for name in each[field]} for field, value in known[0].items() if isinstance(value, tuple)}


def _tables(samplers: Sequence[Solver], schedules: Sequence[Spacing]) -> Iterator[str]:
    """Both, where they have rows, and what the words of the first mean."""
    if samplers:
        head = ("sampler", *ENGINES, "evaluations", "noise", "steps", "by profile")
        cells = [(*row[:4], str(row.evaluations), row.noise, str(row.minimum), ", ".join(_rules(row))) for row in samplers]
        yield from _aligned(head, cells)
        yield LEGEND
    if samplers and schedules:
        yield ""
    if schedules:
        yield from _aligned(("schedule", *ENGINES, "by profile"), [(*row[:4], row.rules) for row in schedules])


def _aligned(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    filled = [tuple(cell or "-" for cell in row[:-1]) + row[-1:] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *filled, strict=True)]
    for row in (head, *filled):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
