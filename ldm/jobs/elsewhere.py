"""A picture made by another program as the fields of a job, with the profile that follows that program. Its words are data, never code.

What cannot be followed is said, a sentence each; a value that makes no sense is an InputError that shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm.diffusion import names
from ldm.errors import InputError, shown
from ldm.metadata.foreign import Reading

Layer = dict[str, Any]


class Engine(NamedTuple):
    """How pictures of a program are made again: by which profile, and how near that comes where it is not the program's own."""

    profile: str
    note: str = ""


_NOISE = "on a device of CUDA its start noise agrees with this to about 1e-6, and only for small pictures; in large ones it is another"
ENGINES = {
    "a1111": Engine("a1111"),
    "forge": Engine("forge"),
    "comfyui": Engine("comfyui"),
    "invokeai": Engine("invokeai"),
    "swarmui": Engine("comfyui"),  # it sends its jobs to ComfyUI
    "sd.cpp": Engine("a1111", "stable-diffusion.cpp has no profile of its own: a1111, whose noise it shares, comes nearest"),
    "fooocus": Engine("comfyui", "Fooocus has no profile of its own: comfyui, which it is built on, comes nearest"),
    "novelai": Engine("a1111", "NovelAI's models and rules are not public: a1111 comes nearest"),
}
_SWARMED: Mapping[str, str] = {"Sampler": "euler", "Schedule type": "normal"}  # what its workflows take where nothing is chosen
_RNGS = {"cpu": "cpu", "nv": "philox", "cuda": "philox"}  # A1111's; stable-diffusion.cpp's "cuda" is the same numbers
_TOLD = 12  # settings that a note lists
_NO_FILE = ("none", "automatic", "default (model)")
_INTEGERS = {"Steps": "steps", "Seed": "seed", "Clip skip": "clip_skip", "Variation seed": "subseed"}
_NUMBERS = {"CFG scale": "cfg", "Variation seed strength": "subseed_strength"}
_PAIRS = {"Size": "size", "Seed resize from": "seed_resize", "Original size": "original", "Target size": "target", "Crop": "crop"}
_TEXTS = {"Second prompt": "prompt_2", "Second negative": "negative_2"}
_COMPEL = re.compile(r"[\w)\"'](?:\++|-+)(?=[\s,.)]|$)|\)[0-9]*\.?[0-9]+|\.(?:and|blend|swap)\(")  # InvokeAI's weights and its calls
_SILENT = {  # what is read elsewhere here, what says nothing of the making, and what stands for itself
    *("Sampler", "Schedule type", "Size", "Model", "Model hash", "VAE", "VAE hash", "RNG", "ENSD"),
    *("Version", "App", "User", "Created Date"),
    *(*_PAIRS, *_TEXTS, "Negative"),
    *("Denoising strength", "Hashes", "Lora hashes", "TI hashes", "Downcast alphas_cumprod", "SGM noise multiplier"),
    *("Module 1", "Module 2", "Module 3", "Stopped at", "Batch size", "Batch pos"),
}


def layer(reading: Reading) -> tuple[Layer, list[str]]:
    """The fields that the settings give, and notes on what is left out. InputError where nothing is understood."""
    settings = reading.info.settings
    if reading.dialect not in ENGINES or not (reading.info.prompt or settings):
        raise InputError("no settings that are understood: give the prompt and the flags")
    engine = ENGINES[reading.dialect]
    made: Layer = {"prompt": reading.info.prompt, "batch": 1, "profile": engine.profile}
    made |= {"negative": reading.info.negative} if reading.info.negative or engine.profile in ("a1111", "forge") else {}
    made |= {field: _whole(name, settings[name]) for name, field in _INTEGERS.items() if name in settings}
    made |= {field: _number(name, settings[name]) for name, field in _NUMBERS.items() if name in settings}
    made |= {field: settings[name] for name, field in _TEXTS.items() if name in settings}
    made |= {"clip_skip": None} if made.get("clip_skip") == 0 else {}  # InvokeAI's word for none
    made |= _sizes(settings) | _solver(reading.dialect, settings) | _files(settings)
    overrides = _rules(reading.dialect, settings)
    if settings.get("Negative") == "zeroed":
        overrides["empty_negative"] = "zeros"
    if "{" in reading.info.prompt + reading.info.negative:
        overrides["choices"] = "literal"  # what is saved is what was chosen
    made |= {"overrides": overrides} if overrides else {}
    compel = _compel(reading) if reading.dialect == "invokeai" else []
    return made, [note for note in (engine.note, *compel, *_notes(reading.dialect, settings)) if note]


def _wrong(name: str, value: str, what: str) -> InputError:
    return InputError(f"its {name} is {shown(value)}, which is not {what}: the text is damaged, or was changed by hand")


def _whole(name: str, value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}(\.0)?", value):
        raise _wrong(name, value, "a whole number")
    return int(value.removesuffix(".0"))


def _number(name: str, value: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{0,40})?(e-?[0-9]{1,3})?", value):
        raise _wrong(name, value, "a number")
    return float(value)


