"""Where a command's files go: checked before the model is loaded, named when they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from ldm.errors import InputError, LdmError

SUFFIXES = (".png",)
_OTHER = (".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")


def is_file(output: str) -> bool:
    """Whether -o names a file; otherwise it names a folder. InputError for a picture format that is not written."""
    suffix = Path(output).suffix.lower()
    if suffix in _OTHER:
        raise InputError(f"output {output}: {suffix} is not written: name it {Path(output).stem}.png")
    return suffix in SUFFIXES


def check_folder(folder: Path) -> None:
    """InputError unless files can be made in `folder`, or it can be made."""
    nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise InputError(f"output folder {folder}: {nearest} is not a folder: choose another with -o")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"output folder {folder}: no permission to write in {nearest}: choose another with -o")


def check_new(path: Path, suffix: str, overwrite: bool) -> None:
    """InputError unless the one file `path` may be written."""
    if path.suffix.lower() != suffix:
        raise InputError(f"{path}: the name must end in {suffix}: name it {path.name}{suffix}")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise InputError(f"{path} exists: choose another name{'' if path.is_dir() else ' or add --overwrite'}")
    check_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make `folder` with its parents; LdmError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error


def candidates(output: str, seed: int, place: int) -> Iterator[Path]:
    """Names for a picture, the first choice first; `place` in the batch (from 0) numbers the files of a file name."""
    path = Path(output)
    if is_file(output):
        yield from (path.with_stem(f"{path.stem}-{number}") if number else path for number in count(place))
    yield from (path / f"{number:05}-{seed}.png" for number in count(_last_number(path) + 1))


def _last_number(folder: Path) -> int:
    numbers = (re.match(r"([0-9]{5,9})-", name) for name in os.listdir(folder))
    return max((int(match[1]) for match in numbers if match), default=0)


def save_free(names: Iterator[Path], save: Callable[[Path], Path]) -> Path:
    """`save` under the first of `names` that is free; two processes never get the same one. LdmError where the disk refuses."""
    for path in names:
        try:
            return save(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise _refused(path, error) from error
    raise LdmError("a file of this name has appeared meanwhile: choose another name")


def _refused(path: Path, error: OSError) -> LdmError:
    return LdmError(f"cannot write {path}: {error.strerror or error}: make room or choose another place")
