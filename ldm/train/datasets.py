"""The dataset files of sd-scripts: `[[datasets]]` with `[[datasets.subsets]]`, each a folder of pictures or a list of them.

Source of the grammar: sd-scripts `docs/config_README-en.md`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ldm.errors import InputError, near_matches
from ldm.train.sources import CAPTIONS, PICTURES, Example, Found, folder, gather, told

# What sd-scripts reads, by level; the first are followed here, the others are said to be left out.
FOLLOWED = {"image_dir", "num_repeats", "caption_extension", "class_tokens", "shuffle_caption", "keep_tokens", "metadata_file"}
HINTS = {"resolution", "batch_size", "bucket_reso_steps"}
LEFT_OUT = {
    *("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_no_upscale", "random_crop", "flip_aug", "color_aug", "is_reg"),
    *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "caption_prefix", "caption_suffix"),
    *("caption_separator", "secondary_separator", "keep_tokens_separator", "enable_wildcard", "face_crop_aug_range", "token_warmup_min"),
    *("token_warmup_step", "alpha_mask", "cache_info", "conditioning_data_dir", "custom_attributes", "network_multiplier"),
    *("validation_split", "validation_seed", "resize_interpolation", "skip_image_resolution"),
}


def read_dataset(path: Path) -> Found:
    """The datasets of sd-scripts: what a subset does not say, its dataset says, then [general]; folders are sought beside the file."""
    try:
        given = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}: give a dataset file") from None
    except ValueError as error:
        raise InputError(f"{path}: not TOML ({str(error)[:80]}): give a dataset file") from None
    general, found = _table(given.get("general", {}), path), Found()
    for dataset in _tables(given.get("datasets", []), path):
        inherited = {**general, **{name: value for name, value in dataset.items() if name != "subsets"}}
        for subset in _tables(dataset.get("subsets", []), path):
            _subset(path, {**inherited, **subset}, found)
    if not found.examples and not found.skipped:
        raise InputError(f"{path}: no pictures: name folders as [[datasets]] [[datasets.subsets]] image_dir = ...")
    return found


def _subset(path: Path, settings: Mapping[str, Any], found: Found) -> None:
    for name in settings:
        if name not in FOLLOWED | HINTS | LEFT_OUT:
            raise InputError(f"{path}: unknown key {name[:40]!r}: {near_matches(name, sorted(FOLLOWED | HINTS | LEFT_OUT))}")
    place, listing = settings.get("image_dir"), settings.get("metadata_file")
    if not isinstance(place, str) and not isinstance(listing, str):
        raise InputError(f"{path}: a subset without image_dir: say which folder its pictures are in")
    home = path.parent / place if isinstance(place, str) else None
    if isinstance(listing, str):
        part = _listing(path.parent / listing, home)
    else:
        part = _in(path.parent / str(place), _suffixes(settings, path), settings.get("class_tokens"))
    repeats = _whole(settings, "num_repeats", 1, path)
    keep = _whole(settings, "keep_tokens", 0, path) if settings.get("shuffle_caption") else None
    if not repeats:
        found.notes.append(f"{path.name}: num_repeats 0: {place or listing} is left out")
        return
    if not part.examples and not part.skipped and not part.notes:
        found.notes.append(f"{path.name}: no pictures in {listing or place}")
    part.examples = [replace(each, repeats=each.repeats * repeats, keep=keep, caption=_first(each.caption)) for each in part.examples]
    found.merge(part)
    left = sorted(name for name in settings if name in LEFT_OUT and settings[name] not in (False, 0, None))
    found.notes += [f"{path.name}: {', '.join(left)}: left out"] if left else []
    found.hints |= _hints(settings, path)


def _suffixes(settings: Mapping[str, Any], path: Path) -> Sequence[str]:
    given = settings.get("caption_extension")
    if given is None:
        return CAPTIONS
    if not isinstance(given, str) or not re.fullmatch(r"\.[^/\\\0]+", given):
        raise InputError(f"{path}: caption_extension {str(given)[:40]!r} is not acceptable: give one such as '.txt'")
    return (given,)


def _in(path: Path, suffixes: Sequence[str], words: Any) -> Found:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder: image_dir is sought beside the dataset file")
    return folder(path, suffixes, words if isinstance(words, str) else None, deep=False)


def _listing(path: Path, home: Path | None) -> Found:
    """A `metadata_file`: sd-scripts' own JSON, or a list of another kind; names are of files in `home`, or beside it."""
    if path.suffix.lower() != ".json":
        return gather(path, home)
    try:
        given = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON of pictures ({str(error)[:80]}): give the metadata_file that sd-scripts would read") from None
    found = Found()
    for key, entry in _table(given, path).items():
        found.take(key[:80], partial(_entry, home or path.parent, key, entry))
    return found


def _entry(home: Path, key: str, entry: Any) -> Example:
    """`{"NAME": {"caption": ..., "tags": ...}}`, with or without the ending of the picture's name."""
    root = Path(os.path.abspath(home))
    named = root / key
    if not isinstance(entry, dict) or ".." in Path(key).parts or root not in named.parents:
        raise InputError("no table of a picture inside the folder")
    endings = [""] if named.suffix.lower() in PICTURES else [made for suffix in PICTURES for made in (suffix, suffix.upper())]
    file = next((named.with_name(named.name + ending) for ending in endings if named.with_name(named.name + ending).is_file()), None)
    if file is None:
        raise InputError("is not there")
    return Example(file, ", ".join(told(entry[part]) for part in ("caption", "tags") if entry.get(part)), key)


def _first(caption: str) -> str:
    """The line that sd-scripts reads of a caption."""
    return caption.partition("\n")[0].strip()


def _hints(settings: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Size (the root of the area), step and batch."""
    made = {}
    resolution = settings.get("resolution")
    if isinstance(resolution, list) and len(resolution) == 2 and all(type(each) is int and each > 0 for each in resolution):
        made["size"] = round((resolution[0] * resolution[1]) ** 0.5)
    elif resolution is not None:
        made["size"] = _whole(settings, "resolution", 0, path)
    made |= {"batch": _whole(settings, "batch_size", 0, path)} if "batch_size" in settings else {}
    return made | ({"step": _whole(settings, "bucket_reso_steps", 0, path)} if "bucket_reso_steps" in settings else {})


def _whole(settings: Mapping[str, Any], name: str, otherwise: int, path: Path) -> int:
    value = settings.get(name, otherwise)
    if type(value) is not int or not 0 <= value <= 10**6:
        raise InputError(f"{path}: {name} {str(value)[:40]!r} is not acceptable: give a whole number")
    return value


def _tables(given: Any, path: Path) -> Iterable[Mapping[str, Any]]:
    if not isinstance(given, list):
        raise InputError(f"{path}: datasets and subsets are lists of tables: write [[datasets]] and [[datasets.subsets]]")
    return [_table(each, path) for each in given]


def _table(given: Any, path: Path) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{path}: {str(given)[:40]!r} is not a table: see the dataset file of sd-scripts")
    return dict(given)
