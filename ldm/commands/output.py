"""Where a command's files go: checked before the model is loaded, named when they are written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path

from ldm import files, naming
from ldm.errors import InputError, LdmError
from ldm.options import Job
from ldm.pictures import FORMATS, check

SUFFIXES = tuple(FORMATS)
LEAST = 2**18  # bytes: with less free no picture is begun
NAME_BYTES = 255  # of one name, on all common file systems
_OTHER = (".gif", ".bmp", ".tif", ".tiff", ".jxl", ".heic")


def is_file(output: str) -> bool:
    """Whether -o names a file; otherwise it names a folder. InputError for a picture format that is not written."""
    suffix = Path(output).suffix.lower()
    if suffix in _OTHER:
        raise InputError(f"output {output}: {suffix} is not written: name it {Path(output).stem}.png")
    return suffix in SUFFIXES


def check_pictures(job: Job, batch: int) -> None:
    """InputError unless `batch` pictures may be written where -o says, in the format and with the names asked for."""
    output, overwrite = job.output, job.overwrite
    path = Path(output)
    check(path if is_file(output) else Path(f"x.{job.type}"), job.quality)
    if job.name is not None:
        naming.parse(job.name)
    if not is_file(output):
        check_folder(path)
        return
    if job.name is not None:
        raise InputError(f"output {output} is a file, and --name {job.name} is for folders: leave one of them out")
    _check_length(path)
    check_folder(path.parent)
    if path.is_dir():
        raise InputError(f"output {output} is a folder, and pictures take the name of a file: choose another with -o")
    free = (each for each in _numbered(path, 0) if overwrite or not os.path.lexists(each))
    for each in islice(free, batch):
        _check_length(each)
        if overwrite:
            _check_replaced(each)


def check_apart(output: str, latents: Path, inputs: Sequence[str | None]) -> None:
    """InputError where the latents would take the place of the pictures, of their folder or of a file that is read."""
    pictures, real = Path(os.path.realpath(output)), Path(os.path.realpath(latents))
    if real in (pictures, *pictures.parents) or (is_file(output) and pictures in real.parents):
        raise InputError(f"latents {latents} and output {output} are in each other's way: choose another name for one of them")
    if any(each is not None and Path(os.path.realpath(each)) == real for each in inputs):
        raise InputError(f"latents {latents} is the file that the model is read from: choose another name")


def _check_length(path: Path) -> None:
    for part in path.parts:
        if len(os.fsencode(part)) > NAME_BYTES:
            long = f"{part[:20]}...: the name has {len(os.fsencode(part))} bytes, the limit is {NAME_BYTES}"
            raise InputError(f"{long}: choose a shorter one")


def _check_replaced(path: Path, flag: str = "-o") -> None:
    """InputError unless --overwrite can put a file at `path`, or where it leads as a link."""
    real = Path(os.path.realpath(path))
    if os.path.lexists(real) and not real.is_file():
        raise InputError(f"{path} is {'a folder' if real.is_dir() else 'not a regular file'}, which is not replaced: choose another name")
    check_folder(real.parent, flag)


def check_folder(folder: Path, flag: str = "-o") -> None:
    """InputError unless files can be made in `folder`, or it can be made; `flag` names it."""
    _check_length(folder)
    nearest = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise InputError(f"output folder {folder}: {nearest} is not a folder: choose another with {flag}", "E5001")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"output folder {folder}: no permission to write in {nearest}: choose another with {flag}", "E5001")
    disk = shutil.disk_usage(nearest)
    if disk.total and disk.free < LEAST:  # some file systems do not say
        raise InputError(f"output folder {folder}: the disk has {disk.free:,} bytes free: make room or choose another with {flag}", "E5001")


def check_new(path: Path, suffix: str, overwrite: bool, flag: str = "-o") -> None:
    """InputError unless the one file `path` may be written."""
    _check_length(path)
    if path.suffix.lower() != suffix:
        raise InputError(f"{path}: the name must end in {suffix}: name it {path.name}{suffix}")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise InputError(f"{path} exists: choose another name{'' if path.is_dir() else ' or add --overwrite'}")
    _check_replaced(path, flag)
    check_folder(path.parent, flag)


def make_folder(folder: Path) -> None:
    """Make `folder` with its parents; LdmError where the disk refuses."""
    try:
        files.make_folder(folder)
    except OSError as error:
        raise _refused(folder, error) from error


class Numbers:
    """The running numbers of a folder's pictures, behind the highest that is there. One for a whole run: the folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._last = folder, -1

    def take(self) -> int:
        """The next number."""
        self._last = (_last_number(self._folder) if self._last < 0 else self._last) + 1
        return self._last


def candidates(output: str, seed: int, place: int, numbers: Numbers | None = None, suffix: str = ".png") -> Iterator[Path]:
    """Names for a picture, the first choice first; `place` in the batch (from 0) numbers the files of a file name."""
    path = Path(output)
    if is_file(output):
        yield from _numbered(path, place)
    numbers = numbers or Numbers(path)
    while True:
        name = path / f"{numbers.take():05}-{seed}{suffix}"
        if not os.path.lexists(name):  # another process is at the same number
            yield name


def _numbered(path: Path, first: int) -> Iterator[Path]:
    yield from (path.with_stem(f"{path.stem}-{number}") if number else path for number in count(first))


def standing(asked: Iterable[Path | None]) -> Iterator[bool]:
    """For each picture whether the file that it asks for is there; of several that ask for one name the k-th gets it with a number."""
    met: Counter[Path] = Counter()
    for path in asked:
        yield path is not None and os.path.lexists(path.with_stem(f"{path.stem}-{met[path]}") if met[path] else path)
        met[path or Path()] += 1


def _last_number(folder: Path) -> int:
    try:
        names = os.listdir(folder)
    except OSError:  # not there, or not to be read: the first free name is found by trying
        return 0
    numbers = (re.match(r"([0-9]{5,9})-", name) for name in names)
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


def save_or_keep(names: Iterator[Path], folder: Path, kept: str, save: Callable[..., Path], overwrite: bool) -> Path:
    """`save(path, overwrite=...)` under the first free of `names`, all in `folder`.

    LdmError where the disk refuses. The work is not lost then: it is saved in the system's temporary folder, if that can be, under
    the name `kept` or with a number more, and the error says so.
    """
    try:
        make_folder(folder)
        return save_free(names, partial(save, overwrite=overwrite))
    except LdmError as error:
        place = _keep(kept, partial(save, overwrite=False))
        raise LdmError(f"{error}" if place is None else f"{error}; it is kept as {place}", error.code) from error


def _keep(name: str, save: Callable[[Path], Path]) -> Path | None:
    try:
        return save_free(_numbered(Path(tempfile.gettempdir()) / name, 0), save)
    except (OSError, LdmError):
        return None


def _refused(path: Path, error: OSError) -> LdmError:
    return LdmError(f"cannot write {path}: {error.strerror or error}: {_remedy(error.errno)}", "E5001")


def _remedy(number: int | None) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "make room or choose another place"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a place where you may write"
    return "choose a shorter name" if number == errno.ENAMETOOLONG else "choose another place"
