"""From the job that was asked for to the one that runs: defaults, sigmas and seed filled in."""

from __future__ import annotations

import secrets
from dataclasses import replace

from ldm import buckets
from ldm.diffusion import profiles, samplers, schedules
from ldm.diffusion.profiles import Profile
from ldm.models.shapes import Family
from ldm.options import Job, validate
from ldm.text import prompt


def resolve(job: Job, family: Family) -> tuple[Job, Profile]:
    """The job with the family's defaults, the schedule's sigmas and a seed filled in, and its profile. Raises InputError."""
    job = validate(job)
    rules = profiles.override(profiles.load_profile(job.profile), job.overrides or {})
    job = replace(job, seed=secrets.randbelow(2**32) if job.seed in (None, -1) else job.seed)
    defaults = family.defaults.to_dict()
    if job.sigmas is not None:  # a list of the user's has no schedule
        defaults |= {"schedule": None, "steps": len(job.sigmas) - 1}
        job = replace(job, sigmas=tuple(schedules.custom(job.sigmas)), schedule=None)
    if job.ar is not None and job.width is None and job.height is None:
        height, width = buckets.nearest(job.ar, family.defaults)
        job = replace(job, height=height, width=width)
    job = replace(job, **{name: value for name, value in defaults.items() if getattr(job, name) is None})
    samplers.get(str(job.sampler), rules)
    if job.sigmas is None:
        table = schedules.SigmaTable(rules.alphas, zero_terminal=family.zero_terminal)
        levels = schedules.sigmas(str(job.schedule), int(job.steps or 0), table, rules, str(job.sampler))
        job = replace(job, sigmas=tuple(levels))
    return job, rules


def notes_on(job: Job, rules: Profile) -> list[str]:
    """What will not be as the user may expect, a sentence each."""
    texts = (job.prompt, job.negative if job.negative and job.cfg != 1 else "")
    notes = [note for text in texts for note in prompt.warnings_for(text, rules.chunking)]
    if job.negative and job.cfg == 1:
        notes.append("cfg 1 is no guidance: the negative prompt has no effect")
    if job.sampler in rules.unfollowed:
        notes.append(f"profile {rules.name}: its {job.sampler} has rules of its own, which are not followed yet: the picture differs")
    return list(dict.fromkeys(notes))
