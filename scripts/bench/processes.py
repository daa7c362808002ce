"""Rows that need processes of their own, or no model: ceilings, loading, a command from start to file, memory under a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from ldm.files import make_folder
from scripts.bench import ceilings, checkpoint, engines, limited, measures
from scripts.bench.bench import Bench
from scripts.bench.rows import Row

ROOT = Path(__file__).parents[2]
PROMPT = "a red apple on a blue background"
LOADS = 5  # fresh processes an engine


def product(bench: Bench) -> Row:
    """What MFU is a part of."""
    side, dtype = (8192, torch.bfloat16) if bench.on_gpu else (128 if bench.small else 2048, torch.float32)
    return {"state": "measured", "tflops": ceilings.product(bench.device, side, dtype), "side": side}


def copy(bench: Bench) -> Row:
    return {"state": "measured", "gbps": ceilings.copy(bench.device, 2**31 if bench.on_gpu else 2**16 if bench.small else 2**28)}


def load(bench: Bench) -> Row:
    """A file that this writes, or that the folder has from before; each load in a process of its own, the file in the page cache."""
    bench.release()
    file = written(bench)
    sides = checkpoint.ENGINES if engines.has_diffusers() and not bench.small else ("ours",)
    seen = checkpoint.loads(file, 1 if bench.small else bench.runs or LOADS, sides, bench.device.type)
    names = {"ours": "ldm", "theirs": "diffusers"}
    row: Row = {
        "state": "measured",
        "sides": measures.sides({names[side]: [each["seconds"] for each in runs] for side, runs in seen.items()}),
    }
    return row | {"gib": {names[side]: measures.spread([each["gib"] for each in runs]).median for side, runs in seen.items()}}


def written(bench: Bench) -> Path:
    """A full checkpoint in F16, of drawn values."""
    from scripts import synthetic

    file = bench.folder / ("small.safetensors" if bench.small else "sd_xl_base_1.0.safetensors")
    make_folder(bench.folder)
    return file if file.exists() else synthetic.write(file, bench.family)


def box(bench: Bench) -> Row:
    """The command that the README begins with, in a fresh process, to the picture on the disk."""
    bench.release()
    make_folder(bench.folder)
    words = ["sample", "-p", PROMPT, "--seed", "1", "--quiet", "--overwrite", "-o", str(bench.folder / "box.png")]
    words += ["--device", bench.device.type, *(["--steps", "1", "--size", "64x64"] if bench.small else [])]
    command = [sys.executable, "-m", "ldm", *words]

    def call() -> None:
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

    seen = measures.alternating(
        {"ldm": call}, 1 if bench.small else bench.count, device=bench.device, warm=0 if bench.small else 1, until=bench.until
    )
    return {"state": "measured", "sides": measures.sides(seen)}


def memory(bench: Bench, side: int, limit: int) -> Row:
    """Pictures under --max-memory: what was taken at the peak beside what the plan said; void where it was more than the limit."""
    bench.release()
    file, side = written(bench), bench.side(side)
    if bench.small:
        found = limited.measure(file, f"{limit}GiB", side, bench.device)
    else:
        command = [sys.executable, "-m", "scripts.bench.limited", str(file), f"{limit}GiB", str(side), bench.device.type]
        done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    row: Row = {"state": "measured" if found["gib"] <= limit else "void", "memory": {"limit": limit, **found}}
    return row | ({} if found["gib"] <= limit else {"why": f"{found['gib']:.2f} GiB at the peak"})
