"""`ldm sample --plan`: the memory of a run, stage by stage, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ldm import catalogue
from ldm.checkpoint.memory import RESERVE, free_memory, size
from ldm.commands.streams import show

if TYPE_CHECKING:
    from ldm.jobs.fields import Task
    from ldm.options import Job
    from ldm.runtime.plan import Forecast


def foretell(job: Job, tasks: Sequence[Task]) -> int:
    """A table, or with --format json an object, for every size of picture among the tasks; the exit code."""
    from ldm.checkpoint.families import recognise
    from ldm.checkpoint.safetensors import read_header
    from ldm.devices import place_for
    from ldm.runtime import plan

    header = read_header(catalogue.find(job.model), job.max_header)
    family = recognise(header)
    place = place_for(family, job.device, job.dtype, job.vae_dtype)
    found = plan.forecasts(header, family, place, job.max_memory, [task.job for task in tasks])
    for each in found:
        told = _told(each, job.max_memory)
        show(json.dumps(told) if job.format == "json" else _table(each, told))
    return 0


def _told(found: Forecast, limit: int | None) -> dict[str, Any]:
    from ldm.devices import name_of
    from ldm.runtime.plan import on_gpu

    plan, path = found.plan, asdict(found.path)
    free = {"ram": free_memory(), "vram": free_memory(plan.device) if on_gpu(plan) else None}
    rooms = [(free["ram"], found.ram - found.process), (free["vram"], found.vram)]
    return {
        **{name: getattr(plan, name) for name in ("width", "height", "batch", "rows", "device")},
        "dtype": plan.precision,
        "vae_dtype": name_of(plan.vae_dtype),
        "stages": [asdict(stage) for stage in found.stages],
        "peak": {"ram": found.ram, "vram": found.vram},
        "free": free,
        "max_memory": limit,
        "fits": all(room is None or count + RESERVE <= room for room, count in rooms),
        "path": path | {"stored": name_of(found.path.stored) if found.path.stored else None},
        "cost": found.cost,
    }


def _table(found: Forecast, told: dict[str, Any]) -> str:
    """The same for people."""
    rows = [(stage.name, stage.ram, stage.vram) for stage in found.stages]
    rows += [("peak", found.ram, found.vram), ("free", told["free"]["ram"], told["free"]["vram"])]
    cells = [f"  {name:<6}{_cell(ram):>10}{_cell(vram):>10}" for name, ram, vram in rows]
    fits = "" if told["fits"] else "; this is more than is free: --max-memory takes less"
    return "\n".join([f"{found.plan} on {told['device']}", f"{'RAM':>18}{'VRAM':>10}", *cells, f"  {'; '.join(found.cost)}{fits}"])


def _cell(count: int | None) -> str:
    return size(count) if count else "-"
