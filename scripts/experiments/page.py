"""The table of experiments; what is kept of them, docs/experiments.json and figures; and docs/experiments.md, made of page.md and these."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.files import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

DOCS = Path(__file__).parents[2] / "docs"
NAME = "experiments"  # of the page, the data and the folder of figures
NOT = "**Found:** not measured."


@dataclass(frozen=True)
class Experiment:
    home: str  # the module that has the function of its name
    count: int  # pictures a setting, where none is asked for
    needs: str  # further flags


EXPERIMENTS: Mapping[str, Experiment] = {
    "crop": Experiment("sampling", 64, "--things things"),
    "size": Experiment("sampling", 64, "--things things"),
    "conditioning": Experiment("training", 256, "--model emoji.safetensors --things things --run runs/emoji --minutes 20"),
    "offset": Experiment("training", 64, "--model emoji.safetensors --things things --run runs/emoji --minutes 5"),
    "cfg": Experiment("sampling", 48, "--things things"),
    "steps": Experiment("sampling", 16, "--things things"),
    "latents": Experiment("latents", 512, "--things things"),
}
COMMANDS = [f"python -m scripts.experiments {name} {each.needs} --out docs" for name, each in EXPERIMENTS.items()]


def keep(folder: Path, name: str, record: Mapping[str, Any], figure: Image) -> None:
    """A result and its figure in the place of the last ones of its experiment."""
    (folder / NAME).mkdir(parents=True, exist_ok=True)
    text = json.dumps({**kept(folder), name: record}, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / f"{NAME}.json", lambda file: file.write(text.encode()), overwrite=True)
    write_atomic(folder / NAME / f"{name}.png", lambda file: figure.save(file, "PNG", optimize=True), overwrite=True)


def kept(folder: Path) -> dict[str, Any]:
    path = folder / f"{NAME}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(folder: Path) -> Path:
    text = page(kept(folder))
    return write_atomic(folder / f"{NAME}.md", lambda file: file.write(text.encode()), overwrite=True)


def page(data: Mapping[str, Any]) -> str:
    """The words of page.md between what was found."""
    width = max(map(len, COMMANDS))
    parts = {"commands": "\n".join(f"{line:{width}}  # †" for line in COMMANDS)}
    parts |= {name: result(name, data[name]) if name in data else NOT for name in EXPERIMENTS}
    words = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return re.sub(r"^\{(\w+)\}$", lambda found: parts[found[1]], words, flags=re.MULTILINE)


def result(name: str, record: Mapping[str, Any]) -> str:
    """The tables, what follows from them, the figure; with which command, model and machine."""
    about = record["about"]
    parts = [table["title"] + markdown(table["head"], table["rows"]) for table in record["tables"]]
    parts += [record["said"], f"![{name}]({NAME}/{name}.png)", record["shows"]]
    model = f"{about['model']}, sha256 `{about['sha256']}`"
    where = f"{about['machine']}, torch {about['torch']}, {about['seconds']:,} s"
    parts.append(f"`{about['command']}`, {about['count']:,} pictures a setting; {model}; {about['date']}, {where}.")
    return "**Found:**\n\n" + "\n\n".join(parts)


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines: list[Sequence[str]] = [head, ["---", *["--:"] * (len(head) - 1)], *([cell(each) for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """Text; a number; a mean ± its standard error; nothing for None."""
    if isinstance(value, list | tuple):
        return " ± ".join(each for each in map(cell, value) if each)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else value if isinstance(value, str) else f"{value:,.0f}"
