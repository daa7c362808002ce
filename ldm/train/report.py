"""A run on one page: loss, learning rate and gradient norm as lines, and the sample grids, in an HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import InputError
from ldm.files import write_atomic

CURVES = ("loss", "mse", "lr", "norm", "pictures_per_second")  # and whatever else a line has
WIDTH, HEIGHT, POINTS = 720, 160, 1000
STYLE = (
    "body{font:15px system-ui;max-width:760px;margin:2em auto;color:#222}svg{background:#fafafa}img{max-width:100%}"
    "polyline{fill:none;stroke:#27c;stroke-width:1.2}polyline.mean{stroke:#d40;stroke-width:1.8}figcaption{color:#666}"
)


def report(folder: Path, target: Path | None = None) -> Path:
    """Write the page of the run in `folder` (by default to report.html there) and return its path. InputError where nothing is logged."""
    parts = [_section(log.parent.name, log) for log in sorted(folder.glob("*/metrics.jsonl"))]
    if not parts:
        raise InputError(f"{folder}: no metrics.jsonl in any folder of it: give the --out of a run")
    title = html.escape(folder.resolve().name)
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{''.join(parts)}"
    path = target or folder / "report.html"
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}: make it first")
    return write_atomic(path, lambda file: file.write(page.encode()), overwrite=True)


def _section(name: str, log: Path) -> str:
    lines = list(_lines(log))
    keys = [key for key in CURVES if any(key in line for line in lines)]
    keys += sorted({key for line in lines for key in line} - set(keys) - {"step"})
    curves = "".join(_figure(key, [(line["step"], line[key]) for line in lines if key in line]) for key in keys)
    grids = "".join(_picture(path) for path in sorted(log.parent.glob("samples/*.png")))
    last = lines[-1]["step"] if lines else 0
    return f"<h2>{html.escape(name)}: {last:,} steps</h2>{curves}{'<h3>samples</h3>' + grids if grids else ''}"


def _lines(log: Path) -> Iterable[dict[str, float]]:
    """The whole lines of a log; one that was cut by a kill is passed over, and steps that were made again count as they were last."""
    kept: list[dict[str, float]] = []
    for line in _whole(log):
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def _whole(log: Path) -> Iterable[dict[str, float]]:
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            yield {key: value for key, value in found.items() if type(value) in (int, float) and math.isfinite(value)}


def _figure(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve, and its running mean over a fiftieth of the points; the axis is logarithmic where values span more than a decade."""
    points = points[:: -(-len(points) // POINTS)] if points else points
    values = [value for _, value in points]
    if not values:
        return ""
    logarithmic = min(values) > 0 and max(values) / min(values) > 10
    heights = [math.log10(value) if logarithmic else value for value in values]
    low, high = min(heights), max(heights)
    span, last = (high - low) or 1, points[-1][0] or 1
    xs = [step / last * WIDTH for step, _ in points]
    window = max(1, len(points) // 50)
    means = [sum(heights[max(0, at - window + 1) : at + 1]) / min(at + 1, window) for at in range(len(heights))]
    lines = [("", heights), (" class=mean", means)]
    drawn = "".join(_line(kind, xs, [(1 - (y - low) / span) * (HEIGHT - 8) + 4 for y in line]) for kind, line in lines)
    said = f"{html.escape(name)}: {values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"
    axis = ", logarithmic" if logarithmic else ""
    return f"<figure><svg viewBox='0 0 {WIDTH} {HEIGHT}' width=100%>{drawn}</svg><figcaption>{said}{axis}</figcaption></figure>"


def _line(kind: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    return f"<polyline{kind} points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in zip(xs, ys, strict=True))}'/>"


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"<figure><img src='data:image/png;base64,{data}'><figcaption>{html.escape(path.stem)}</figcaption></figure>"
