"""Every knob of a job, declared once: the command's flags, their help, the checks and the saved record derive from `Job`."""

from __future__ import annotations

import argparse
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

from ldm.errors import InputError, shown
from ldm.limits import HIGHEST_SIGMA, LIMITS


@dataclass(frozen=True)
class Knob:
    """How one field of `Job` appears to a user."""

    flags: tuple[str, ...]  # shown in the help
    aliases: tuple[str, ...]  # what other engines call it: accepted, not shown
    help: str
    parse: Callable[[str], Any] | None  # text to value, ValueError where it cannot; None: a switch without a value
    metavar: str
    saved: bool  # part of what makes the picture, so part of its record; the others are about this run
    repeats: bool


def _knob(
    default: Any,
    flags: str,
    text: str,
    parse: Callable[[str], Any] | None = str,
    *,
    also: str = "",
    value: str = "TEXT",
    saved: bool = True,
    repeats: bool = False,
) -> Any:
    knob = Knob(tuple(flags.split()), tuple(also.split()), text, parse, value, saved, repeats)
    return field(default=default, metadata={"knob": knob})


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text.strip()):
        raise ValueError("a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("numbers with commas between, such as 14.6,5.2,1.1,0") from None


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise ValueError("field=value, such as rng=philox")
    return name.strip(), value.strip()


_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})\s*([KMG]i?B|B|)", text.strip())
    if match is None:
        raise ValueError("a size such as 33554432 or 32MiB")
    return int(match[1]) * _UNITS[match[2]]


_DTYPES = ("auto", "float32", "bfloat16", "float16")
_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _dtype(text: str) -> str:
    name = _SHORT_DTYPES.get(text, text)
    if name not in _DTYPES:
        raise ValueError("auto, float32, bfloat16 or float16")
    return name


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return text


@dataclass(frozen=True)
class Job:
    """One call for pictures. None means: the family's default, then the profile's rule.

    In a finished job all that makes the picture is filled in; only `negative`, `overrides` and, beside a list of sigmas, `schedule` may
    still be None.
    """

    prompt: str = _knob("", "-p --prompt", "what the picture shows")
    negative: str | None = _knob(None, "-n --negative", "what it should not show; none given differs from empty", also="--negative-prompt")
    width: int | None = _knob(None, "-W --width", "in pixels", _whole, value="N")
    height: int | None = _knob(None, "-H --height", "in pixels", _whole, value="N")
    steps: int | None = _knob(None, "--steps", "sampling steps", _whole, value="N")
    cfg: float | None = _knob(
        None, "--cfg", "guidance scale, 1 is none", _number, also="--cfg-scale --guidance --guidance-scale --scale", value="X"
    )
    sampler: str | None = _knob(None, "--sampler", "sampler name", also="--sampling-method", value="NAME")
    schedule: str | None = _knob(None, "--schedule", "schedule name", also="--scheduler", value="NAME")
    sigmas: tuple[float, ...] | None = _knob(
        None, "--sigmas", "noise levels, falling, commas between; instead of a schedule", _numbers, value="LIST"
    )
    seed: int | None = _knob(None, "-s --seed", "seed of the first picture, the k-th after it takes seed + k", _whole, value="N")
    batch: int = _knob(1, "-b --batch", "pictures to make", _whole, also="--batch-count --batch-size", value="N")
    profile: str = _knob("comfyui", "--profile", "the engine whose habits to follow", value="NAME")
    overrides: Mapping[str, str] | None = _knob(
        None, "--set", "change one field of the profile; may be repeated", _assignment, value="FIELD=VALUE", repeats=True
    )
    model: str | None = _knob(None, "-m --model", "model file (.safetensors); none: the model in the box", value="FILE", saved=False)
    vae: str | None = _knob(None, "--vae", "take the VAE from this file", value="FILE", saved=False)
    device: str = _knob("auto", "--device", "auto, cpu, cuda or cuda:N", _device, value="NAME", saved=False)
    dtype: str = _knob("auto", "--dtype", "auto, float32, bfloat16 or float16", _dtype, value="NAME", saved=False)
    output: str = _knob("outputs", "-o --output", "a .png file, or a folder", also="--outdir --output-dir", value="PATH", saved=False)
    latents: str | None = _knob(None, "--latents", "save the latents too (.safetensors)", value="FILE", saved=False)
    overwrite: bool = _knob(False, "--overwrite", "replace named files that exist", None, saved=False)
    quiet: bool = _knob(False, "-q --quiet", "no progress and no notes", None, saved=False)
    max_header: int = _knob(
        16 * 2**20, "--max-header", "largest header of a model file to accept, in bytes or as 64MiB", _bytes, value="SIZE", saved=False
    )
    verify: bool = _knob(False, "--verify", "check the model files against their known sha256 before they are loaded", None, saved=False)
    debug: bool = _knob(False, "--debug", "show the traceback of an error", None, saved=False)


