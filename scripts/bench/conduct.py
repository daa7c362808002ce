"""The run: rows in a process of their own, so that one that breaks takes nothing with it, and a slice of them where minutes are given.

The process that is started does as many rows as it can and writes the record after each. Where it ends before its last row, as where
memory or the GPU's context is lost, the row that was running has failed and another process goes on behind it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from ldm.errors import InputError, near_matches

ROOT = Path(__file__).parents[2]
AGAIN = 75  # exit code of a process whose GPU answers no more
GRACE = 30  # seconds past the end that a row may take
TIME = "time was up"


def run(options: argparse.Namespace) -> int:
    try:
        return _do(options)
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _do(options: argparse.Namespace) -> int:
    if options.here is not None:
        return here(options)
    if options.list:
        return show_list(options)
    if not (options.json.exists() and (options.write or (options.tune and has_operations(options.json)))):
        until = time.time() + 60 * options.minutes if options.minutes is not None else None
        start(options, until)
    return finish(options)


def has_operations(file: Path) -> bool:
    from scripts.bench import records

    return any(name.startswith("op-") for name in records.load(file)["rows"])


def finish(options: argparse.Namespace) -> int:
    """What is said, and written, of the record."""
    from scripts.bench import page, records

    record = records.load(options.json)
    print(page.table(record))
    if options.tune:
        from scripts.bench import tuning

        print(tuning.write(record))
    if options.write:
        page.write(record)
    bad = [name for name, row in record["rows"].items() if row["state"] in ("failed", "void")]
    print(f"{options.json}: {', '.join(bad) or 'nothing'} failed or void")
    return 1 if bad else 0


def start(options: argparse.Namespace, until: float | None) -> None:
    """Processes until one has been through all rows. Raises InputError where one cannot begin."""
    options.json, options.folder = options.json.absolute(), options.folder and Path(options.folder).absolute()
    words = [f"--{name}={getattr(options, name)}" for name in ("device", "json", "runs", "compile", "folder") if getattr(options, name)]
    words += [f"--{name}" for name in ("small", "again", "tune") if getattr(options, name)]
    words += [f"--only={','.join(options.only)}"] if options.only else []
    words += [f"--until={until}"] if until is not None else []
    stamp = f"{time.time():.3f}"
    while True:
        left = None if until is None else max(1.0, until + GRACE - time.time())
        code = _process([sys.executable, "-m", "scripts.bench", f"--here={stamp}", *words], left)
        if code == 0:
            return
        if code == 2:
            raise InputError("nothing was measured")
        _set_down(options.json, code)


def _process(command: list[str], seconds: float | None) -> int:
    """The exit code; minus 15 for one that had to be ended."""
    made = subprocess.Popen(command, cwd=ROOT)
    try:
        return made.wait(seconds)
    except subprocess.TimeoutExpired:
        made.terminate()
        made.wait()
        return -15


def _set_down(file: Path, code: int) -> None:
    """The row that was running when its process ended has failed."""
    from scripts.bench import records

    record = records.load(file) if file.exists() else {"rows": {}}
    broken = [name for name, row in record["rows"].items() if row["state"] == "running"]
    if not broken and code != AGAIN:
        raise InputError(f"the process ended with {code} outside of a row")
    for name in broken:
        record["rows"][name] |= {"state": "failed", "why": TIME if code == -15 else f"its process ended with {code}"}
    records.save(file, record)


def show_list(options: argparse.Namespace) -> int:
    from scripts.bench import cases

    device = device_of(options.device, small=options.small)
    for name in chosen(options, device):
        case = cases.CASES[name]
        print(f"{name:26} {cases.seconds(case, device, small=options.small):5} s  {case.tier:6} {case.what}")
    return 0


def device_of(name: str, *, small: bool) -> str:
    import torch

    return "cpu" if small or name == "cpu" or not torch.cuda.is_available() else "cuda"


def chosen(options: argparse.Namespace, device: str) -> list[str]:
    """The rows that are asked for, in their order. Raises InputError for one that there is not."""
    from scripts.bench import cases

    rows = cases.of(device, small=options.small, compiled=options.compile is not None)
    wanted = options.only or [name for name in rows if not options.tune or name.startswith("op-")]
    for name in wanted:
        if name not in rows:
            raise InputError(f"{name!r} is no row of this machine: {near_matches(name, rows)}")
    return [name for name in rows if name in wanted]


def here(options: argparse.Namespace) -> int:
    from scripts.bench import working

    return working.run(options, chosen(options, device_of(options.device, small=options.small)))
