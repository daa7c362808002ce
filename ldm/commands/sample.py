"""`ldm sample`: jobs in, pictures out. Paths or JSON on stdout, everything else on stderr."""

from __future__ import annotations

import gc
import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ldm
from ldm import catalogue
from ldm.checkpoint.memory import size
from ldm.checks import validate
from ldm.commands import again, output
from ldm.commands.making import make_one
from ldm.commands.progress import Bar
from ldm.commands.streams import say, show
from ldm.diffusion import names, profiles
from ldm.errors import InputError, MemoryNeedError, NumericError
from ldm.files import name_of
from ldm.flags import given, parser
from ldm.jobs import prompts
from ldm.jobs.fields import Task
from ldm.layers import layered, picture_layer
from ldm.metadata.native import SAVED
from ldm.options import Job

BATCH_RULES = {("batch_noise", "one-draw"), ("brownian", "batch")}  # of a profile: a picture then depends on its batch

if TYPE_CHECKING:
    from ldm.commands.saving import Saver
    from ldm.models.shapes import Family
    from ldm.pipeline import Pipeline


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code; raises LdmError."""
    made = parser("ldm sample", "Make pictures of a prompt, or of many.")
    made.add_argument("--version", action="version", version=f"ldm {ldm.__version__}", help="show the version")
    flags = given(made, argv)
    job, notes = job_of(flags)
    if job.quiet:
        warnings.simplefilter("ignore")  # until `main` ends
    tasks, more = tasks_of(job)
    for note in (*notes, *more):
        say(f"ldm: note: {note}", job.quiet)
    check(job, tasks)
    if job.dry_run:
        return _dry(job, tasks)
    if job.plan:
        from ldm.commands.planning import foretell

        return foretell(job, tasks)
    if _skips_file(job):
        if os.path.lexists(job.output):
            say(f"{job.output} is there: nothing is made", job.quiet)
            return 0
        job = replace(job, skip_existing=False)
    if job.loop:
        from ldm.commands.loop import loop

        return loop(load(job, tasks), job)
    from ldm.commands.saving import Saver

    pipeline = load(job, tasks)
    saver = Saver(pipeline, job, tasks)
    with saver.watched():
        if saver.shared:
            saver.claimed(tasks, partial(make_one, pipeline, between=saver.settle))
        else:
            for at in range(len(tasks)):
                _one(pipeline, saver, tasks, at)
    return saver.code


def _one(pipeline: Pipeline, saver: Saver, tasks: Sequence[Task], at: int) -> None:
    """One of the jobs; of many, one that fails is said and the others are made."""
    try:
        result, timings = make_one(pipeline, tasks[at], partial(saver.save, tasks[at], at), saver.settle)
    except (NumericError, MemoryNeedError) as error:
        if len(tasks) == 1:
            raise
        saver.failed(tasks[at], error)
        return
    saver.save(tasks[at], at, result, timings)


def job_of(flags: Mapping[str, Any]) -> tuple[Job, list[str]]:
    """The job of a command line, its files found by name, and notes."""
    picture, notes = picture_layer(flags["from_image"]) if flags.get("from_image") else (None, [])
    job = layered(flags, picture)
    folders = catalogue.places(job.models_dir or ())
    model, vae = (again.find(name, kind, folders, flags, picture) for name, kind in ((job.model, "checkpoint"), (job.vae, "vae")))
    job = replace(job, model=model, vae=vae, quiet=job.quiet or job.format == "quiet")
    return job, [*notes, *(again.differences(job, flags) if picture is not None else [])]


def tasks_of(job: Job) -> tuple[list[Task], list[str]]:
    """What the job asks for: the lines of a prompt file, a task a seed, or one."""
    if job.from_file is not None:
        sheet = prompts.read(job.from_file, replace(job, seeds=None))
        return sheet.tasks, sheet.notes
    return [Task(replace(job, seed=seed, seeds=None), "the command line") for seed in job.seeds or (job.seed,)], []


def check(job: Job, tasks: Sequence[Task]) -> None:
    """Refuse, before any model is loaded, what cannot end well."""
    for task in tasks or [Task(job, "the command line")]:
        validate(task.job)
        profiles.override(profiles.load_profile(task.job.profile), task.job.overrides or {})
        names.ours(task.job.sampler, task.job.schedule)
    _check_together(job, tasks)
    count = sum(task.job.batch for task in tasks)
    output.check_pictures(job, count)
    if job.latents is not None:
        output.check_new(Path(job.latents), ".safetensors", job.overwrite)
        output.check_apart(job.output, Path(job.latents), (job.model, job.vae))


def _check_together(job: Job, tasks: Sequence[Task]) -> None:
    """InputError for flags that would take something from each other."""
    shared = job.resume or job.skip_existing
    count = sum(task.job.batch for task in tasks)
    batch_rules = [name for name, value in (job.overrides or {}).items() if (name, value) in BATCH_RULES]
    pairs = (
        (job.latents is not None and (len(tasks) > 1 or shared or job.loop), "--latents is for one job", "make it alone"),
        (job.seeds is not None and job.from_file is not None, "a list of seeds and --from-file", "give the seeds in its lines"),
        (job.seeds is not None and job.loop, "a list of seeds and --loop", "give --d SEED in a line"),
        (job.loop and (job.from_file is not None or shared), "--loop with --from-file, --resume or --skip-existing", "leave one out"),
        (job.resume and output.is_file(job.output), f"--resume with the file {job.output}", "give -o a folder"),
        (_skips_file(job) and count > 1, f"--skip-existing of {count} pictures with the file {job.output}", "give -o a folder"),
        (shared and job.overwrite, "--overwrite with --resume or --skip-existing", "leave one out"),
        (shared and batch_rules and any(task.job.batch > 1 for task in tasks), f"--resume of batches with {batch_rules}", "take -b 1"),
    )
    for wrong, what, remedy in pairs:
        if wrong:
            raise InputError(f"{what}: {remedy}")


def _skips_file(job: Job) -> bool:
    return job.skip_existing and output.is_file(job.output)


@contextmanager
def _uncollected() -> Iterator[None]:
    """A block that looks for no garbage: what it imports and loads stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def load(job: Job, tasks: Sequence[Task]) -> Pipeline:
    """The model of the run, when its header and all jobs have been looked at."""
    path = catalogue.find(job.model)
    say(f"loading {name_of(path)} ({size(path.stat().st_size)})" if os.path.isfile(path) else f"loading {name_of(path)}", job.quiet)
    look_ahead(job, tasks)
    start = time.perf_counter()
    with Bar("verifying, loading" if job.verify else "loading", job.quiet, unit="B") as bar:
        pipeline = ldm.load(
            job.model,
            device=job.device,
            dtype=job.dtype,
            vae_dtype=job.vae_dtype,
            vae=job.vae,
            progress=bar.count,
            max_header=job.max_header,
            verify=job.verify,
            **_limited(job, tasks),
        )
    say(f"loaded in {time.perf_counter() - start:.1f} s: {pipeline.family.title}, {pipeline.device}, {dtype_word(pipeline)}", job.quiet)
    return pipeline


