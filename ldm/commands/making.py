"""The pictures of one task, with a bar and advice on the way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ldm.commands.progress import Bar
from ldm.commands.streams import say

if TYPE_CHECKING:
    from ldm.jobs.fields import Task
    from ldm.options import Job
    from ldm.pipeline import Pipeline, Result


def make_one(pipeline: Pipeline, task: Task) -> tuple[Result, dict[str, float]]:
    """The pictures of one task, and its timings."""
    job = task.job
    _advise(job, pipeline)
    start = time.perf_counter()
    with Bar("sampling", job.quiet, _steps(pipeline, job)) as bar:
        result = pipeline.run(job, bar.step)
    return result, {"sampling": round(time.perf_counter() - start, 3), "steps": bar.done}


def _steps(pipeline: Pipeline, job: Job) -> int:
    return len(job.sigmas) - 1 if job.sigmas else job.steps or pipeline.family.defaults.steps


def _advise(job: Job, pipeline: Pipeline) -> None:
    """A word where a sampler gets fewer steps than it needs, unless the model was made for as few."""
    from ldm.diffusion.samplers import SAMPLERS

    defaults, steps = pipeline.family.defaults, _steps(pipeline, job)
    sampler = job.sampler or defaults.sampler
    least = SAMPLERS[sampler].minimum
    if steps < min(least, defaults.steps):
        say(f"note: {sampler} wants at least {least} steps unless the model was made for fewer: this run has {steps}", job.quiet)
