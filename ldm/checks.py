"""A job's values held against their limits, each refusal saying the value, the limit and the remedy."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError, near_matches, shown
from ldm.limits import HIGHEST_SIGMA, LIMITS, SEEDS, SPEEDS

if TYPE_CHECKING:
    from ldm.options import Job

NUMBERS = ("width", "height", "steps", "batch", "seed", "cfg", "subseed", "subseed_strength", "clip_skip")
REAL = ("cfg", "subseed_strength")
NEEDED = ("batch", "subseed_strength")
PAIRS = ("seed_resize", "original", "crop", "target", "negative_original", "negative_crop", "negative_target")


def validate(job: Job) -> Job:
    """The job with plain numbers. Raises InputError for the first value outside `LIMITS`, saying the value, the limit and the remedy.

    Files and the names of samplers, schedules and profiles are looked up elsewhere.
    """
    plain: dict[str, Any] = {name: _plain_number(getattr(job, name)) for name in NUMBERS}
    job = replace(job, **plain, sigmas=_plain_sigmas(job.sigmas))
    for name in ("sampler", "schedule", "profile"):
        if not isinstance(getattr(job, name), str) and (name == "profile" or getattr(job, name) is not None):
            raise InputError(f"{name} {getattr(job, name)!r} is not a name: give text")
    if job.speed not in SPEEDS:
        raise InputError(f"speed {shown(job.speed)} is not known: {near_matches(str(job.speed), list(SPEEDS))}")
    for name in ("prompt", "negative", "prompt_2", "negative_2"):
        if name == "prompt" or getattr(job, name) is not None:
            check_text(name, getattr(job, name))
    for name in NUMBERS:
        _check_number(name, getattr(job, name), float if name in REAL else int)
    for name in PAIRS:
        _check_pair(name, getattr(job, name))
    for name in SEEDS:
        if (getattr(job, name) or 0) + job.batch - 1 > LIMITS[name].high:
            raise InputError(f"{name} {getattr(job, name)} with batch {job.batch}: seeds end at {LIMITS[name].high}: use a smaller one")
    if job.sigmas is not None:
        _check_sigmas(job.sigmas, job.steps if job.schedule is None else None)  # a few schedules make a list of another length
    return job


def check_text(name: str, text: Any) -> None:
    """InputError unless `text` is text that can be tokenised and written into a file: `name` says which one it is."""
    if not isinstance(text, str):
        raise InputError(f"{name} is {type(text).__name__}: give text")
    if len(text) > LIMITS[name].high:
        raise InputError(f"{name} has {len(text)} characters: the limit is {LIMITS[name]}: shorten it")
    bad = re.search("[\0\ud800-\udfff]", text)
    if bad:
        what = "the character NUL" if bad[0] == "\0" else "a byte that is not UTF-8"
        raise InputError(f"{name} holds {what} at character {bad.start() + 1}: give text in UTF-8")


def _plain_number(value: Any) -> Any:
    """numpy's and torch's whole and real numbers as Python's."""
    if type(value) is bool:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, numbers.Real) else value
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _plain_sigmas(sigmas: Any) -> tuple[float, ...] | None:
    try:
        return None if sigmas is None else tuple(float(sigma) for sigma in sigmas)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"sigmas {shown(sigmas)} are not acceptable: give a list of falling numbers") from None


def _check_number(name: str, value: Any, kind: type) -> None:
    if (value is None and name not in NEEDED) or (name in SEEDS and value == -1):
        return
    limit = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise InputError(f"{name} {shown(value)} is not a {'whole ' if kind is int else ''}number: {limit}")
    if not limit.allows(value):
        remedy = f": the nearest is {limit.nearest(value)}" if limit.multiple > 1 else ""
        raise InputError(f"{name} {shown(value)} is not allowed: {limit}{remedy}")


def _check_pair(name: str, value: Any) -> None:
    if value is None:
        return
    limit = LIMITS[name.removeprefix("negative_")]
    whole = isinstance(value, tuple | list) and len(value) == 2 and all(type(each) is int for each in value)
    if not whole or not all(limit.allows(each) for each in value):
        what = "top, left" if name.endswith("crop") else "height, width"
        raise InputError(f"{name} {repr(value)[:40]} is not allowed: give two whole numbers ({what}), each {limit}")


def _check_sigmas(sigmas: Sequence[float], steps: int | None) -> None:
    falls = all(one > two for one, two in pairwise(sigmas))
    if not falls or not sigmas or not 0 <= sigmas[-1] < sigmas[0] < HIGHEST_SIGMA:
        text = ",".join(map(repr, sigmas))[:80]
        raise InputError(f"sigmas {text} are not allowed: give two or more falling numbers, below {HIGHEST_SIGMA:.0f} and not below 0")
    if not LIMITS["steps"].allows(len(sigmas) - 1):
        raise InputError(f"sigmas has {len(sigmas)} values, so {len(sigmas) - 1} steps: steps are {LIMITS['steps']}")
    if steps is not None and steps != len(sigmas) - 1:
        raise InputError(f"steps {steps} with {len(sigmas)} sigmas, which are {len(sigmas) - 1} steps: leave one of them out")
