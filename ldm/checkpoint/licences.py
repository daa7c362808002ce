"""The licence of a file of weights, as far as the file itself or the table of public files says. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ldm.checkpoint.safetensors import Header
from ldm.files import beginning, write_atomic
from ldm.resources import cache_folder, published

KEY = "modelspec.license"
LARGEST = 2**16  # bytes of the list of licences that were named
LONGEST = 200  # characters of what a file says


def licence(header: Header) -> str:
    """Its name: by the file's own metadata, else by configs/files/official.toml; "" where neither says."""
    return " ".join(header.metadata.get(KEY, "").split())[:LONGEST] or _official(header)


def carried(sources: Iterable[Header]) -> dict[str, str]:
    """What a file that is made of others has to say in its metadata, whatever else it says of one: their licences."""
    names = dict.fromkeys(name for name in map(licence, sources) if name)
    return {KEY: "; ".join(names)} if names else {}


def notice(header: Header) -> str:
    """At the first use of a public file whose publisher restricts it, a sentence that says so; afterwards, and for others, ""."""
    name, told = _official(header), _told()
    if not name or name in told:
        return ""
    _remember([*told, name])
    return f"{header.path.name} is under the {name}, which restricts its use and that of models made from it (this is said once)"


def _official(header: Header) -> str:
    same = (each for each in published() if (each["name"], each["size"]) == (header.path.name, header.size))
    return next((str(each["licence"]) for each in same if "licence" in each), "")


def _told() -> list[str]:
    """The licences that were named on this machine; none where that is not known."""
    try:
        kept = json.loads(beginning(cache_folder() / "licences.json", LARGEST))
    except (OSError, ValueError, RecursionError):
        return []
    return [each for each in kept if isinstance(each, str)] if isinstance(kept, list) else []


def _remember(names: list[str]) -> None:
    content = json.dumps(names).encode()
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomic(cache_folder() / "licences.json", lambda file: file.write(content), overwrite=True)
    except OSError:
        return  # then it is said again