def _limited(job: Job, tasks: Sequence[Task]) -> dict[str, Any]:
    """What the model is loaded with where memory has a limit."""
    return {} if job.max_memory is None else {"max_memory": job.max_memory, "jobs": [task.job for task in tasks]}


def look_ahead(job: Job, tasks: Sequence[Task]) -> Family:
    """From the header alone: MemoryNeedError where a job will not fit, and with --debug what of the metadata is not read."""
    from ldm import watermark
    from ldm.checkpoint import licences
    from ldm.checkpoint.families import recognise, usage_hint
    from ldm.checkpoint.kinds import unread_metadata
    from ldm.checkpoint.safetensors import read_header
    from ldm.devices import place_for
    from ldm.resolve import resolve
    from ldm.runtime import need, paths, tiers

    header = read_header(catalogue.find(job.model), job.max_header)
    unread = unread_metadata(header) if job.debug else []
    if unread:
        say(f"metadata that is not read: {', '.join(map(ascii, unread))}", job.quiet)
    family = recognise(header)
    terms = "" if job.quiet or job.dry_run else licences.notice(header)
    if terms:
        say(f"ldm: note: {terms}")
    hint = usage_hint(header)
    if hint:
        say(f"usage hint of the file: {hint}", job.quiet)
    place = place_for(family, job.device, job.dtype, job.vae_dtype)
    resolved = [resolve(task.job, family) for task in tasks]
    for speed in {made.speed for made, _ in resolved}:
        tiers.check(speed, place.device)
    stored = paths.stored_in(header)
    plans = dict.fromkeys(need.plan_of(*each, family, **place._asdict(), stored=stored) for each in resolved)
    for plan in plans if job.max_memory is None else ():  # under a limit the load sees to it
        need.check_job(plan)
    for made, _ in resolved:
        if made.watermark != "none":
            watermark.check(int(made.width or 0), int(made.height or 0))
    return family


def _dry(job: Job, tasks: Sequence[Task]) -> int:
    """The finished jobs as JSON, a line each; nothing is made."""
    from ldm.resolve import resolve

    family = look_ahead(job, tasks)
    code = 0
    for task in tasks:
        done, _ = resolve(task.job, family)
        saved = {name: getattr(done, name) for name in SAVED if name != "sigmas" or done.schedule is None}
        code = max(code, show(json.dumps({**saved, "model": str(catalogue.find(job.model)), "family": family.name})))
    return code


def dtype_word(pipeline: Pipeline) -> str:
    from ldm.runtime.quantise import precision

    return precision(pipeline.unet)
