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
        return Reading("swarmui", Infotext(_text(swarm.get("prompt")), _text(swarm.get("negativeprompt")), _named(swarm, _SWARM)))
    try:
        info = a1111.read(text)
    except InputError:
        return None
    if not info.settings:
        return None
    return Reading(_program(info.settings.get("Version", "")), info)


def _program(version: str) -> str:
    """Which of those that write A1111's lines."""
    marks = {"ldm ": "ldm", "stable-diffusion.cpp": "sd.cpp", "Fooocus": "fooocus", "f": "forge"}
    return next((program for mark, program in marks.items() if version.startswith(mark)), "a1111")


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
        model = _part(said, "model")
        settings = _named(said | {"model": None}, _INVOKE)
        name = _text(model.get("name") or model.get("model_name"))
        settings |= {"Model": name} if name else {}
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
    """The known settings in A1111's words, and the size."""
    found = {name: _text(said.get(key)) for key, name in names.items()}
    found["Size"] = f"{_text(said.get('width'))}x{_text(said.get('height'))}"
    return {name: text for name, text in found.items() if text.strip("x")}


def _text(value: Any) -> str:
    """A text or a number as text; everything else is empty."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    try:
        return str(value)
    except ValueError:  # a number with more digits than Python prints
        return ""
