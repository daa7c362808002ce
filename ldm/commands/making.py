"""The pictures of one task, with a bar and advice on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ldm.commands.progress import Bar
from ldm.commands.stopping import STOPS, Stop
from ldm.commands.streams import say

if TYPE_CHECKING:
    from ldm.jobs.fields import Task
    from ldm.options import Job
    from ldm.pipeline import Pipeline
    from ldm.results import Result

Timings = dict[str, float]


def make_one(
    pipeline: Pipeline,
    task: Task,
    keep: Callable[[Result, Timings], Any] | None = None,
    between: Callable[[Bar], None] | None = None,
) -> tuple[Result, Timings]:
    """The pictures of one task, and its timings; of one that fails, `keep` is given what was made before the error.

    `between` is called after each step: with the bar, for what is to be said then.
    Raises Stop, saying at which step, where a signal comes.
    """
    job = task.job
    _advise(job, pipeline)
    start = time.perf_counter()
    steps = _steps(pipeline, job)
    bar = Bar("sampling", job.quiet, steps)

    def timings() -> Timings:
        return {"sampling": round(time.perf_counter() - start, 3), "steps": bar.done}

    def count(step: Any) -> None:
        bar.step(step)
        if between is not None:
            between(bar)
        STOPS.check()

    try:
        with bar, STOPS.free():
            result = pipeline.run(job, count)
    except BaseException as error:
        made: Result | None = getattr(error, "result", None)
        if made is not None and keep is not None:
            keep(made, timings())
        if isinstance(error, KeyboardInterrupt):
            raise Stop(f"at step {bar.done + 1} of {steps}" if bar.done < steps else "after the last step") from None
        raise
    return result, timings()


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
