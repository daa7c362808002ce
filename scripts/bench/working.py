"""The process that measures: row after row, the record on the disk after each."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch

from scripts.bench import conduct, records
from scripts.bench.bench import Bench
from scripts.bench.cases import CASES, Case, seconds

Row = dict[str, Any]
DEAD = "a kernel broke it: the GPU answers this process no more"


def run(options: argparse.Namespace, names: Sequence[str]) -> int:
    """All of `names` that the record does not have; AGAIN where another process has to go on."""
    device = torch.device(conduct.device_of(options.device, small=options.small))
    command = " ".join(["python -m scripts.bench", *(["--only", ",".join(options.only)] if options.only else [])])
    record = records.going_on(options.json, records.fresh(device, command, small=options.small))
    bench = bench_of(options, device)
    for name in names:
        if done(record["rows"].get(name, {}), options):
            continue
        if bench.until is not None and time.time() + seconds(CASES[name], device.type, small=options.small) > bench.until:
            record["rows"].setdefault(name, head(CASES[name], options) | {"state": "not measured", "why": conduct.TIME})
        else:
            record["rows"][name] = head(CASES[name], options)
            records.save(options.json, record)
            record["rows"][name] |= measured(CASES[name], bench)
            print(f"{name}: {record['rows'][name]['state']}", file=sys.stderr, flush=True)
        records.save(options.json, record)
        if record["rows"][name].get("why") == DEAD:
            return conduct.AGAIN
    return 0


def head(case: Case, options: argparse.Namespace) -> Row:
    return {"what": case.what, "tier": case.tier, "date": records.today(), "run": options.here, "state": "running"}


def bench_of(options: argparse.Namespace, device: torch.device) -> Bench:
    """Float32 in full: what judges is float32, which torch would else give a GPU's convolutions as something less."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    until = float(options.until) if options.until else None
    folder = Path(options.folder or Path(gettempdir()) / "ldm-bench")
    return Bench(device, options.small, options.runs, until, folder, options.compile or "max-autotune")


def done(row: Row, options: argparse.Namespace) -> bool:
    """Whether this run has tried the row, or an earlier one has its figures."""
    return row.get("run") == options.here or (row.get("state") == "measured" and not options.again)


def measured(case: Case, bench: Bench) -> Row:
    """The row, or why there is none: nothing that one row does ends the run."""
    before, start = records.state_of(bench.device), time.perf_counter()
    try:
        row = case.run(bench)
    except Exception as error:
        traceback.print_exc()
        row = {"state": "failed", "why": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    if not answers(bench.device):
        row |= {"state": "failed", "why": DEAD, "error": row.get("why")}
    elif row["state"] == "failed":
        bench.release()
    took = round(time.perf_counter() - start, 1)
    return records.finite(row | {"machine_before": before, "machine_after": records.state_of(bench.device), "took": took})


def answers(device: torch.device) -> bool:
    """Whether the device is still usable: an error in a kernel ends a process's use of its GPU."""
    try:
        torch.zeros(1, device=device).sum().item()
    except RuntimeError:
        return False
    return True
