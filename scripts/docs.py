"""docs/cli.md from the one declaration of a job: `python -m scripts.docs` writes it, a test holds it to the code.

The words around the table are here; names, meanings, ranges and defaults are those of `ldm.options.Job`.
"""

from __future__ import annotations

from pathlib import Path

from ldm.commands import VERBS
from ldm.flags import help_text
from ldm.options import KNOBS, Knob

PATH = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# The command

`ldm VERB ...`, `python -m ldm VERB ...`; `python -m ldm.sample ...` is `ldm sample ...`.

| verb | what it does |
|---|---|
{verbs}

## `ldm sample`

Every flag, its range and its default. The names in the third column are those of the same value in `--params` (JSON),
in presets (TOML) and in prompt files (.jsonl, .csv). What other programs call a flag is understood too (fourth column).

| flag | meaning | name | also |
|---|---|---|---|
{flags}

**Who decides.** Flags go before `--from-image`, that before `--params`, that before `--preset`; then come the profile's
rule for sizes, the model's own defaults and what is built in. In a prompt file a line's own options go before all of these.

**Exit codes.** 0 done, 1 failed, 2 input not acceptable, 130 interrupted, 143 terminated. Every error is one line,
`ldm: error E####: what, where: what to do`; the classes are listed in [reliability.md](reliability.md).
"""


def verb_row(name: str) -> str:
    return f"| `{name}` | {VERBS[name]} |"


def flag_row(name: str, knob: Knob) -> str:
    flags = ", ".join(f"`{flag}`" for flag in knob.flags)
    value = "" if knob.parse is None else f" `{knob.metavar}`"
    also = " ".join(f"`{alias}`" for alias in knob.aliases)
    return f"| {flags}{value} | {help_text(name, knob).replace('|', '/')} | `{name}` | {also} |"


def text() -> str:
    """The whole page."""
    flags = "\n".join(flag_row(name, knob) for name, knob in KNOBS.items() if knob.flags)
    return HEAD.format(verbs="\n".join(map(verb_row, VERBS)), flags=flags)


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
