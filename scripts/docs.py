"""docs/cli.md, and the table of names in README.md, from the code: `python -m scripts.docs` writes them, a test holds them to it.

The words around the tables are here; names, meanings, ranges and defaults are those of `ldm.options.Job`, of the verbs' own parsers and
of the tables of samplers and schedules.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from ldm import resources
from ldm.commands import VERBS
from ldm.diffusion.samplers import SAMPLERS, Sampler
from ldm.diffusion.schedules import SCHEDULES
from ldm.flags import help_text
from ldm.options import KNOBS, Job, Knob

ROOT = Path(__file__).parent.parent
PATH = ROOT / "docs" / "cli.md"
README = ROOT / "README.md"
START, END = "<!-- names: python -m scripts.docs writes them -->\n", "<!-- end of names -->"
HEAD = """# The command

`ldm VERB ...`, `python -m ldm VERB ...`; `python -m ldm.sample ...` is `ldm sample ...`.

| verb | what it does |
|---|---|
{verbs}

## `ldm sample`

Every flag, its range and its default. The names in the third column are those of the same value in `--params` (JSON),
in presets (TOML) and, but for `size`, `ar` and what is about the whole run, in prompt files (.jsonl, .csv). What other programs call
a flag is understood too (fourth column), and `--cfg_scale` as `--cfg-scale`.

| flag | meaning | name | also |
|---|---|---|---|
{flags}

**Samplers.** A sampler calls the model so many times a step. Those with ancestral noise draw anew at every step, those with Brownian
noise along one path, so that more steps refine the same picture. Below the fewest steps the result is poor, unless the model was
made for few.

| `--sampler` | calls a step | noise | fewest steps |
|---|--:|---|--:|
{samplers}

**Schedules**, for `--schedule`: {schedules}. **Profiles**, for `--profile`: {profiles}.

**Who decides.** Flags go before `--from-image`, that before `--params`, that before `--preset`; then come the profile's
rule for sizes, the model's own defaults and what is built in. In a prompt file a line's own options go before all of these.

**Exit codes.** 0 done, 1 failed, 2 input not acceptable, 130 interrupted, 143 terminated. Every error is one line,
`ldm: error E####: what, where: what to do`; the classes are listed in [reliability.md](reliability.md).

## The other verbs
{verbs_flags}"""


def verb_row(name: str) -> str:
    return f"| `{name}` | {VERBS[name]} |"


def flag_row(name: str, knob: Knob) -> str:
    flags = ", ".join(f"`{flag}`" for flag in knob.flags)
    value = "" if knob.parse is None else f" `{knob.metavar}`"
    also = " ".join(f"`{alias}`" for alias in knob.aliases)
    return f"| {flags}{value} | {help_text(name, knob).replace('|', '/')} | `{name}` | {also} |"


def sampler_row(sampler: Sampler) -> str:
    return f"| `{sampler.name}` | {sampler.evaluations} | {sampler.noise} | {sampler.minimum} |"


def verb_flags(name: str) -> str:
    """The flags of another verb, as its own parser has them."""
    made: argparse.ArgumentParser = import_module(f"ldm.commands.{name}").parser()
    rows = [_row(action) for action in made._actions if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)]
    return f"\n### `ldm {name}`\n\n{VERBS[name][0].upper()}{VERBS[name][1:]}.\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _row(action: argparse.Action) -> str:
    value = action.metavar or (",".join(map(str, action.choices)) if action.choices else action.dest.upper())
    takes = "" if action.nargs == 0 else f" `{value}`"
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    return f"| {flags}{takes} | {(action.help or '').replace('%%', '%').replace('|', '/')} |".replace("|  `", "| `")


def text() -> str:
    """The whole page of the command."""
    return HEAD.format(
        verbs="\n".join(map(verb_row, VERBS)),
        flags="\n".join(flag_row(name, knob) for name, knob in KNOBS.items() if knob.flags),
        samplers="\n".join(map(sampler_row, SAMPLERS.values())),
        schedules=", ".join(f"`{name}`" for name in SCHEDULES),
        profiles=", ".join(f"`{name}`" for name in resources.names("profiles")),
        verbs_flags="".join(verb_flags(name) for name in VERBS if name != "sample"),
    )


def names() -> str:
    """README's table of names."""
    profiles = [f"{name} (default)" if name == Job.profile else name for name in resources.names("profiles")]
    rows = {"samplers": list(SAMPLERS), "schedules": list(SCHEDULES), "profiles": profiles}
    return "| | |\n|---|---|\n" + "".join(f"| {kind} | {', '.join(each)} |\n" for kind, each in rows.items())


def readme(page: str) -> str:
    """README.md with that table as the code has it."""
    before, start, rest = page.partition(START)
    return before + start + names() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