NUMBERS = ("width", "height", "steps", "batch", "seed", "cfg")
KNOBS: dict[str, Knob] = {each.name: each.metadata["knob"] for each in fields(Job)}


def validate(job: Job) -> Job:
    """The job with plain numbers. Raises InputError for the first value outside `LIMITS`, saying the value, the limit and the remedy.

    Files and the names of samplers, schedules and profiles are looked up elsewhere.
    """
    plain: dict[str, Any] = {name: _plain_number(getattr(job, name)) for name in NUMBERS}
    job = replace(job, **plain, sigmas=_plain_sigmas(job.sigmas))
    for name in ("sampler", "schedule", "profile"):
        if not isinstance(getattr(job, name), str) and (name == "profile" or getattr(job, name) is not None):
            raise InputError(f"{name} {getattr(job, name)!r} is not a name: give text")
    for name in ("prompt", "negative"):
        if name == "prompt" or job.negative is not None:
            check_text(name, getattr(job, name))
    for name in NUMBERS:
        _check_number(name, getattr(job, name), float if name == "cfg" else int)
    if (job.seed or 0) + job.batch - 1 > LIMITS["seed"].high:
        raise InputError(f"seed {job.seed} with batch {job.batch}: seeds end at {LIMITS['seed'].high}: use a smaller seed")
    if job.sigmas is not None:
        _check_sigmas(job.sigmas, job.steps)
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
    if (value is None and name != "batch") or (name == "seed" and value == -1):
        return
    limit = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise InputError(f"{name} {shown(value)} is not a {'whole ' if kind is int else ''}number: {limit}")
    if not limit.allows(value):
        remedy = f": the nearest is {limit.nearest(value)}" if limit.multiple > 1 else ""
        raise InputError(f"{name} {shown(value)} is not allowed: {limit}{remedy}")


def _check_sigmas(sigmas: Sequence[float], steps: int | None) -> None:
    falls = all(one > two for one, two in pairwise(sigmas))
    if not falls or not sigmas or not 0 <= sigmas[-1] < sigmas[0] < HIGHEST_SIGMA:
        text = ",".join(map(repr, sigmas))[:80]
        raise InputError(f"sigmas {text} are not allowed: give two or more falling numbers, below {HIGHEST_SIGMA:.0f} and not below 0")
    if not LIMITS["steps"].allows(len(sigmas) - 1):
        raise InputError(f"sigmas has {len(sigmas)} values, so {len(sigmas) - 1} steps: steps are {LIMITS['steps']}")
    if steps is not None and steps != len(sigmas) - 1:
        raise InputError(f"steps {steps} with {len(sigmas)} sigmas, which are {len(sigmas) - 1} steps: leave one of them out")


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line, as an InputError."""

    def error(self, message: str) -> NoReturn:
        flag = re.fullmatch(r"argument (?:\S+/)?(\S+): expected one argument", message)
        dash = f', and a value that starts with a dash an equals sign: write {flag[1]}="-c"' if flag else ""
        raise InputError(f"{message}{dash}: see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version on stdout; an OSError is not passed over, as argparse does."""
        print(message, end="", flush=True)


def parser(prog: str, description: str) -> Parser:
    """The flags of `Job`, in its order."""
    made = Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, knob in KNOBS.items():
        keywords: dict[str, Any] = {"dest": name}
        if knob.parse is None:
            keywords["action"] = "store_true"
        else:
            keywords |= {"type": partial(_parse, knob.flags[-1], knob.parse), "metavar": knob.metavar}
            keywords["action"] = "append" if knob.repeats else "store"
        made.add_argument(*knob.flags, help=_help(name, knob), **keywords)
        if knob.aliases:
            made.add_argument(*knob.aliases, help=argparse.SUPPRESS, **keywords)
    return made


def _help(name: str, knob: Knob) -> str:
    default = next(each.default for each in fields(Job) if each.name == name)
    notes = [str(LIMITS[name])] if name in LIMITS else []
    notes += [f"default {default}"] if default and default is not True else []
    return (f"{knob.help} ({'; '.join(notes)})" if notes else knob.help).replace("%", "%%")


def _parse(flag: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(f"{flag} {text[:80]!r} is not acceptable: give {error}") from None


def from_args(made: Parser, argv: Sequence[str]) -> Job:
    """The job that the words of a command line ask for; raises InputError."""
    values = vars(made.parse_args(argv))
    if "prompt" not in values:
        raise InputError(f'no prompt: give one, as in {made.prog} -p "a red apple"')
    if "overrides" in values:
        values["overrides"] = dict(values["overrides"])
    return Job(**values)
