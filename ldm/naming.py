"""Names of pictures from a pattern, such as "{date}/{index:05}-{seed}". Never a path outside the folder of the pictures.

A pattern is literal text and words in braces; "/" makes folders, "{{" and "}}" are braces. Numbers take a width and a number of
decimals in Python's spelling ({index:05}, {cfg:.1f}); nothing else of that language is there, no attribute, no index.

What a word stands for is data: in it everything that means something to some file system becomes "_", and text is cut to 100 bytes at
a character's end. What the pattern itself says is refused where it cannot be a name on Linux, macOS and Windows alike, and so is a
name that is longer than 240 bytes nevertheless: it is not cut, since that would lose the seed at its end.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError, LdmError, near_matches

if TYPE_CHECKING:
    from ldm.options import Job

NUMBERS = ("seed", "steps", "cfg", "width", "height", "index", "batch")
TEXTS = ("sampler", "schedule", "model", "date", "time", "prompt", "profile")
TEXT_BYTES = 100  # of what one word stands for
NAME_BYTES = 240  # of one name without its suffix: the systems' 255 less a suffix and the number of a name that is taken
DEPTH = 8  # folders in a name
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}:]*)(?::([^{}]*))?\}|[^{}]+|(?P<wrong>[{}])")
_SPEC = re.compile(r"0?[0-9]{0,2}(?:\.[0-9]f|d)?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?: *\..*| *)", re.IGNORECASE | re.DOTALL)
_MEANS = '/\\:*?"<>|%'  # to a file system, a shell or a web address
_LOOKS = "\u2024\u2025\u2026\u2044\u2215\u29f5\u29f8\ufe52\ufe68\uff0e\uff0f\uff3c"  # like a dot, a slash or a backslash
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories that no one sees


@dataclass(frozen=True)
class Pattern:
    """A checked pattern. `parts`: literal text, or (word, format of the number)."""

    parts: tuple[str | tuple[str, str], ...]

    @property
    def words(self) -> set[str]:
        """The words that it uses."""
        return {part[0] for part in self.parts if isinstance(part, tuple)}

    def fill(self, values: Mapping[str, Any]) -> str:
        """The name for these values, with "/" between its folders and no suffix; InputError where it cannot be one."""
        return check("".join(part if isinstance(part, str) else _shown(values[part[0]], part[1]) for part in self.parts))

    def candidates(self, root: Path, values: Mapping[str, Any], suffix: str) -> Iterator[Path]:
        """Paths in `root`, the first choice first: the next index where the pattern has one, a number at the end otherwise.

        The folders of a path are made before it is given; InputError where something in the way is a link.
        """
        for number in count():
            name = self.fill({**values, "index": values["index"] + number}) if "index" in self.words else self.fill(values)
            yield place(root, (f"{name}-{number}" if number and "index" not in self.words else name) + suffix)


def parse(text: str) -> Pattern:
    """The pattern of a text; InputError with the column of what is not acceptable."""
    if len(text) > 1000:
        raise InputError(f"name pattern: {len(text)} characters are too many: the limit is 1000")
    parts: list[str | tuple[str, str]] = []
    for match in _PIECE.finditer(text):
        if match["wrong"]:
            raise InputError(f"name pattern: column {match.start() + 1}: a brace alone: write {match[0] * 2} for a brace")
        if match[1] is None:
            parts.append(match[0][0] if match[0] in ("{{", "}}") else match[0])
        else:
            parts.append(_word(match[1], match[2] or "", match.start() + 1))
    made = Pattern(tuple(parts))
    made.fill({**dict.fromkeys(NUMBERS, 1), **dict.fromkeys(TEXTS, "x")})
    return made


def _word(name: str, spec: str, column: int) -> tuple[str, str]:
    known = [*NUMBERS, *TEXTS]
    if name not in known:
        raise InputError(f"name pattern: column {column}: unknown word {name[:40]!r}: {near_matches(name[:40], known)}")
    if spec and (name in TEXTS or not _SPEC.fullmatch(spec) or ("." in spec) != (name == "cfg")):
        right = "none, it is text" if name in TEXTS else "one such as .1f" if name == "cfg" else "one such as 05"
        raise InputError(f"name pattern: column {column}: {name} takes no format {spec[:20]!r}: give {right}")
    return name, spec


def values(job: Job, *, seed: int, index: int, batch: int, model: str, now: datetime.datetime) -> dict[str, Any]:
    """What the words stand for, of a finished job. `index`: the running number, `batch`: the place in the batch, both from 1."""
    named = {name: getattr(job, name) for name in ("steps", "cfg", "width", "height", "sampler", "prompt", "profile")}
    about = {"seed": seed, "index": index, "batch": batch, "model": model.removesuffix(".safetensors")}
    return {**named, **about, "schedule": job.schedule or "custom", "date": f"{now:%Y-%m-%d}", "time": f"{now:%H%M%S}"}


def _shown(value: Any, spec: str) -> str:
    if not isinstance(value, int | float):
        return clean(str(value))
    text = format(value, spec) if spec else f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace(" ", "0")


def clean(text: str) -> str:
    """`text` as a part of a name: what means something elsewhere becomes "_", 100 bytes at most, cut at a character's end."""
    text = unicodedata.normalize("NFC", " ".join(text[: 4 * TEXT_BYTES].split()))
    text = "".join("_" if each in _MEANS + _LOOKS or unicodedata.category(each) in _HIDDEN else each for each in text)
    text = text.encode()[:TEXT_BYTES].decode(errors="ignore").strip(" .~-") or "_"
    return f"_{text}" if _is_device(text) else text


