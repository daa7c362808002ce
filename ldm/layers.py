"""A job from its layers, the first that says a thing deciding it: flags, --from-image, --params, --preset, then what `Job` declares.

A layer is a mapping of fields. What a layer says of one thing in two ways (a size in one word and a width) is refused; between layers
the higher one stands.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from ldm import resources
from ldm.diffusion import names
from ldm.errors import InputError, near_matches
from ldm.options import KNOBS, Job, alone
from ldm.values import plain_json, typed

if TYPE_CHECKING:
    from ldm.pictures import Found

Layer = dict[str, Any]
SOURCES = ("params", "preset", "from_image", "from_file")  # fields that name a layer: only flags may
LARGEST = 8 * 2**20  # bytes of a file with a job
SPELLINGS = (("size", ("width", "height")), ("ar", ("width", "height", "size")), ("seeds", ("batch",)))
DECIDE_SIGMAS = ("steps", "schedule")


def layered(flags: Mapping[str, Any], picture: Mapping[str, Any] | None = None) -> Job:
    """The job that the flags ask for; `picture`: what the record of --from-image says. Raises InputError."""
    layers = [_folded(dict(flags), "the command line")]
    layers += [_folded(dict(picture), "the picture")] if picture is not None else []
    layers += [params(flags["params"])] if flags.get("params") is not None else []
    layers += [preset(flags["preset"])] if flags.get("preset") is not None else []
    made: Layer = {}
    for layer in reversed(layers):
        made = _over(layer, made)
    if "prompt" not in made and not made.get("from_file") and not made.get("loop"):
        raise InputError('no prompt: give one, as in ldm sample -p "a red apple"')
    return Job(**made)


def _over(layer: Layer, below: Layer) -> Layer:
    """`layer` over `below`: a thing said in one way also replaces the other ways of saying it."""
    hidden = {name for one, others in SPELLINGS for name in (one, *others) if set(layer) & {one, *others} and name not in layer}
    hidden -= set() if "seeds" in layer else {"batch"}
    hidden |= {"seeds"} if "seed" in layer and "seeds" not in layer else set()
    if any(name in layer for name in DECIDE_SIGMAS):
        hidden |= {"sigmas"} - set(layer)
    if "sigmas" in layer:
        hidden |= {"steps", "schedule"} - set(layer)
    kept = {name: value for name, value in below.items() if name not in hidden or _half(name, layer)}
    if layer.get("overrides") and kept.get("overrides"):  # each is one field
        layer = layer | {"overrides": {**kept["overrides"], **layer["overrides"]}}
    return kept | layer


def _half(name: str, layer: Layer) -> bool:
    """Whether a width or a height of below stays, as only the other one is said."""
    return name in ("width", "height") and "size" not in layer and "ar" not in layer


def _folded(layer: Layer, where: str) -> Layer:
    """A layer with its spellings unfolded: a size is a width and a height, a list of one seed is a seed."""
    for one, others in SPELLINGS:
        twice = next((name for name in others if one in layer and name in layer), None)
        if twice is not None:
            raise InputError(f"{where} has both {one} and {twice}: leave one of them out")
    if isinstance(layer.get("sampler"), str):
        layer["sampler"], schedule = names.sampler(layer["sampler"])
        layer |= {"schedule": schedule} if schedule and "schedule" not in layer else {}
    if isinstance(layer.get("schedule"), str):
        layer["schedule"] = names.schedule(layer["schedule"])
    if isinstance(layer.get("profile"), str):
        layer["profile"] = layer["profile"].lower()
    if "size" in layer:
        layer["height"], layer["width"] = layer.pop("size")
    if isinstance(layer.get("seed"), tuple):
        seeds = layer.pop("seed")
        layer |= {"seed": seeds[0]} if len(seeds) == 1 else {"seeds": seeds, "seed": seeds[0]}
    if "seeds" in layer and layer.get("batch", 1) != 1:
        raise InputError(f"{where} has a list of seeds and batch {layer['batch']}: the list alone says how many pictures")
    return layer


def picture_layer(path: str) -> tuple[Layer, list[str]]:
    """What the record in a picture says of its making, as a layer, and notes. Raises InputError where it has none of ours."""
    from ldm import catalogue, pictures
    from ldm.metadata import native

    found = pictures.read(Path(path))
    if native.KEY not in found.texts:
        return _elsewhere(path, found)
    record = native.read(found.texts[native.KEY])
    job = alone(record.job, record.index)
    layer = {name: getattr(job, name) for name in native.SAVED}
    layer |= {"seed": record.seed, "batch": 1, "dtype": record.dtype, "vae_dtype": record.vae_dtype or "auto", "vae": record.vae}
    layer |= {"model": None if record.model == catalogue.BOX else record.model}
    if record.job.schedule is not None:
        layer["sigmas"] = None  # they follow from the schedule
    rules = record.job.overrides or {}
    if record.index and (rules.get("batch_noise") == "one-draw" or rules.get("brownian") == "batch"):
        raise InputError(f"{path}: its noise is that of a whole batch, of which it is number {record.index + 1}: it cannot be made alone")
    stopped = f"the picture was stopped at step {record.stopped_at}: it is made in full"
    return layer, [*found.notes, *([stopped] if record.stopped_at else [])]


def _elsewhere(path: str, found: Found) -> tuple[Layer, list[str]]:
    """The same of a picture that another program made."""
    from ldm.jobs import elsewhere
    from ldm.metadata import foreign

    try:
        layer, notes = elsewhere.layer(foreign.read(found.texts))
    except InputError as error:
        raise InputError(f"{path}: {error}: `ldm info {path}` shows what is there") from None
    return layer, [*found.notes, *notes]


def params(source: str) -> Layer:
    """The layer of a JSON object in a file, or of stdin for "-"."""
    try:
        text = _read(source)
        return table(plain_json(text), source)
    except (ValueError, RecursionError) as error:
        raise InputError(f'params {source}: not a JSON object ({str(error)[:80]}): give one such as {{"steps": 20}}') from None


def preset(name: str) -> Layer:
    """The layer of configs/presets/`name`.toml, or of a TOML file of the user's."""
    if not name.endswith(".toml"):
        return table(resources.read_toml("presets", name), f"preset {name}")
    try:
        return table(tomllib.loads(_read(name)), name)
    except ValueError as error:
        raise InputError(f"preset {name}: not TOML ({str(error)[:80]}): see configs/presets for examples") from None


