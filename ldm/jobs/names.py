"""What other engines call our samplers and schedules: "DPM++ 2M Karras", "k_euler_a", "dpmpp_2m_sde_gpu". No torch here.

Case, spaces, dashes and underscores do not count. A1111 up to 1.8, and people since, write the schedule behind the sampler: it is
split off. A name of something that we do not have is never bent to a near one.
"""

from __future__ import annotations

import re
from functools import cache

from ldm.errors import InputError, near_matches

_ALSO = {"eulerancestral": "euler_a", "dpmsolverpp": "dpmpp_2m"}  # ComfyUI; sd-scripts
_ALSO_SCHEDULES = {
    "trailing": "trailing",  # diffusers' spacing, without a name in A1111
    "discrete": "normal",  # stable-diffusion.cpp
    "automatic": None,  # A1111: as the sampler or the model has it
}
_SHOWN = 80  # characters of a name that an error quotes


def sampler(text: str) -> tuple[str, str | None]:
    """(sampler, schedule, if the name says one) of any engine's name; InputError with the near matches."""
    words = _words(text)
    words = words[words[:1] == ["k"] :]
    found, schedules = _samplers(), _schedules()
    for tail in (2, 1, 0):
        head, last = words[: len(words) - tail], "".join(words[len(words) - tail :])
        name = found.get("".join(head[:-1] if head[-1:] == ["gpu"] else head))
        if name is not None and (tail == 0 or last in schedules):
            return name, schedules[last] if tail else None
    raise InputError(f"unknown sampler {text[:_SHOWN]!r}: {near_matches('_'.join(words)[:_SHOWN], sorted(set(found.values())))}")


def schedule(text: str) -> str | None:
    """Our name of a schedule; None for "Automatic"; InputError with the near matches."""
    words = _words(text)
    known = _schedules()
    if "".join(words) not in known:
        near = near_matches("_".join(words)[:_SHOWN], sorted({name for name in known.values() if name}))
        raise InputError(f"unknown schedule {text[:_SHOWN]!r}: {near}")
    return known["".join(words)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text[: 2 * _SHOWN].lower().replace("++", "pp"))


def _key(name: str) -> str:
    return "".join(_words(name))


@cache
def _samplers() -> dict[str, str]:
    from ldm.metadata.a1111 import SAMPLERS

    return {_key(each): ours for ours, theirs in SAMPLERS.items() for each in (ours, theirs)} | _ALSO


@cache
def _schedules() -> dict[str, str | None]:
    from ldm.metadata.a1111 import SCHEDULES

    return {_key(each): ours for ours, theirs in SCHEDULES.items() for each in (ours, theirs)} | _ALSO_SCHEDULES
