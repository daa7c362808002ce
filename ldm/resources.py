"""Where configs/ and weights/ are: beside the package in the source tree, inside it in a wheel."""

from __future__ import annotations

import tomllib
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


def names(kind: str) -> list[str]:
    """The names of all TOML files of a kind: "models", "profiles" or "presets"."""
    return sorted(path.stem for path in (configs() / kind).glob("*.toml"))


def read_toml(kind: str, name: str) -> dict[str, Any]:
    """The values of one TOML file; an unknown name is an InputError with the near matches."""
    known = names(kind)
    if name not in known:
        raise InputError(f"unknown {kind.removesuffix('s')} {name!r}: {near_matches(name, known)}")
    return tomllib.loads((configs() / kind / f"{name}.toml").read_text(encoding="utf-8"))
