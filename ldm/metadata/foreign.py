"""Which program made a picture, and its settings in A1111's words, from the texts of the file: as data, never executed.

ldm       the chunk `ldm` (native.py)                 a1111, sd.cpp  `parameters` in A1111's lines (a1111.py)
swarmui   `parameters`: {"sui_image_params": {...}}    invokeai       `invokeai_metadata`, before it `sd-metadata`: an object
comfyui   `prompt`: the graph of nodes, by their ids   novelai        Software NovelAI, `Comment`: an object
forge     as a1111, by its versions f2.0.1...          fooocus        `parameters` with `fooocus_scheme`: an object, or A1111's lines
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import InputError
from ldm.metadata import LIMIT, a1111, comfyui, native
from ldm.metadata.a1111 import Infotext

SHOWN = 10_000  # characters of one setting
_SWARM = {
    "steps": "Steps",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "cfgscale": "CFG scale",
    "seed": "Seed",
    "model": "Model",
    "vae": "VAE",
    "variationseed": "Variation seed",
    "variationseedstrength": "Variation seed strength",
    "initimagecreativity": "Denoising strength",
    "batchsize": "Batch size",
    "swarm_version": "Version",
}
_INVOKE = {
    "steps": "Steps",
    "scheduler": "Sampler",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "clip_skip": "Clip skip",
    "strength": "Denoising strength",
    "positive_style_prompt": "Second prompt",
    "negative_style_prompt": "Second negative",
    "app_version": "Version",
}
_FOOOCUS = {
    "steps": "Steps",
    "sampler": "Sampler",
    "scheduler": "Schedule type",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "base_model": "Model",
    "base_model_hash": "Model hash",
    "vae": "VAE",
    "clip_skip": "Clip skip",
    "refiner": "Refiner",
    "styles": "Styles",
    "sharpness": "Sharpness",
    "adaptive_cfg": "Adaptive CFG",
    "version": "Version",
}
_NOVEL = {
    "steps": "Steps",
    "sampler": "Sampler",
    "noise_schedule": "Schedule type",
    "scale": "CFG scale",
    "seed": "Seed",
    "strength": "Denoising strength",
}

_ELSEWHERE = {  # what is read by itself, and what says nothing of the making: dates, hashes, the words of styles beside their names
    *("prompt", "negativeprompt", "positive_prompt", "negative_prompt", "uc", "width", "height", "resolution", "model", "clipstopatlayer"),
    *("vae", "automaticvae", "images", "aspectratio", "sidelength", "personalnote", "date", "generation_time", "prep_time"),
    *("metadata_scheme", "created_by", "full_prompt", "full_negative_prompt", "metadata_version", "version", "stream"),
    *("request_type", "signed_hash", "hash", "base_model_hash", "refiner_hash", "uncond_per_vibe", "wonky_vibe_correlation"),
}
_USUAL = {  # values that change nothing
    "rand_device": ("cpu",),  # which is the profile's
    "generation_mode": ("txt2img", "sdxl_txt2img"),
    "type": ("txt2img",),
    "n_samples": ("1",),
    "uncond_scale": ("1.0", "1"),
    "controlnet_strength": ("1.0", "1"),
    "performance": ("Speed", "Quality"),  # the steps say it
}
_UNDER = {  # what has an effect only with another
    "refiner_switch": "refiner",
    "dynamic_thresholding_percentile": "dynamic_thresholding",
    "dynamic_thresholding_mimic_scale": "dynamic_thresholding",
    "variationseed": "variationseedstrength",
}


@dataclass(frozen=True)
class Reading:
    """The program, or "unknown" for texts of none, or "none" without texts; and what it says, empty where it is not understood."""

    dialect: str
    info: Infotext = field(default_factory=Infotext)


def read(texts: Mapping[str, str]) -> Reading:
    """What the texts of a file say. Never raises."""
    for kind in (_ours, _invoke, _fooocus, _parameters, _comfy, _novel):
        reading = kind(texts)
        if reading is not None:
            return reading
    return Reading("unknown" if texts else "none")


def _ours(texts: Mapping[str, str]) -> Reading | None:
    try:
        return Reading("ldm", a1111.from_record(native.read(texts[native.KEY]))) if native.KEY in texts else None
    except InputError:
        return None


def _parameters(texts: Mapping[str, str]) -> Reading | None:
    text = texts.get(a1111.KEY, "")
    swarm = _part(_object(text), "sui_image_params")
    if swarm:
        layer = _text(swarm.get("clipstopatlayer")).removeprefix("-")
        settings = _named(swarm, _SWARM) | ({"Clip skip": layer} if layer else {})
        return Reading("swarmui", Infotext(_text(swarm.get("prompt")), _text(swarm.get("negativeprompt")), settings))
    try:
        info = a1111.read(text)
    except InputError:
        return None
    if not info.settings:
        return None
    return Reading(_program(info.settings.get("Version", "")), info)


def _program(version: str) -> str:
    """Which of those that write A1111's lines, Civitai's and those that savers of ComfyUI write among them."""
    marks = {"ldm ": "ldm", "stable-diffusion.cpp": "sd.cpp", "fooocus": "fooocus", "comfyui": "comfyui", "f": "forge"}
    return next((program for mark, program in marks.items() if version.lower().startswith(mark)), "a1111")


def _fooocus(texts: Mapping[str, str]) -> Reading | None:
    """Its own scheme, whose size is the text "(1024, 1024)"; a prompt as typed stands before the one that its styles made of it."""
    said = _object(texts.get("parameters", ""))
    if "fooocus_scheme" not in texts or not said:
        return None
    sides = re.fullmatch(r"\(([0-9]{1,5}), ([0-9]{1,5})\)", _text(said.get("resolution")))
    size = {"width": sides[1], "height": sides[2]} if sides else {}
    return Reading("fooocus", Infotext(_text(said.get("prompt")), _text(said.get("negative_prompt")), _named(said | size, _FOOOCUS)))


def _invoke(texts: Mapping[str, str]) -> Reading | None:
    said = _object(texts.get("invokeai_metadata", ""))
    if said:
        settings = _named(said, _INVOKE)
        files = {name: _called(said.get(key)) or _text(said.get(key)) for name, key in (("Model", "model"), ("VAE", "vae"))}
        settings |= {name: file for name, file in files.items() if file}
        settings |= {"RNG": settings.pop("rand_device")} if settings.get("rand_device") == "cuda" else {}
        return Reading("invokeai", Infotext(_text(said.get("positive_prompt")), _text(said.get("negative_prompt")), settings))
    old = _part(_object(texts.get("sd-metadata", "")), "image")
    if not old:
        return None
    prompts = old.get("prompt")
    first = prompts[0] if isinstance(prompts, list) and prompts else {"prompt": prompts}
    return Reading("invokeai", Infotext(_text(first.get("prompt") if isinstance(first, dict) else first), "", _named(old, _INVOKE)))


def _comfy(texts: Mapping[str, str]) -> Reading | None:
    parts = comfyui.read(_object(texts.get("prompt", "")))
    if parts is None and not _object(texts.get("workflow", "")).get("nodes"):
        return None
    return Reading("comfyui", Infotext(*parts) if parts else Infotext())


def _novel(texts: Mapping[str, str]) -> Reading | None:
    said = _object(texts.get("Comment", ""))
    if texts.get("Software") != "NovelAI" or not said:
        return None
    settings = _named(said, _NOVEL)
    settings |= {"Model": texts["Source"][:SHOWN]} if texts.get("Source") else {}
    return Reading("novelai", Infotext(_text(said.get("prompt") or texts.get("Description")), _text(said.get("uc")), settings))


def _object(text: str) -> dict[str, Any]:
    """The object of a JSON text; empty for anything else."""
    if text.lstrip()[:1] != "{" or len(text) > LIMIT:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _part(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _named(said: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """The known settings in A1111's words, and the size; what is not known and is not off stands under its own name, to be said."""
    found = {name: _text(said.get(key)) for key, name in names.items() if key not in _UNDER or _shown(said.get(_UNDER[key]))}
    size = f"{_text(said.get('width'))}x{_text(said.get('height'))}"
    found["Size"] = size if size != "x" else ""
    left = {key: _shown(said[key]) for key in said if key not in _ELSEWHERE and key not in names and key not in found}
    left = {key: text for key, text in left.items() if key not in _UNDER or _shown(said.get(_UNDER[key]))}
    return {name: text for name, text in (found | left).items() if text not in ("", "None", *_USUAL.get(name, ()))}


def _shown(value: Any) -> str:
    """A value of a setting as text; empty where it is none, off or 0."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_item, value)))[:SHOWN] or ("given" if value else "")
    if isinstance(value, dict):
        return _called(value) or ("given" if value else "")
    text = "True" if value is True else _text(value)[:SHOWN]
    return "" if value == 0 or text == "None" else text


def _item(value: Any) -> str:
    """The same of one of a list: its name, where it is an object or a list of its own."""
    if isinstance(value, list):
        return _text(value[0]) if value else ""
    return _called(value) if isinstance(value, dict) else _text(value)


def _called(value: Any) -> str:
    """The name of a model that an object describes, or holds."""
    if not isinstance(value, dict):
        return ""
    inner = _part(value, "model") or _part(value, "lora")
    return next((text for each in (value, inner) for key in ("name", "model_name") if (text := _text(each.get(key)))), "")


def _text(value: Any) -> str:
    """A text or a number as text; everything else is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    try:
        return str(value)
    except ValueError:  # a number with more digits than Python prints
        return ""
