"""A picture under --max-memory, in a process of its own: `python -m scripts.bench.limited FILE LIMIT SIDE DEVICE` prints what it took."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

import ldm
from ldm.options import Job
from ldm.resolve import resolve
from ldm.runtime import need, plan
from scripts.bench import measures
from scripts.bench.checkpoint import peak_gib

STEPS = 2


def measure(file: Path, limit: str, side: int, device: torch.device) -> dict[str, float]:
    """GiB at the peak and as the plan said before, where the device computes; GiB of the host; seconds of a second picture."""
    job = Job("a red apple on a blue table", "blurry", side, side, STEPS, 5.0, "euler", "normal", seed=1)
    pipe = ldm.load(file, device=device.type, max_memory=limit, jobs=[job])
    pipe.run(job)
    seconds = measures.timed(lambda: pipe.run(job), device)
    kinds = {"device": pipe.device, "dtype": pipe.dtype, "vae_dtype": next(pipe.vae.parameters()).dtype}
    resolved = resolve(job, pipe.family)
    said = plan.forecast(need.plan_of(*resolved, pipe.family, **kinds), pipe.keeper.path, pipe.keeper.process).total
    return {"gib": _peak(device), "planned": said / 2**30, "host": peak_gib(), "seconds": seconds}


def _peak(device: torch.device) -> float:
    """On a GPU what torch had reserved, and what the context has beside it now."""
    if device.type != "cuda":
        return peak_gib()
    free, total = torch.cuda.mem_get_info(device)
    beside = total - free - torch.cuda.memory_reserved(device)
    return (torch.cuda.max_memory_reserved(device) + beside) / 2**30


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), torch.device(sys.argv[4]))))
