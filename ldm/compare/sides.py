"""What made a picture, as a side of a comparison: from its own record, from another program's words, or from a job in a file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ldm import layers, pictures
from ldm.catalogue import BOX
from ldm.diffusion import profiles
from ldm.diffusion.profiles import Profile
from ldm.errors import InputError
from ldm.metadata import native
from ldm.models.shapes import Family, load_family
from ldm.options import Job

NO_FAMILY = "sdxl-base"  # whose defaults fill in what a program leaves unsaid


@dataclass(frozen=True)
class Side:
    """What made one of the two. `facts`: what is no field of a job, by its name; a fact that is not known is absent."""

    where: str
    program: str
    job: Job
    rules: Profile
    facts: dict[str, str] = field(default_factory=dict)
    index: int = 0
    notes: tuple[str, ...] = ()
    known: bool = True  # False: nothing is said of its making


def side(path: str) -> Side:
    """What made the picture at `path`, or the job of a .json or .toml file. Raises InputError where it does not say."""
    if Path(path).suffix.lower() in (".json", ".toml"):
        layer = layers.preset(path) if path.lower().endswith(".toml") else layers.params(path)
        return _completed(Side(path, "a job", *_job(layer), {"model": BOX, **_named(layer)}))
    from ldm.jobs import elsewhere
    from ldm.metadata import foreign

    found = pictures.read(Path(path))
    if not found.texts:
        return Side(path, "says nothing of its making", Job(), profiles.load_profile(Job().profile), notes=found.notes, known=False)
    if native.KEY in found.texts:
        return _ours(path, native.read(found.texts[native.KEY]))
    reading = foreign.read(found.texts)
    try:
        layer, notes = elsewhere.layer(reading)
    except InputError as error:
        raise InputError(f"{path}: {error}: `ldm info {path}` shows what is there") from None
    settings = reading.info.settings
    known = {"model hash": settings.get("Model hash"), "version": settings.get("Version")}
    facts = _named(layer) | {name: value for name, value in known.items() if value}
    return _completed(Side(path, reading.dialect, *_job(layer), facts, notes=tuple(notes)))


def _job(layer: layers.Layer) -> tuple[Job, Profile]:
    known = {each.name for each in fields(Job)}
    job = Job(**{name: value for name, value in layer.items() if name in known})
    return job, profiles.override(profiles.load_profile(job.profile), job.overrides or {})


def _named(layer: layers.Layer) -> dict[str, str]:
    return {name: str(layer[name]) for name in ("model", "vae", "dtype", "vae_dtype", "device") if layer.get(name)}


def _ours(path: str, record: native.Record) -> Side:
    job = replace(record.job, seed=record.seed)
    rules = profiles.override(profiles.load_profile(job.profile), job.overrides or {})
    known = {
        "model": record.model,
        "model hash": record.model_sha256,
        "vae": record.vae,
        "stopped at step": record.stopped_at,
        "dtype": record.dtype,
        "vae_dtype": record.vae_dtype,
        "device": record.device,
        "torch": record.torch,
        "version": f"ldm {record.version}",
    }
    facts = {name: str(value) for name, value in known.items() if value is not None}
    return _completed(Side(path, "ldm", job, rules, facts, record.index), record.family)


def _completed(side: Side, family: str = NO_FAMILY) -> Side:
    """With the family's defaults in place of what is not said, and its sigmas."""
    known = _family(family)
    job = replace(side.job, **{name: value for name, value in known.defaults.to_dict().items() if getattr(side.job, name) is None})
    unsaid = _unsaid(job, side.rules)
    job = replace(job, **unsaid)
    return replace(side, job=job if job.sigmas is not None else replace(job, sigmas=_levels(job, side.rules, known)))


def _unsaid(job: Job, rules: Profile) -> dict[str, Any]:
    """None for each size that is the one which is told where none is given."""
    from ldm.text.conditioning import sizes_told

    names = ("original", "crop", "target")
    told, _ = sizes_told(replace(job, original=None, crop=None, target=None), rules.size_defaults)
    return {name: None for name in names if getattr(job, name) == told[name]}


@cache
def _family(name: str) -> Family:
    """That of a file with numbers of its own is not known here: its records are complete."""
    try:
        return load_family(name)
    except InputError:
        return load_family(NO_FAMILY)


def _levels(job: Job, rules: Profile, family: Family) -> tuple[float, ...] | None:
    from ldm.diffusion.schedules import SigmaTable
    from ldm.resolve import levels

    try:
        return tuple(levels(job, SigmaTable(rules.alphas, zero_terminal=family.zero_terminal), rules))
    except InputError:  # a picture whose numbers could not be run here is compared all the same
        return None
