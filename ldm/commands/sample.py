"""`ldm sample`: a prompt in, pictures out. Paths on stdout, everything else on stderr."""

from __future__ import annotations

import os
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ldm
from ldm.checkpoint.memory import size
from ldm.commands import output
from ldm.commands.progress import Bar, rate
from ldm.commands.streams import complain, say, tell
from ldm.diffusion import profiles
from ldm.errors import InputError, LdmError, near_matches
from ldm.files import write_atomic
from ldm.options import Job, from_args, parser, validate
from ldm.resources import weights

if TYPE_CHECKING:
    from ldm.metadata.native import Record
    from ldm.pipeline import Pipeline, Result


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code; raises LdmError."""
    made = parser("ldm sample", "Make pictures of a prompt.")
    made.add_argument("--version", action="version", version=f"ldm {ldm.__version__}", help="show the version")
    job = from_args(made, argv)
    if job.quiet:
        warnings.simplefilter("ignore")  # until `main` ends
    check(job)
    pipeline = _load(job)
    _advise(job.sampler or pipeline.family.defaults.sampler, _steps(pipeline, job), job.quiet)
    start = time.perf_counter()
    with Bar("sampling", job.quiet, _steps(pipeline, job)) as bar:
        result = _generate(pipeline, job, bar)
    return _save(pipeline, result, job, _timing(bar.done, time.perf_counter() - start))


def check(job: Job) -> None:
    """Refuse, before any model is loaded, what cannot end well."""
    validate(job)
    profile = profiles.override(profiles.load_profile(job.profile), job.overrides or {})
    for flag, path in (("model", job.model), ("vae", job.vae)):
        _check_input(flag, path)
    output.check_pictures(job.output, job.batch, job.overwrite)
    if job.latents is not None:
        output.check_new(Path(job.latents), ".safetensors", job.overwrite)
        output.check_apart(job.output, Path(job.latents), (job.model, job.vae))
    _check_names(job, profile)


def _check_input(flag: str, path: str | None) -> None:
    if path is None or os.path.isfile(path):
        return
    what = "is a folder" if os.path.isdir(path) else "is not a file" if os.path.lexists(path) else "does not exist"
    raise InputError(f"{flag} file {path} {what}: give the path of a .safetensors file")


def _check_names(job: Job, profile: profiles.Profile) -> None:
    """The tables of samplers and schedules hold code, so torch is imported here, and not before."""
    from ldm.diffusion import samplers, schedules

    if job.sampler is not None:
        samplers.get(job.sampler, profile)
    if job.schedule is not None and job.schedule not in schedules.SCHEDULES:
        raise InputError(f"unknown schedule {job.schedule!r}: {near_matches(job.schedule, list(schedules.SCHEDULES))}")


def _load(job: Job) -> Pipeline:
    path = _model(job)
    say(f"loading {_name(path)}" + (f" ({size(path.stat().st_size)})" if os.path.isfile(path) else ""), job.quiet)
    _look_ahead(job)
    start = time.perf_counter()
    with Bar("loading", job.quiet, unit="B") as bar:
        pipeline = ldm.load(
            job.model,
            device=job.device,
            dtype=job.dtype,
            vae=job.vae,
            progress=bar.count,
            max_header=job.max_header,
            verify=job.verify,
        )
    say(f"loaded in {time.perf_counter() - start:.1f} s: {pipeline.family.title}, {_place(pipeline)}", job.quiet)
    return pipeline


def _model(job: Job) -> Path:
    from ldm.pipeline import BOX

    return Path(job.model) if job.model is not None else weights() / BOX


def _look_ahead(job: Job) -> None:
    """From the header alone: MemoryNeedError where the job will not fit, and with --debug what of the metadata is not read."""
    from ldm.checkpoint.families import recognise
    from ldm.checkpoint.kinds import unread_metadata
    from ldm.checkpoint.safetensors import read_header
    from ldm.devices import place_for
    from ldm.resolve import resolve
    from ldm.runtime import need

    header = read_header(_model(job), job.max_header)
    unread = unread_metadata(header) if job.debug else []
    if unread:
        say(f"metadata that is not read: {', '.join(map(ascii, unread))}", job.quiet)
    family = recognise(header)
    place = place_for(family, job.device, job.dtype)
    need.check_job(need.plan_of(*resolve(job, family), family, **place._asdict()))


def _place(pipeline: Pipeline) -> str:
    return f"{pipeline.device}, {_dtype(pipeline)}"


def _dtype(pipeline: Pipeline) -> str:
    return str(pipeline.dtype).removeprefix("torch.")


def _steps(pipeline: Pipeline, job: Job) -> int:
    return len(job.sigmas) - 1 if job.sigmas else job.steps or pipeline.family.defaults.steps


def _advise(sampler: str, steps: int, quiet: bool) -> None:
    from ldm.diffusion.samplers import SAMPLERS

    if steps < SAMPLERS[sampler].minimum:
        say(
            f"note: {sampler} wants at least {SAMPLERS[sampler].minimum} steps unless the model was made for fewer: this run has {steps}",
            quiet,
        )


def _generate(pipeline: Pipeline, job: Job, bar: Bar) -> Result:
    return pipeline.generate(
        job.prompt,
        job.negative,
        width=job.width,
        height=job.height,
        steps=job.steps,
        cfg=job.cfg,
        sampler=job.sampler,
        schedule=job.schedule,
        sigmas=job.sigmas,
        seed=job.seed,
        batch=job.batch,
        profile=job.profile,
        overrides=job.overrides,
        on_step=bar.step,
    )


def _timing(steps: int, seconds: float) -> str:
    speed = rate(steps, seconds)
    return f"{seconds:.1f} s" + (f" ({speed})" if speed else "")


def _save(pipeline: Pipeline, result: Result, job: Job, timing: str) -> int:
    """Write the latents, then every picture, whatever becomes of the others. The exit code: 1 where one could not be written."""
    from ldm.images import save_png

    code = 0 if job.latents is None else _save_latents(result, Path(job.latents), job.overwrite)
    folder = Path(job.output).parent if output.is_file(job.output) else Path(job.output)
    for index, (picture, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
        save = partial(save_png, picture, texts=_texts(_record(pipeline, result, index)))
        overwrite = job.overwrite and output.is_file(job.output)
        try:
            path = output.save_or_keep(output.candidates(job.output, seed, index), folder, f"ldm-{seed}.png", save, overwrite)
        except LdmError as error:
            complain(error)
            code = 1
            continue
        say(f"saved {path}  seed {seed}  {timing}", job.quiet)
        code = max(code, tell(path))
    return code


def _save_latents(result: Result, path: Path, overwrite: bool) -> int:
    from ldm.checkpoint.writer import content, tensor_items

    tensors = tensor_items({"latents": result.latents.float()})
    write = partial(write_atomic, write=content(tensors, {"seeds": ",".join(map(str, result.seeds))}))
    try:
        output.save_or_keep(iter([path]), path.parent, f"ldm-{result.seeds[0]}.safetensors", write, overwrite)
    except LdmError as error:
        complain(error)
        return 1
    return 0


def _record(pipeline: Pipeline, result: Result, index: int) -> Record:
    """The record of one picture of the batch. Paths stay out of it: only the files' own names."""
    import torch

    from ldm.metadata.native import Record

    return Record(
        job=result.job,
        seed=result.seeds[index],
        index=index,
        model=_name(pipeline.source),
        family=pipeline.family.name,
        vae=None if pipeline.vae_source is None else _name(pipeline.vae_source),
        device=str(pipeline.device),
        dtype=_dtype(pipeline),
        torch=torch.__version__,
        version=ldm.__version__,
        stopped_at=result.stopped_at,
    )


def _name(path: str | Path) -> str:
    """A file's own name as text, whatever bytes it is made of."""
    return os.fsencode(Path(path).name).decode("utf-8", "replace")


def _texts(record: Record) -> dict[str, str]:
    """The text chunks of a picture: the dialect that others read, and our own record."""
    from ldm.metadata import a1111, native

    profile = profiles.override(profiles.load_profile(record.job.profile), record.job.overrides or {})
    return {a1111.KEY: a1111.write(a1111.from_record(record, profile)), native.KEY: native.write(record)}