def _sizes(settings: Mapping[str, str]) -> Layer:
    """Pairs as the job has them: (height, width), (top, left)."""
    made: Layer = {}
    for name, field in _PAIRS.items():
        if name in settings:
            sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", settings[name])
            if not sides:
                raise _wrong(name, settings[name], "two whole numbers such as 1024x1024")
            made[field] = (int(sides[2]), int(sides[1]))
    if "size" in made:
        made["height"], made["width"] = made.pop("size")
    return made


def _solver(dialect: str, settings: Mapping[str, str]) -> Layer:
    """Sampler and schedule by our names."""
    settings = {**_SWARMED, **settings} if dialect == "swarmui" else settings
    if "Sampler" not in settings:
        return {}
    text, schedule = settings["Sampler"], settings.get("Schedule type")
    if dialect == "invokeai":  # karras is a letter behind the name; without it the timesteps are diffusers'
        text, schedule = text.removesuffix("_k"), "karras" if text.endswith("_k") else "normal"
        text = "unipc_bh2" if text == "unipc" else text  # as diffusers has it
    sampler, implied = names.sampler(text)
    known = implied or (names.schedule(schedule) if schedule else None)
    if known is None and dialect in ("a1111", "forge"):
        older = _before(settings.get("Version", ""), (1, 9))  # where a name without a schedule has none, but for one
        known = ("karras" if sampler == "restart" else "normal") if older else names.AUTOMATIC.get(sampler, "normal")
    return {"sampler": sampler} | ({"schedule": known} if known else {})


def _files(settings: Mapping[str, str]) -> Layer:
    """Names alone: where the files lie is for this machine to say."""
    found = {"model": settings.get("Model"), "vae": settings.get("VAE")}
    named = {field: re.split(r"[/\\]", name)[-1] for field, name in found.items() if name and name.lower() not in _NO_FILE}
    return {field: name for field, name in named.items() if name}


def _rules(dialect: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Rules of the profile that this very picture was made with."""
    rules: dict[str, str] = {}
    if settings.get("RNG", "").lower() in _RNGS:
        rules["rng"] = _RNGS[settings["RNG"].lower()]
    if settings.get("ENSD", "0") != "0":
        rules["ensd"] = str(_whole("ENSD", settings["ENSD"]))
    if settings.get("Downcast alphas_cumprod") == "True" or (dialect == "a1111" and _before(settings.get("Version", ""), (1, 8))):
        rules["alphas"] = "float16"
    if settings.get("SGM noise multiplier") == "True":
        rules["start_noise"] = "sqrt1p"
    return rules


def _before(version: str, limit: tuple[int, int]) -> bool:
    """Whether a version of A1111's, such as v1.6.0-2-g4afaaf8a, is older; Forge's f0.0.17v1.8.0 says behind its own which it is made of."""
    numbers = re.search(r"(?:^|v)([0-9]{1,3})\.([0-9]{1,3})(?![0-9])", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < limit


def _notes(dialect: str, settings: Mapping[str, str]) -> list[str]:
    notes = []
    graphics = settings.get("RNG", "GPU") == "GPU" and dialect in ("a1111", "forge", "novelai")
    if graphics or (dialect == "invokeai" and settings.get("RNG") == "cuda"):
        notes.append(f"its noise is of the graphics card's generator, made here by counting: {_NOISE}")
    if _number("Denoising strength", settings.get("Denoising strength", "1")) < 1:
        notes.append("it was made from another picture, or enlarged: what is made here begins with noise alone")
    if dialect in ("comfyui", "swarmui") and settings.get("Batch size", "1") not in ("0", "1"):
        notes.append(f"it is one of a batch of {settings['Batch size'][:20]}, and which one is not said: the first is made")
    default = [f"{name} is {value}" for name, value in _SWARMED.items() if dialect == "swarmui" and name not in settings]
    if default:
        notes.append(f"it leaves to SwarmUI's default, which is taken here: {', '.join(default)}")
    if dialect == "invokeai":
        notes.append("invokeai tells schedules apart by names alone: look at --schedule where the picture differs")
    return [*notes, *_left_out(settings)]


def _compel(reading: Reading) -> list[str]:
    """Which of InvokeAI's weights stand in its prompts, in a note."""
    texts = (reading.info.prompt, reading.info.negative, *(reading.info.settings.get(name, "") for name in _TEXTS))
    found = [match.string[max(match.start() - 20, 0) : match.end()].split()[-1][-40:] for match in map(_COMPEL.search, texts) if match]
    return [f"InvokeAI's weights and calls in a prompt are taken as plain words here: {', '.join(found)}"] if found else []


def _left_out(settings: Mapping[str, str]) -> list[str]:
    """What nothing here follows, in a note."""
    left = [f"{name[:40]} {settings[name][:40]}" for name in settings if name not in {*_SILENT, *_INTEGERS, *_NUMBERS}]
    more = f" and {len(left) - _TOLD} more" if len(left) > _TOLD else ""
    return [f"left out, as there is nothing here that follows it: {', '.join(left[:_TOLD])}{more}"] if left else []