def _is_device(part: str) -> bool:
    return _RESERVED.fullmatch(unicodedata.normalize("NFKC", part)) is not None


def literal(text: str) -> str:
    """A name that a prompt file asks for, checked as a pattern's is; a picture's suffix at its end is left out."""
    return check(re.sub(r"\.(?:png|jpe?g|webp|avif)$", "", text, flags=re.IGNORECASE))


def check(name: str) -> str:
    """`name`, where each of its parts can be the name of a file on all systems; InputError otherwise."""
    parts = name.split("/")
    if len(parts) > DEPTH + 1:
        raise _refused(name, f"{len(parts) - 1} folders are more than {DEPTH}", "use fewer")
    for part in parts:
        problem, remedy = _problem(part)
        if problem:
            raise _refused(name, problem, remedy)
    return name


def _refused(name: str, problem: str, remedy: str) -> InputError:
    return InputError(f"name {name[:80]!r}: {problem}: {remedy}")


def _problem(part: str) -> tuple[str, str]:
    """(What is wrong with one part, what to do), or empty texts."""
    if part in ("", ".", ".."):
        return f"{part!r} between slashes leads outside the folder of the pictures or nowhere", "use names alone, and -o for another folder"
    bad = next((each for each in part if each in _MEANS + _LOOKS or unicodedata.category(each) in _HIDDEN), None)
    if bad is not None:
        return f"the character {bad!r} cannot be in the name of a file on every system", "leave it out"
    if part[0] in ".~- " or part[-1] in ". ":
        return f"{part[:40]!r} starts or ends with a character that hides or changes it", "use a letter there"
    if _is_device(part):
        return f"{part[:40]!r} is a device on Windows", "use another name"
    if len(part.encode()) > NAME_BYTES:
        return f"{part[:20]!r}... has {len(part.encode())} bytes, the limit is {NAME_BYTES}", "use fewer words"
    return "", ""


def place(root: Path, name: str) -> Path:
    """The path of `name` in `root`, its folders made one by one, none of them and not itself a link; to be called right before writing.

    Each folder is opened relative to the one above it without following links, so what `name` says cannot lead out of `root`,
    whatever stands there. `root` itself may be a link. InputError for a link or a file in the way, LdmError where the disk refuses.
    """
    *folders, last = name.split("/")
    for part in (*folders, last):
        if part in ("", ".", "..") or re.search("[\0\\\\\ud800-\udfff]", part):
            raise _refused(name, "it leads outside the folder of the pictures", "use names alone")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _walk(root, folders, last)
    except OSError as error:
        raise LdmError(f"cannot write {root / name}: {error.strerror or error}: choose another place or name", "E5001") from error
    return root.joinpath(*folders, last)


def _walk(root: Path, folders: list[str], last: str) -> None:
    if os.open not in os.supports_dir_fd:  # Windows
        _walk_by_path(root, folders, last)
        return
    inside = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inside = _enter(inside, folder)
        _check_entry(_entry(last, inside), last, stat.S_IFREG)
    finally:
        os.close(inside)


def _enter(above: int, folder: str) -> int:
    """The descriptor of a folder in the one of `above`, made if it is not there; closes `above` when that succeeds."""
    if _entry(folder, above) is None:
        try:
            os.mkdir(folder, dir_fd=above)
            os.fsync(above)
        except FileExistsError:
            pass  # another process was first
    _check_entry(_entry(folder, above), folder, stat.S_IFDIR)
    inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    os.close(above)
    return inside


def _entry(name: str, folder: int | None) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _check_entry(mode: int | None, name: str, kind: int) -> None:
    if mode is None or stat.S_IFMT(mode) == kind:
        return
    if stat.S_ISLNK(mode):
        raise InputError(f"name {name[:80]!r}: a link of this name is in the folder of the pictures, and may lead out: remove it")
    what = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "no regular file"
    raise InputError(f"name {name[:80]!r}: {what} of this name is in the way: use another name")


def _walk_by_path(root: Path, folders: list[str], last: str) -> None:
    for depth in range(1, len(folders) + 1):
        folder = root.joinpath(*folders[:depth])
        if _entry(str(folder), None) is None:
            folder.mkdir(exist_ok=True)
        _check_entry(_entry(str(folder), None), folder.name, stat.S_IFDIR)
    _check_entry(_entry(str(root.joinpath(*folders, last)), None), last, stat.S_IFREG)
