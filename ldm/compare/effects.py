"""What two sides have apart, by its likely effect. A difference counts as far as it can reach: a rule for stochastic samplers says
nothing under Euler, one for weights nothing of a prompt without any.

What decides the model or the noise comes first, then what shapes the way to the picture, last what only rounds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from ldm.diffusion.profiles import Profile
from ldm.errors import InputError
from ldm.options import Job

if TYPE_CHECKING:
    from ldm.compare.sides import Side
    from ldm.diffusion.samplers import Sampler

Effect = Literal["another picture", "other details", "fine detail", "last bits", "none"]


@dataclass(frozen=True)
class Difference:
    """One thing that the two have apart; `more` says what follows from it."""

    what: str
    a: str
    b: str
    effect: Effect
    more: str = ""


def _solver(side: Side) -> Sampler | None:
    """None: one that is not known here."""
    from ldm.diffusion import samplers

    try:
        return samplers.get(str(side.job.sampler), side.rules)
    except InputError:
        return None


def _noise(side: Side) -> str:
    """The kind of noise that the sampler draws on the way."""
    solver = _solver(side)
    return "ancestral" if side.job.sampler in side.rules.plain_noise else solver.noise if solver else "none"


def _guided(side: Side) -> bool:
    """Whether the negative is asked for."""
    solver = _solver(side)
    return side.job.cfg != 1 or (solver is not None and solver.needs_uncond)


def _texts(side: Side) -> list[str]:
    return [text for text in (side.job.prompt, side.job.negative, side.job.prompt_2, side.job.negative_2) if text]


def _has(pattern: str) -> Callable[[Side], bool]:
    return lambda side: re.search(pattern, " ".join(_texts(side))) is not None


def _long(side: Side) -> bool:
    from ldm.text.prompt import CHUNK
    from ldm.text.tokenizer import encode

    return any(len(encode(text, side.rules.text_cleaning)) > CHUNK for text in _texts(side))


def _mended(side: Side) -> bool:
    from ldm.text.tokenizer import encode

    return any(encode(text, "ftfy") != encode(text, "none") for text in _texts(side))


def _always(_side: Side) -> bool:
    return True


# Whether a difference in this reaches a side's picture; what is not named always does.
_REACHES: dict[str, Callable[[Side], bool]] = {
    **dict.fromkeys(("negative", "cfg_order", "negative_original", "negative_crop", "negative_target"), _guided),
    "subseed": lambda side: bool(getattr(side.job, "subseed_strength", 0)),
    "batch_noise": lambda side: side.index > 0 or (side.job.batch > 1 and _noise(side) == "ancestral"),
    "singlestep_noise": lambda side: side.job.sampler in ("dpm_fast", "dpm_adaptive"),
    "multistep_orders": lambda side: side.job.sampler in ("unipc", "unipc_bh2", "deis", "sa_solver"),
    "brownian": lambda side: _noise(side) == "brownian" and side.index > 0,
    "brownian_ends": lambda side: side.job.sampler == "dpmpp_sde",
    "ancestral_rng": lambda side: _noise(side) == "ancestral",
    "ensd": lambda side: _noise(side) == "ancestral" and side.rules.ancestral_rng == "continued",
    "multistep_last": lambda side: side.job.sampler in ("lms", "ipndm", "ipndm_v"),
    "weighting": _has(r"[()\[\]]"),
    "syntax": _has(r"[()\[\]{}|\\]|\b(BREAK|AND)\b"),
    "choices": _has(r"\{[^{}]*\|"),
    "chunking": _long,
    "text_cleaning": _mended,
    "bigg_exclamation": _has("!"),
}


def _begun(side: Side) -> bool | None:
    """Whether the first noise is scaled by more than its sigma; None where the list is not known."""
    from ldm.diffusion import noise, schedules

    job, rules = side.job, side.rules
    if not job.sigmas:
        return None
    scale = noise.start_scale(job.sigmas, schedules.SigmaTable(rules.alphas), rules, str(job.sampler), job.schedule)
    return float(scale) > job.sigmas[0]


def _left(side: Side) -> tuple[bool | None, bool]:
    """The same, and whether the last x is scaled too."""
    levels = side.job.sigmas or (0.0,)
    return _begun(side), side.job.sampler in side.rules.scaled and levels[-1] > 0


def _zeros(side: Side) -> tuple[Any, ...]:
    """Which texts are zeros and not encoded, and whether all that is pooled of them stays."""
    from ldm.text.conditioning import emptied

    job, rule = side.job, side.rules.empty_negative
    away = emptied(rule, job.negative, job.negative_2, negative=True) if _guided(side) else (False, False)
    return emptied(rule, job.prompt, job.prompt_2, negative=False), away, any(away) and rule == "zeros-keep-pooled"


def _depths(side: Side) -> tuple[Any, ...]:
    """Which states of the towers are read."""
    from ldm.text.conditioning import depths

    return tuple(depths(side.rules.clip_skip, side.job.clip_skip, negative=negative) for negative in (False, _guided(side)))


def _told(*names: str) -> Callable[[Side], Any]:
    """The sizes of these names that the model is told."""

    def read(side: Side) -> list[Any]:
        from ldm.text.conditioning import sizes_told

        return [sizes_told(side.job, side.rules.size_defaults)[0][name] for name in names]

    return read


def _ways(side: Side) -> list[Any]:
    """The sampler's function, and what the rules say of its name."""
    solver = _solver(side)
    named = [side.job.sampler in names for each in fields(Profile) if isinstance(names := getattr(side.rules, each.name), tuple)]
    return [side.job.sampler if solver is None else replace(solver, name=""), *named]


