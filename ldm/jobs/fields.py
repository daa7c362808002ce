"""From the words of a prompt file to jobs: whose name a word goes by, what its value is, and how many jobs a line makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from ldm import naming
from ldm.checks import validate
from ldm.diffusion import names, profiles
from ldm.errors import InputError, near_matches
from ldm.jobs.lines import Word
from ldm.options import KNOBS, Job
from ldm.values import typed

ROUNDS = 1000  # the highest n_iter
SAVED = {name for name, knob in KNOBS.items() if knob.saved}
_PAIRS = {  # field: its halves, (height, width) or (top, left)
    "original": ("oh", "ow"),
    "crop": ("ct", "cl"),
    "target": ("target_height", "target_width"),
    "negative_original": ("nh", "nw"),
    "negative_crop": ("negative_crop_top", "negative_crop_left"),
    "negative_target": ("negative_target_height", "negative_target_width"),
    "seed_resize": ("seed_resize_from_h", "seed_resize_from_w"),
}
_HALVES = {half for pair in _PAIRS.values() for half in pair}
_LETTERS = {"n": "negative", "w": "width", "h": "height", "s": "steps", "d": "seed", "l": "cfg", "ss": "sampler", "f": "file"}
_LATER = {  # options that are understood and left out, with what they are about
    **dict.fromkeys(("t", "image", "i", "mask", "image_path", "mask_path"), "a picture to start from"),
    **dict.fromkeys(("g", "nl", "c"), "another kind of guidance"),
    **dict.fromkeys(("am", "cn", "ctr"), "further networks"),
    **dict.fromkeys(("glt", "glr", "gls", "gle", "dsd1", "dst1", "dsd2", "dst2", "dsr"), "sizes that change on the way"),
    **dict.fromkeys(("restore_faces", "tiling", "styles", "sampler_index"), "A1111's own settings"),
    **dict.fromkeys(("sd_model", "ckpt"), "a model for this line alone: choose one with --model"),
    **dict.fromkeys(("outpath_samples", "outpath_grids", "outdir", "output"), "a folder for this line alone: choose one with -o"),
    **dict.fromkeys(("do_not_save_samples", "do_not_save_grid", "prompt_for_display"), "what A1111 shows and saves"),
}


@dataclass(frozen=True)
class Task:
    """A job of a prompt file; `file`: the name asked for its pictures."""

    job: Job
    where: str  # "prompts.txt:12"
    file: str | None = None


Told = Callable[[str, str], None]  # (option, what it is about): once for each option that is left out


def tasks(words: Sequence[Word], base: Job, where: str, tell: Told, *, letters: bool) -> Iterator[Task]:
    """The jobs of one line over `base`; InputError that says which word is wrong. `letters`: sd-scripts' short names count too."""
    values = _values(words, tell, letters)
    rounds, numbers, file = values.pop("n_iter", 1), values.pop("seed", None), values.pop("file", None)
    if "prompt" not in values and not base.prompt:
        raise InputError("no prompt: give one in the line, or one for all lines with --prompt")
    made = _job(base, values | _whole_pairs(values, base))
    for job in _seeded(made, numbers, rounds, "batch" in values):
        yield Task(job, where, file)


def _values(words: Sequence[Word], tell: Told, letters: bool) -> dict[str, Any]:
    """Field to value; a name that stands twice counts the last time, as in sd-scripts and A1111."""
    found: dict[str, Any] = {}
    for word in words:
        name = _name(word, letters)
        if name in _LATER:
            tell(name, _LATER[name])
            continue
        try:
            value = _value(name, word.value)
        except InputError as error:
            raise word.refuse(str(error)) from None
        except ValueError as error:
            raise word.refuse(f"{word.name[:40]} {repr(word.value)[:80]} is not acceptable: give {error}") from None
        if name == "sampler" and value is not None:
            found["sampler"], implied = value
            found |= {"schedule": implied} if implied and "schedule" not in found else {}
        else:
            found[name] = {**found.get(name, {}), **value} if name == "overrides" and value else value
    return found


def _name(word: Word, letters: bool) -> str:
    """The field that a word is for, or an option that is left out; InputError with near matches for any other."""
    name = word.name.lower().replace("-", "_")
    if letters and name in _LETTERS:
        return _LETTERS[name]
    if name in _HALVES or name in _LATER:
        return name
    if name not in _known():
        if name in ("size", "ar"):
            raise word.refuse(f"{word.name} is for the command, --params and presets: give width and height")
        if name in KNOBS:
            raise word.refuse(f"{word.name} is about the whole run: give it to the command")
        shown = f"option --{word.name[:40]}" if letters else repr(word.name[:40])
        raise word.refuse(f"unknown {shown}: {near_matches(name[:40], sorted(_known()))}")
    return _known()[name]


