"""The `parameters` text of AUTOMATIC1111's web interface, which most viewers and sites read.

    prompt lines
    Negative prompt: its lines
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.0, Seed: 1, Size: 1024x1024, Model: sd_xl_base_1.0, Version: ldm 0.1.0

The settings line starts with `Steps: ` because some readers find it by that word. A value with a comma, a colon or a newline
is quoted as a JSON string. The dialect loses things by design (outer spaces, a prompt whose last line looks like settings):
the exact record is in the `ldm` chunk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ldm.diffusion import names
from ldm.errors import InputError
from ldm.metadata import LIMIT, PARAMETERS
from ldm.options import Job, alone

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.metadata.native import Record

KEY = PARAMETERS
RNGS = {"cpu": "CPU", "philox": "NV"}
_NEGATIVE = "Negative prompt:"
_NAME = re.compile(r"\w[\w \-/]+")


@dataclass(frozen=True)
class Infotext:
    """The three parts of the text; settings keep their order."""

    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def from_record(record: Record, profile: Profile | None = None) -> Infotext:
    """What the dialect can say of a record; `profile` holds the rules that were followed, overrides included."""
    job = record.job
    settings = {
        "Steps": job.steps,
        "Sampler": names.a1111_sampler(job.sampler),
        "Schedule type": names.a1111_schedule(job.schedule),
        "CFG scale": job.cfg,
        "Seed": record.seed,
        "Size": f"{job.width}x{job.height}",
        **_variation(alone(job, record.index)),
        "Model hash": record.model_sha256[:10] if record.model_sha256 else None,
        "Model": record.model.removesuffix(".safetensors"),  # a model's name without its suffix, a VAE's with it: the dialect's custom
        "VAE": record.vae,
        "ENSD": profile.ensd or None if profile and profile.ancestral_rng == "continued" else None,  # elsewhere it has no effect
        "RNG": RNGS.get(profile.rng) if profile else None,
        "Stopped at": record.stopped_at,
        "ldm speed": None if job.speed == "exact" else job.speed,
        "Version": f"ldm {record.version}",
    }
    from ldm.text import script

    prompt, negative = (job.prompt, job.negative or "") if profile is None else script.words(job, profile, record.index)
    return Infotext(prompt, negative, {name: str(value) for name, value in settings.items() if value is not None})


def _variation(job: Job) -> dict[str, Any]:
    """What is said of a picture whose first noise is not that of its seed alone, or whose text is read at another layer."""
    varied = job.subseed_strength > 0
    resized = None if job.seed_resize is None else f"{job.seed_resize[1]}x{job.seed_resize[0]}"
    return {
        "Clip skip": job.clip_skip or None,
        "Variation seed": job.subseed if varied else None,
        "Variation seed strength": job.subseed_strength if varied else None,
        "Seed resize from": resized,
    }


def write(info: Infotext) -> str:
    """The text."""
    negative = f"\n{_NEGATIVE} {info.negative}" if info.negative else ""
    pairs = ", ".join(f"{name}: {_quote(value)}" for name, value in info.settings.items())
    return f"{info.prompt}{negative}\n{pairs}".strip()


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) or value != value.strip() else value


def read(text: str) -> Infotext:
    """The parts of a text by the dialect's own rules; a text without settings is all prompt. InputError when it is too long, or JSON."""
    if len(text) > LIMIT:
        raise InputError(f"parameters text: {len(text)} characters are too many: the limit is {LIMIT}")
    if _is_json(text):
        raise InputError("parameters text: it is a JSON object, as SwarmUI writes, not A1111's lines: give a picture of another program")
    lines = [line.strip() for line in text.strip().split("\n")]
    settings = _pairs(lines[-1])
    if len(settings) < 3:  # the dialect's own threshold: fewer pairs are a sentence of the prompt
        settings = {}
    else:
        lines.pop()
    start = next((at for at, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE)
    return Infotext("\n".join(lines[:start]).strip(), negative.strip(), settings)


def _is_json(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _pairs(line: str) -> dict[str, str]:
    """The `name: value` pairs of a settings line, in time linear in its length; parts that are none are passed over."""
    found: dict[str, str] = {}
    for part in _split(line):
        name, colon, value = part.partition(":")
        if colon and _NAME.fullmatch(name.strip()):
            found[name.strip()] = _unquote(value.strip())
    return found


def _split(line: str) -> list[str]:
    """The parts between commas; a comma inside a JSON string that starts a value does not count."""
    return [match[0] for match in re.finditer(r'[^,":]*(?::\s*(?:"(?:\\.|[^"\\])*"(?=\s*(?:,|$)))?)?[^,]*', line) if match[0]]


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value
