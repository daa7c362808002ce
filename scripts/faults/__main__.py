"""`python -m scripts.faults ROW... [--count N]`: run rows of docs/reliability.md; exit code 1 when a goal is missed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from scripts.faults import Figure

ROWS = {
    **dict.fromkeys(("A1", "A2", "A3", "A4", "A5", "A6"), "reader"),
    **dict.fromkeys(("A7", "A8", "A9"), "bytes"),
    **dict.fromkeys(("A10", "A12"), "kinds"),
    **dict.fromkeys(("B2", "B3", "B7", "B8", "B9", "B13"), "numbers"),
    **dict.fromkeys(("B1", "C1", "C2"), "memory"),
    **dict.fromkeys(("D5", "D6", "D7", "G6"), "pictures"),
    **dict.fromkeys(("D1", "D3", "D4", "G1", "G5"), "inputs"),
    **dict.fromkeys(("C8", "G4"), "hub"),
    **dict.fromkeys(("C3", "C10"), "process"),
    **dict.fromkeys(("C5", "C6"), "disk"),
    **dict.fromkeys(("C4", "C7", "D8"), "jobs"),
    **dict.fromkeys(("F1", "F2", "F3", "F5", "F6", "F7"), "training"),
    "D2": "grammar",
}


def run(row: str, count: int | None) -> Figure:
    """The experiment of a row."""
    figure: Figure = getattr(import_module(f"scripts.faults.{ROWS[row]}"), row.lower())(count)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make faults and count what comes of them.")
    parser.add_argument("rows", nargs="+", choices=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--count", type=int, help="how often; default: the row's own count")
    options = parser.parse_args(arguments)
    good = True
    for row in options.rows:
        start = time.perf_counter()
        figure = run(row, options.count)
        good = good and figure.good
        print(f"{row} {figure} [{time.perf_counter() - start:.1f} s]", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
