"""From the job that was asked for to the one that runs: defaults, sigmas and seed filled in."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from ldm import buckets
from ldm.checks import validate
from ldm.diffusion import names, profiles, samplers, schedules
from ldm.diffusion.profiles import Profile
from ldm.errors import InputError
from ldm.limits import SEEDS
from ldm.models.shapes import Family
from ldm.options import Job
from ldm.text import prompt, script
from ldm.text.conditioning import depths


def resolve(job: Job, family: Family) -> tuple[Job, Profile]:
    """The job with the family's defaults, the schedule's sigmas and a seed filled in, and its profile. Raises InputError."""
    job = validate(job)
    sampler, schedule = names.ours(job.sampler, job.schedule)
    job = replace(job, sampler=sampler, schedule=schedule)
    rules = profiles.override(profiles.load_profile(job.profile), job.overrides or {})
    drawn = SEEDS if job.subseed_strength else ("seed",)
    fresh: dict[str, Any] = {name: secrets.randbelow(2**32) for name in drawn if getattr(job, name) in (None, -1)}
    job = replace(job, **fresh, profile=rules.name)
    _check_depths(job, rules, family)
    defaults = family.defaults.to_dict()
    if job.sigmas is not None:  # a list of the user's has no schedule
        defaults |= {"schedule": None}
        job = replace(job, sigmas=tuple(schedules.custom(job.sigmas)), schedule=None, steps=len(job.sigmas) - 1)
    if job.ar is not None and job.width is None and job.height is None:
        height, width = buckets.nearest(job.ar, family.defaults)
        job = replace(job, height=height, width=width)
    job = replace(job, **{name: value for name, value in defaults.items() if getattr(job, name) is None})
    _check_speed(job, samplers.get(str(job.sampler), rules))
    table = schedules.SigmaTable(rules.alphas, zero_terminal=family.zero_terminal)
    if job.sigmas is None:
        job = replace(job, sigmas=tuple(levels(job, table, rules)))
    script.of(job, rules)  # what cannot be read is known before any model is loaded
    return job, rules


def levels(job: Job, table: schedules.SigmaTable, rules: Profile) -> list[float]:
    """The list of the job's schedule, or the one that the profile gives its sampler whatever the schedule is."""
    schedule, steps, sampler = str(job.schedule), int(job.steps or 0), str(job.sampler)
    if sampler not in rules.open_grid:
        return schedules.sigmas(schedule, steps, table, rules, sampler)
    levels = schedules.sigmas("ddim_uniform", steps, table, rules, sampler)[:-1]
    if len(levels) < 2:
        raise InputError(f"steps {steps}: {sampler} under profile {rules.name} makes none at all of so few: take 2 or more")
    return levels


def _check_depths(job: Job, rules: Profile, family: Family) -> None:
    """Every tower has the layer that is read."""
    for depth, tower in zip(depths(rules.clip_skip, job.clip_skip), family.towers[:1] + family.towers[-1:], strict=True):
        if job.clip_skip and depth > tower.layers:
            why = f"under profile {rules.name} it is state {depth} from the end"
            raise InputError(f"clip_skip {job.clip_skip}: {why}, and a text tower has {tower.layers} layers: give a smaller one")


def _check_speed(job: Job, solver: samplers.Sampler) -> None:
    """What leaves out evaluations has to know which they are."""
    if job.speed == "approx" and solver.adaptive:
        why = f"{job.sampler} chooses its steps as it goes, so that none can be left out"
        raise InputError(f"speed approx: {why}: take --speed exact or another sampler")


def notes_on(job: Job, rules: Profile) -> list[str]:
    """What will not be as the user may expect, a sentence each."""
    told, away = script.of(job, rules)
    texts = [text for part in (*told, *(away or ())) for pair in part.texts for text in pair]
    notes = [note for text in dict.fromkeys(texts) for note in prompt.warnings_for(text, rules)]
    if (job.negative or job.negative_2) and away is None:
        notes.append("cfg 1 is no guidance: the negative prompt has no effect")
    if job.clip_skip and rules.clip_skip == "ignored":
        notes.append(f"clip_skip has no effect under profile {rules.name}: it has none on SDXL there")
    if job.subseed is not None and not job.subseed_strength:
        notes.append("a variation seed has no effect without --subseed-strength")
    if job.sampler in rules.open_grid and job.schedule not in (None, "ddim_uniform"):
        notes.append(f"profile {rules.name}: its {job.sampler} has a grid of its own: schedule {job.schedule} has no effect")
    if job.sampler in rules.unfollowed:
        notes.append(f"profile {rules.name}: its {job.sampler} has rules of its own, which are not followed yet: the picture differs")
    return list(dict.fromkeys(notes))