@cache
def _known() -> dict[str, str]:
    """Long name to field: the fields, the command's flags and their aliases, and what else A1111 has."""
    flags = {flag: name for name in SAVED for flag in (*KNOBS[name].flags, *KNOBS[name].aliases) if flag.startswith("--")}
    known = {flag.removeprefix("--").replace("-", "_"): name for flag, name in flags.items()} | {name: name for name in SAVED}
    return known | {name: name for name in _PAIRS} | {"sampler_name": "sampler", "n_iter": "n_iter", "file": "file"}


def _value(name: str, value: Any) -> Any:
    """What a word says; ValueError tells what should stand there instead."""
    if name == "seed" and isinstance(value, list):
        value = ",".join(map(str, value)) if all(type(each) is int for each in value) else _wrong("whole numbers, or text such as 1,2,5-9")
    if name in _PAIRS and isinstance(value, list):
        return _pair(name, value)
    if name == "n_iter":
        return _rounds(value)
    if name == "file":
        return naming.literal(value) if isinstance(value, str) else _wrong("text")
    if name in ("sampler", "schedule") and isinstance(value, str):
        return names.sampler(value) if name == "sampler" else names.schedule(value)
    if name == "sampler" and value is not None:
        _wrong("the name of a sampler")
    if name == "overrides" and value is not None:
        return _overrides(value)
    parse = KNOBS["width" if name in _HALVES else name].parse
    return parse(value) if parse and isinstance(value, str) else value


def _wrong(what: str) -> Any:
    raise ValueError(what)


def _pair(name: str, value: list[Any]) -> Any:
    """A size or a corner as records have it."""
    try:
        return typed(value, get_type_hints(Job)[name])
    except TypeError:
        return _wrong("two whole numbers, height and width or top and left")


def _rounds(value: Any) -> int:
    count = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9 else value
    return count if type(count) is int and 1 <= count <= ROUNDS else _wrong(f"a whole number from 1 to {ROUNDS}")


def _overrides(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = dict(part.partition("=")[::2] for part in value.replace(",", " ").replace(";", " ").split())
    if not isinstance(value, dict) or not all(name and isinstance(text, str) and text for name, text in value.items()):
        _wrong("field=value, such as rng=philox, or an object of texts")
    return dict(value)


def _whole_pairs(values: dict[str, Any], base: Job) -> dict[str, Any]:
    """The sizes of which halves are given, taken out of `values`; the other half is the picture's own size, or a crop of 0."""
    found: dict[str, Any] = {}
    for name, halves in _PAIRS.items():
        given = [values.pop(half, None) for half in halves]
        if given == [None, None] or (name == "seed_resize" and any(each in (None, 0, -1) for each in given)):  # A1111's for none
            continue
        own = (0, 0) if "crop" in name else (values.get("height", base.height), values.get("width", base.width))
        found[name] = tuple(each if each is not None else other for each, other in zip(given, own, strict=True))
        if None in found[name]:
            raise InputError(f"{name} has one half alone: give --{halves[0]} and --{halves[1]}, or the picture's height and width")
    return found


def _job(base: Job, values: Mapping[str, Any]) -> Job:
    job = validate(replace(base, **values))
    _check_profile(job.profile, tuple(sorted((job.overrides or {}).items())))
    return job


@cache
def _profile(name: str) -> profiles.Profile:
    return profiles.load_profile(name)


def _check_profile(name: str, overrides: tuple[tuple[str, str], ...]) -> None:
    made = _profile(name)
    if overrides:
        profiles.override(made, dict(overrides))


def _seeded(job: Job, numbers: Any, rounds: int, counted: bool) -> Iterator[Job]:
    """A job for each seed of a list; otherwise one for each round, whose seeds go on where the last ended."""
    if isinstance(numbers, tuple) and len(numbers) > 1:
        if counted or rounds > 1:
            raise InputError("a list of seeds says how many pictures there are: leave the batch and n_iter out")
        validate(replace(job, seed=max(numbers), batch=1))
        yield from (replace(job, seed=seed, batch=1) for seed in numbers)
        return
    seed = numbers[0] if isinstance(numbers, tuple) else job.seed if numbers is None else numbers
    validate(replace(job, seed=seed))
    if seed in (None, -1):  # drawn when the picture is made
        yield from [replace(job, seed=seed)] * rounds
        return
    validate(replace(job, seed=seed + (rounds - 1) * job.batch))
    yield from (replace(job, seed=seed + at * job.batch) for at in range(rounds))