def _last(name: str, side: Side) -> tuple[str, bool]:
    """What the last tower reads, and whether it is other than what the first does."""
    one, two = getattr(side.job, name.removesuffix("_2")) or "", getattr(side.job, name)
    return (one, False) if two is None else (two, two != one)


def _second(name: str, a: Side, b: Side) -> bool:
    """Whether the last tower's text differs by more than the first's."""
    if name == "negative_2" and not (_guided(a) or _guided(b)):
        return False
    (one, own), (two, others) = _last(name, a), _last(name, b)
    return one != two and (own or others)


# What a difference in this comes to on a side: where that is one on both, it reaches nothing.
_COMES_TO: dict[str, Callable[[Side], Any]] = {
    "start_noise": _begun,
    "scaled": _left,
    **dict.fromkeys(("clip_skip", "rule clip_skip"), _depths),
    **{name: _told(name) for name in ("original", "crop", "target")},
    "size_defaults": _told("original", "target"),
    "empty_negative": _zeros,
    "sampler": _ways,
}
_LISTS = (  # the rules that lists of sigmas are made by: they reach a picture where the lists differ
    *("karras_range", "karras_rho", "spacing", "whole_steps", "open_grid", "ends_low", "drop_penultimate"),
    *("beta", "kl_optimal", "align_your_steps"),
)
# The greatest effect first; rules that are not named are among the fine ones.
_ORDER: tuple[tuple[Effect, tuple[str, ...]], ...] = (
    ("another picture", ("model", "prompt", "prompt_2", "width", "height")),
    ("another picture", ("seed", "subseed", "subseed_strength", "seed_resize", "rng", "batch_noise")),
    ("another picture", ("sampler", "steps", "schedule", "ancestral_rng", "ensd", "brownian")),
    ("other details", ("negative", "negative_2", "cfg", "clip_skip", "weighting", "syntax", "choices", "chunking", "empty_negative")),
    ("other details", ("text_cleaning", "bigg_exclamation")),
    ("other details", ("stopped at step", *_LISTS, "start_noise", "scaled", "plain_noise", "unfollowed", "speed")),
    ("other details", ("original", "crop", "target", "negative_original", "negative_crop", "negative_target", "vae")),
    ("fine detail", ("dtype", "vae_dtype", "timestep", "alphas", "multistep_last", "brownian_ends", "sigmas", "watermark")),
    ("last bits", ("cfg_order", "device", "torch", "version")),
)
_MAKE_SIGMAS = ("steps", "schedule", *_LISTS, "alphas", "sampler")
_FIELDS = {each.name for each in fields(Job)}
_RULES = {f"rule {each.name}" if each.name in _FIELDS else each.name for each in fields(Profile) if each.name != "name"}
_SAID = (_RULES | _FIELDS | {"stopped at step"}) - {"dtype", "vae_dtype", "device"}  # of which to say nothing is to say none


