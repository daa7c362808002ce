"""The table of a run; docs/benchmarks.json, which keeps the last record of each machine, and docs/benchmarks.md, made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import InputError
from ldm.files import write_atomic
from scripts.bench import goals, records

DOCS = Path(__file__).parents[2] / "docs"
DATA, PAGE = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
HEAD = ("row", "tier", "side", "median", "p10 to p90", "A/A", "ldm of it", "MFU", "error", "GiB")
OPERATIONS = ("operation", "shape", "implementation", "median", "rate", "bytes", "error", "why not")
WIDEST = 60  # letters of a cell in a terminal
NOT = "not measured"
NOTHING = "None has been measured yet."
Row = Mapping[str, Any]


def table(record: Mapping[str, Any]) -> str:
    """Every row of a run, for a terminal: the columns of the page, padded."""
    rows = [HEAD, *(line for name, row in record["rows"].items() for line in lines_of(name, row, peak(record)))]
    operations = [line for row in record["rows"].values() for line in tabled(row)]
    return f"{said(record)}\n\n{padded(rows)}" + (f"\n\n{padded([OPERATIONS, *operations])}" if operations else "")


def said(record: Mapping[str, Any]) -> str:
    """Machine, date, versions, and the command for all rows, some of which others have added."""
    host = "".join(f", {key} {value}" for key, value in record["machine"].items() if key not in ("name", "slug", "device"))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    words, chosen, _ = record["command"].partition(" --only ")
    command = f"{words}{chosen}{','.join(record['rows'])}" if chosen else words
    return f"{record['machine']['name']}{host}; {record['date']}; {versions}; {command}"


def padded(lines: Sequence[Sequence[str]]) -> str:
    lines = [[cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 3]}..." for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def peak(record: Mapping[str, Any]) -> float | None:
    """TFLOP/s of the measured product: what MFU is a part of."""
    found: float | None = record["rows"].get("product", {}).get("tflops")
    return found


def lines_of(name: str, row: Row, ceiling: float | None) -> Iterator[tuple[str, ...]]:
    """A line a side; one that says why where there is none."""
    if row["state"] != "measured":
        yield (name, row["tier"], f"{row['state']}: {row.get('why', '')}", *[""] * 5, errors(row), "")
    elif "sides" not in row:
        yield (name, row["tier"], single(row), *[""] * 7)
    first = next(iter(row.get("sides", {}).values()), None)
    for side, found in row.get("sides", {}).items() if row["state"] == "measured" else ():
        ratio = f"{first['median'] / found['median']:.2f}" if found is not first and "gate" in row else ""
        span = f"{time(found['p10'])} to {time(found['p90'])}"
        cells = (
            time(found["median"]),
            span,
            f"{found['itself']:.2f}",
            ratio,
            share(row, found, ceiling),
            error_of(row, side),
            gib(row, side),
        )
        yield (name if found is first else "", row["tier"] if found is first else "", side, *cells)


def single(row: Row) -> str:
    """A row of one figure."""
    if "tflops" in row:
        return f"{row['tflops']:.3g} TFLOP/s"
    if "gbps" in row:
        return f"{row['gbps']:.3g} GB/s"
    if "memory" in row:
        found = row["memory"]
        planned = f"planned {found['planned']:.2f}, host {found['host']:.2f}"
        return f"{found['gib']:.2f} of {found['limit']} GiB, {planned}; {found['seconds']:.1f} s"
    return "see the table of operations"


def time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def share(row: Row, side: Row, ceiling: float | None) -> str:
    """Of the measured product's rate, by the operations that the picture takes when nothing is left out."""
    if not row.get("tflop") or ceiling is None:
        return ""
    return f"{row['tflop'] / side['median'] / ceiling:.0%}"


def error_of(row: Row, side: str) -> str:
    found = row.get("gate", {}).get("errors", {}).get(side)
    return "" if found is None else f"{float(found):.0e}"


def gib(row: Row, side: str) -> str:
    found = row.get("gib", {}).get(side)
    return "" if found is None else f"{found:.2f}"


def errors(row: Row) -> str:
    return ", ".join(f"{side} {float(error):.0e}" for side, error in row.get("gate", {}).get("errors", {}).items())


def tabled(row: Row) -> Iterator[tuple[str, ...]]:
    """The lines of an operation."""
    for line in row.get("table", ()):
        rates = (f"{line['us']:.1f} µs", f"{line['tflops']:.0f} TFLOP/s", f"{line['gbps']:.0f} GB/s") if line["met"] else ("", "", "")
        error = "" if line["error"] is None else f"{float(line['error']):.0e}"
        why = "" if line["met"] else line.get("why", "its error is too large")
        yield (row["what"], line["shape"], line["name"], *rates, error, why)


def write(record: Mapping[str, Any]) -> None:
    """The record into the kept data, in the place of its machine's last one, and the page of it. Raises InputError for a small run."""
    if record["small"]:
        raise InputError("a small run is no measure: docs/benchmarks.md stays as it is")
    data = kept()
    data["records"][records.name(record)] = merged(data["records"].get(records.name(record), {}), record)
    text = json.dumps(data, indent=1) + "\n"
    write_atomic(DATA, lambda file: file.write(text.encode()), overwrite=True)
    write_atomic(PAGE, lambda file: file.write(page(data).encode()), overwrite=True)


def kept() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {"records": {}}


def merged(before: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of `record` over those that were kept, without single samples; a row that was not measured hides none that was."""
    rows = {name: bare(row) for name, row in record["rows"].items()}
    old = {name: row for name, row in before.get("rows", {}).items() if rows.get(name, {}).get("state", NOT) == NOT}
    return {**record, "rows": {**rows, **old}}


def bare(row: Row) -> dict[str, Any]:
    sides = {side: {key: value for key, value in found.items() if key != "samples"} for side, found in row.get("sides", {}).items()}
    return {key: value for key, value in row.items() if key != "run"} | ({"sides": sides} if sides else {})


def page(data: Mapping[str, Any]) -> str:
    """docs/benchmarks.md: the words of page.md between the tables that the data gives."""
    parts = {"goals": goals.table(data["records"]), "machines": "\n".join(map(section, data["records"].values())) or NOTHING}
    words = (Path(__file__).parent / "page.md").read_text(encoding="utf-8")
    return re.sub(r"^\{(\w+)\}$", lambda found: parts[found[1]], words, flags=re.MULTILINE).rstrip() + "\n"


def section(record: Mapping[str, Any]) -> str:
    """One machine."""
    lines = [line for name, row in record["rows"].items() for line in lines_of(name, row, peak(record))]
    text = f"### {record['machine']['name']}\n\n{said(record)}\n\n{markdown(HEAD, lines)}"
    more = [line for row in record["rows"].values() for line in tabled(row)]
    return text + (f"\n{markdown(OPERATIONS, more)}" if more else "")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "/") for cell in line] for line in lines)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
