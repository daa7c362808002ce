"""Where configs/ and weights/ are: beside the package in the source tree, inside it in a wheel; and the folder of what ldm keeps."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ldm.errors import InputError, near_matches


def _folder(name: str) -> Path:
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def configs() -> Path:
    """The folder with models/, profiles/ and presets/."""
    return _folder("configs")


def weights() -> Path:
    """The folder with the model in the box."""
    return _folder("weights")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Of what is kept to save time and can be lost: LDM_CACHE_DIR, else XDG_CACHE_HOME/ldm, else ~/.cache/ldm."""
    return Path(os.path.expanduser(environ.get("LDM_CACHE_DIR") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "ldm")))


def names(kind: str) -> list[str]:
    """The names of all TOML files of a kind: "models", "profiles" or "presets"."""
    return sorted(path.stem for path in (configs() / kind).glob("*.toml"))


def read_toml(kind: str, name: str) -> dict[str, Any]:
    """The values of one TOML file; an unknown name is an InputError with the near matches."""
    known = names(kind)
    if name not in known:
        raise InputError(f"unknown {kind.removesuffix('s')} {name!r}: {near_matches(name, known)}")
    return tomllib.loads((configs() / kind / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def published() -> list[dict[str, Any]]:
    """The name, size and sha256 of public files; some share a name, some a size, none both."""
    files: list[dict[str, Any]] = read_toml("files", "official")["file"]
    return files
