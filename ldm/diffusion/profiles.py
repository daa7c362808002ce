"""Profiles: every rule in which engines differ, as one field of a frozen dataclass, one TOML file a profile.

No torch here, so that the command line can name profiles and their fields at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ldm import resources
from ldm.diffusion import names as samplers
from ldm.errors import InputError, near_matches, shown

RANGES = {"karras_rho": (1, 100), "ensd": (-(2**63), 2**63 - 1)}  # of whole numbers, where not all from 0 to 2^63 - 1 are


@dataclass(frozen=True, slots=True)
class Profile:
    """The rules of one engine. Every field is one rule; its type says which values it can take."""

    name: str  # of the file it came from
    alphas: Literal["float64", "float32", "float32-betas", "float16"]  # precision in which the sigma table is made
    karras_range: Literal["model", "spaced", "rounded"]  # ends of karras and its kin: the table's, those of `spacing`, 0.0292 and 14.6146
    karras_rho: int  # the exponent of karras
    spacing: Literal["linspace-log", "linspace-linear", "leading", "trailing", "legacy"]  # of the schedule "normal"
    whole_steps: tuple[str, ...]  # samplers whose lists divide the steps by n + 1, whose karras has the table's ends and whose t is whole
    open_grid: tuple[str, ...]  # samplers that walk ddim_uniform's list, whatever schedule is asked for, and stop at its last sigma above 0
    ends_low: tuple[str, ...]  # samplers whose lists end at the table's least sigma, not at 0
    beta: Literal["timesteps", "sigmas"]  # what the Beta quantiles space: training steps, rounded, or sigma from end to end
    kl_optimal: Literal["to-zero", "to-low"]  # n sigmas and 0, or n + 1 that end at the table's least
    align_your_steps: Literal["n-then-zero", "last-to-zero"]  # n sigmas of the published list and 0, or n + 1 with the last made 0
    timestep: Literal["float", "nearest-log", "nearest-snap", "by-list"]  # sigma -> t; "nearest-snap" also moves sigma; see timesteps.py
    start_noise: Literal["sigma", "sqrt1p", "sqrt1p-if-full", "by-spacing"]  # scale of the first x; see noise.start
    scaled: tuple[str, ...]  # samplers that work on x / sqrt(1 + sigma²): they start from unit noise there, and leave it where they stop
    rng: Literal["cpu", "philox"]  # torch's CPU generator, or CUDA's Philox made on the CPU
    batch_noise: Literal["per-image", "one-draw"]  # a generator for each image, or one draw of the first seed for the whole batch
    # a new generator with seed, seed + 1 or the seed whose low 32 bits are inverted, or the start noise's own
    ancestral_rng: Literal["same-seed", "next-seed", "flipped", "continued"]
    ensd: int  # added to the seed for all draws after the first when "continued", modulo 2^64; 0: not set
    brownian: Literal["per-image", "batch"]  # a path for each image, or one of the first seed for the whole batch
    plain_noise: tuple[str, ...]  # samplers that get independent draws where others ask a Brownian path
    brownian_ends: Literal["exact", "log-trip"]  # ends of dpmpp_sde's intervals: sigma, or exp(log(sigma)) in float32
    drop_penultimate: tuple[str, ...]  # samplers whose list has one sigma more, the last but one left out
    multistep_last: Literal["multistep", "denoised"]  # lms and its kin at the step to sigma 0: their formula, or x0
    multistep_orders: Literal["third", "second"]  # of unipc, deis and sa_solver: ComfyUI's orders and variables, or diffusers'
    singlestep_noise: Literal["none", "ancestral"]  # of dpm_fast and dpm_adaptive: eta 0, or 1
    cfg_order: Literal["uncond-first", "cond-first"]  # rows of the batch under guidance
    chunking: Literal["plain", "comma-20", "cut"]  # a prompt's tokens beyond 75: a next chunk, after a comma among the last 20, or lost
    text_cleaning: Literal["ftfy", "none"]  # before tokens are made: quotes, entities and mojibake mended, or kept; see text/tokenizer.py
    bigg_exclamation: Literal["token", "pad"]  # what "!" is to the second tower: words, or its padding, token 0, each
    syntax: Literal["a1111", "comfyui", "none"]  # the language of prompts: brackets, BREAK, AND, editing; see text/language
    weighting: Literal["interpolate-empty", "scale-mean", "none"]  # how weights act on the towers' states; see text/weighting.py
    choices: Literal["by-seed", "literal"]  # {a|b} in prompts: one of them by the seed, or plain text
    unfollowed: tuple[str, ...]  # samplers that this engine runs by rules of its own, which are not written here yet
    # what an absent or empty negative, or prompt, becomes; see text/conditioning.py
    empty_negative: Literal["encode", "zeros-if-none", "zeros-if-empty", "zeros-any", "zeros-keep-pooled", "zeros"]
    clip_skip: Literal["ignored", "clip-l", "at-least-2", "layer", "beyond-2", "prompt-beyond-2"]  # what the option counts; see there too
    size_defaults: Literal["picture", "original-1024", "1024"]  # what the model is told where no sizes are given


def names() -> list[str]:
    """The profiles that there are."""
    return resources.names("profiles")


def choices() -> dict[str, tuple[str, ...]]:
    """Each field that can be set, with its values; () for a number or a list of names."""
    return {name: get_args(kind) if get_origin(kind) is Literal else () for name, kind in _kinds().items()}


def load_profile(name: str) -> Profile:
    """The profile `configs/profiles/<name>.toml`. An unknown name, key or value is an InputError; so is a missing key."""
    name = name.lower()
    values = resources.read_toml("profiles", name)
    missing = [field for field in _kinds() if field not in values]
    if missing:
        raise InputError(f"profile {name!r} lacks {', '.join(missing)}: add the missing keys to its file")
    return Profile(name=name, **{field: _checked(field, value) for field, value in values.items()})


def override(profile: Profile, values: Mapping[str, Any]) -> Profile:
    """`profile` with some fields set, from text as `--set field=value` gives it (lists are separated by commas) or from plain values."""
    if not isinstance(values, Mapping):
        raise InputError(f"overrides {shown(values)} are not acceptable: give a mapping of profile fields to values")
    return replace(profile, **{field: _checked(field, _parsed(field, text)) for field, text in values.items()})


@cache
def _kinds() -> dict[str, Any]:
    hints = get_type_hints(Profile)
    return {field.name: hints[field.name] for field in fields(Profile) if field.name != "name"}


def _kind(field: str) -> Any:
    kinds = _kinds()
    if field not in kinds:
        raise InputError(f"unknown profile field {field!r}: {near_matches(str(field), list(kinds))}")
    return kinds[field]


def _parsed(field: str, text: Any) -> Any:
    kind = _kind(field)
    if not isinstance(text, str):
        return text
    if kind is int:
        return _integer(field, text)
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _integer(field: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"profile field {field!r} cannot be {shown(text)}: give a whole number") from None


def _checked(field: str, value: Any) -> Any:
    """`value`, if the field's type allows it."""
    kind = _kind(field)
    low, high = RANGES.get(field, (0, 2**63 - 1))
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(samplers.sampler(item)[0] for item in value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    raise InputError(f"profile field {field!r} cannot be {shown(value)}: {_remedy(kind, value, low, high)}")


def _remedy(kind: Any, value: Any, low: int, high: int) -> str:
    if get_origin(kind) is Literal:
        return near_matches(value if isinstance(value, str) else shown(value), list(get_args(kind)))
    return f"give a whole number from {low} to {high}" if kind is int else "give a list of sampler names"