def _read(source: str) -> str:
    try:
        raw = sys.stdin.buffer.read(LARGEST + 1) if source == "-" else _bytes(Path(source))
        if len(raw) > LARGEST:
            raise InputError(f"{source}: more than {LARGEST:,} bytes: that is no job")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: byte {error.start} is not UTF-8: save it as UTF-8") from None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}: give a file that can be read") from None


def table(given: Any, where: str) -> Layer:
    """A layer from plain data: every name known, every value of its declared type or as text that its flag would take; null is unsaid."""
    if not isinstance(given, dict):
        raise InputError(f'{where}: not an object of names and values: give one such as {{"steps": 20}}')
    known = [name for name in KNOBS if name not in SOURCES and KNOBS[name].flags]
    given = {name: value for name, value in given.items() if name != "family"}  # what --dry-run says beside the job
    for name in given:
        if name not in known:
            raise InputError(f"{where}: unknown name {name[:40]!r}: {near_matches(name, known)}")
    hints = get_type_hints(Job)
    return _folded({name: _value(name, value, hints[name], where) for name, value in given.items() if value is not None}, where)


def _value(name: str, value: Any, hint: Any, where: str) -> Any:
    parse = KNOBS[name].parse
    try:
        return typed(value, hint)
    except TypeError:
        pass
    try:
        if isinstance(value, str) and parse is not None and not KNOBS[name].repeats:
            return parse(value)
    except ValueError as error:
        raise InputError(f"{where}: {name} {value[:40]!r} is not acceptable: give {error}") from None
    raise InputError(f"{where}: {name} {repr(value)[:40]} is not acceptable: see what --{name.replace('_', '-')} takes in the help")
