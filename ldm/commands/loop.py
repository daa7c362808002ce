"""`ldm sample --loop`: the model stays, prompts come one a line.

A line is a prompt, with the options that prompt files take; "/NAME VALUE" sets a value for the lines after it, "/" shows what is set,
"/q" or the end of the input ends the loop. What is wrong with a line is said, and the loop goes on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ldm.checks import validate
from ldm.commands.making import make_one
from ldm.commands.streams import complain, say
from ldm.errors import InputError, LdmError
from ldm.jobs import prompts
from ldm.layers import table
from ldm.metadata.native import SAVED
from ldm.options import Job

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline

SHORT = {"w": "width", "h": "height", "s": "seed", "g": "cfg", "n": "steps"}  # as other programs' loops have them


def loop(pipeline: Pipeline, job: Job) -> int:
    """Ask until the end; the exit code is 0, or 1 where a picture could not be saved."""
    from ldm.commands.saving import Saver

    code, saver = 0, None
    for line in _lines():
        try:
            if line.startswith(b"/"):
                job = _set(job, line.decode(errors="replace"))
                continue
            sheet = prompts.parse(line, "the line", "text", job)
            for note in sheet.notes:
                say(f"ldm: note: {note}", job.quiet)
            tasks = sheet.tasks
            _check_mark(job, pipeline)
            saver = Saver(pipeline, job, tasks, after=saver)
            with saver.watched():
                for at, task in enumerate(tasks):
                    result, timings = make_one(pipeline, task, partial(saver.save, task, at), saver.settle)
                    saver.save(task, at, result, timings)
        except LdmError as error:
            complain(error, as_json=job.format == "json")
        code = max(code, saver.code if saver is not None else 0)
    return code


def _lines() -> Iterator[bytes]:
    """What is typed, or piped, line by line; without the ones that are empty."""
    shown = sys.stdin.isatty()
    while True:
        if shown:
            print("prompt> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line or line.strip() in (b"/q", b"/quit", b"/exit"):
            return
        if line.strip():
            yield line.strip()


def _check_mark(job: Job, pipeline: Pipeline) -> None:
    if job.watermark != "none":
        from ldm import watermark

        defaults = pipeline.family.defaults
        watermark.check(job.width or defaults.width, job.height or defaults.height)


def _set(job: Job, line: str) -> Job:
    """The job with the value of a line such as "/steps 20"."""
    name, _, text = line.removeprefix("/").partition(" ")
    if not name:
        say(", ".join(f"{each} {getattr(job, each)!r}" for each in SAVED if getattr(job, each) is not None))
        return job
    name = SHORT.get(name, name)
    if name == "seed" and not re.fullmatch(r"\s*(-1|[0-9]+)\s*", text):
        raise InputError("the line: /seed takes one seed: give a list in the prompt's line, as --d 1,2,3")
    if name in ("batch", "size", *SAVED):
        return validate(replace(job, **table({name: text.strip()}, "the line")))
    raise InputError(f"the line: /{name[:40]} is none of the values of a picture: see the names in docs/cli.md, or /q to end")