def differences(a: Side, b: Side) -> list[Difference]:
    """What the two have apart, the greatest likely effect first."""
    found = [made for effect, names in _ordered() for name in names for made in _difference(name, effect, a, b)]
    cause = next((each for each in found if each.what in _MAKE_SIGMAS and each.effect != "none"), None)
    if cause is not None and a.job.sigmas != b.job.sigmas:
        told = replace(cause, more=f"sigmas {_list(a.job.sigmas)} against {_list(b.job.sigmas)}")
        found = [told if each is cause else each for each in found if each.what != "sigmas"]
    return sorted(found, key=lambda each: each.effect == "none")


def _ordered() -> Iterator[tuple[Effect, Sequence[str]]]:
    named = {name for _, names in _ORDER for name in names}
    for effect, names in _ORDER:
        yield effect, (*names, *sorted(_RULES - named)) if effect == "fine detail" else names


def _difference(name: str, effect: Effect, a: Side, b: Side) -> Iterator[Difference]:
    if name == "model":
        yield from _models(a, b)
        return
    one, two = _value(name, a), _value(name, b)
    if name == "negative" and "zeros-if-none" not in (a.rules.empty_negative, b.rules.empty_negative):
        one, two = one or "", two or ""  # what an absent one becomes is a rule
    if one != two and (name in _SAID or None not in (one, two)):
        yield Difference(name, _shown(one), _shown(two), effect if _reaches(name, one, two, a, b) else "none")


def _reaches(name: str, one: Any, two: Any, a: Side, b: Side) -> bool:
    if name in _LISTS and name != "whole_steps":
        return a.job.sigmas != b.job.sigmas
    if name in ("prompt_2", "negative_2"):
        return _second(name, a, b)
    if name in _COMES_TO:
        return bool(_COMES_TO[name](a) != _COMES_TO[name](b))
    if isinstance(getattr(a.rules, name, None), tuple):  # a rule for the samplers that it names
        return any((side.job.sampler in one) != (side.job.sampler in two) for side in (a, b))
    reach = _REACHES.get(name, _always)
    return reach(a) or reach(b)


def _models(a: Side, b: Side) -> Iterator[Difference]:
    """By their hashes where both are known, however short, otherwise by their names."""
    names, hashes = ([_stem(side.facts.get("model", "")) for side in (a, b)], [side.facts.get("model hash", "") for side in (a, b)])
    known = all(hashes)
    same = hashes[0].startswith(hashes[1]) or hashes[1].startswith(hashes[0]) if known else names[0] == names[1]
    if (same and names[0] == names[1]) or not (known or all(names)):
        return
    one, two = (f"{name or 'not said'}{f' ({digest[:10]})' if digest else ''}" for name, digest in zip(names, hashes, strict=True))
    yield Difference("model", one, two, "none" if same else "another picture")


def _stem(name: str) -> str:
    return re.split(r"[/\\]", name)[-1].removesuffix(".safetensors").removesuffix(".ckpt")


def _value(name: str, side: Side) -> Any:
    if name in _RULES:
        return getattr(side.rules, name.removeprefix("rule "))
    if name == "seed_resize" and side.job.seed_resize == (side.job.height, side.job.width):
        return None
    if name in side.facts or name not in _FIELDS or name in ("vae", "dtype", "vae_dtype", "device"):
        return _stem(side.facts[name]) if name == "vae" and name in side.facts else side.facts.get(name)
    return getattr(side.job, name)


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        return _list(value)
    text = "not said" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _list(levels: tuple[float, ...] | None) -> str:
    if levels is None:
        return "that cannot be made here"
    shown = [f"{level:.7g}" for level in levels]
    return " ".join(shown if len(shown) <= 7 else [*shown[:4], "...", *shown[-3:]])
