"""Names that try to leave the folder of the pictures, and the ways in which a name gets in."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from ldm import naming
from ldm.errors import LdmError
from ldm.files import write_atomic
from ldm.jobs import prompts
from ldm.options import Job

CLIMBS = (
    *("..", "../x", "../../x", "../../../../../../../../../x", "a/../../x", "./../x", "./x", "a/./../../x", "..//x", "a//../../x", ".../x"),
    *("/x", "//x", "/etc/x", "/tmp/ldm-outside/x", "///x", "/", "", "."),
    *("./", "a/", "~", "~/x", "~root/x", "-/x", "file:///tmp/x", "file:x"),
    *("..\\x", "..\\..\\x", "\\x", "\\\\host\\share\\x", "\\\\?\\C:\\x", "\\\\.\\NUL"),
    *("C:\\x", "C:/x", "C:x", "c:", "a\\..\\..\\x", "x:stream"),
    *("%2e%2e/x", "%2e%2e%2fx", "..%2fx", "..%5cx", "%252e%252e%252fx", "..%00/x", "..%c0%afx", "%c0%ae%c0%ae/x", "..;/x", "..%u2215x"),
    *("..\0/x", "x\0.png", "\0", "..\n/x", "..\r/x", "..\t/x"),
    *("..\x7f/x", "..\x1b/x", "..\x85/x", "..\u2028/x", " ../x", ".. /x", "..\xa0/x"),
    *("\u2025/x", "\u2024\u2024/x", "\uff0e\uff0e/x", "..\uff0fx", "..\u2215x", "..\u2044x", "..\uff3cx", "..\u29f8x", "..\ufe68x"),
    *("..\u200b/x", "\u200e../x", "\u202e../x", ".\u0307./x", "..\ufeff/x"),
    *("..\u00ad/x", "\ud800../x", "..\udcff/x", "\ue000/x", "..\u0338/x"),
)
DEVICES = (
    *("CON", "con", "Con.png", "PRN", "AUX", "aux.", "NUL", "nul.txt", "NUL .x", "COM1", "com9.tar.gz", "COM\u00b9", "LPT1", "lpt\u00b3.x"),
    *("CONIN$", "conout$", "\uff23\uff2f\uff2e", "x.", "x..", "x ", " x", "x. .", ".hidden", "...", ".ldm-claims", "-rf"),
)
LONG = (
    *("x" * 300, "\U0001f431" * 80, "\u00e9" * 300, "e\u0301" * 200, "x" * 5000, "\u0301" * 300),
    *("a/" * 40 + "x", "/".join(["y" * 200] * 20)),
)
BRACES = (
    *("{seed.__class__}", "{seed[0]}", "{seed!r}", "{0}", "{}", "{", "}"),
    *("{{", "}}", "{{}}", "{seed", "seed}", "{seed:>9}", "{seed:{steps}}"),
    *("{seed:999999999}", "{seed:.9f}", "{seed:c}", "{seed:n}", "{seed:,}"),
    *("{prompt:9}", "{prompt.format}", "{cfg:e}", "{cfg:.1f}", "{index:05}"),
    *("{environ}", "{self}", "{__import__}", "{seed.real}", "{ seed }", "{SEED}", "{seed:%}", "{date:%Y/%m}", "{{seed}}", "{{../{seed}}}"),
)


def payloads() -> list[str]:
    """All of them: the climbs bare, below a folder and below a word, the others as they are and below a folder."""
    climbs = [start + each for start, each in product(("", "a/", "{date}/", "{seed}"), CLIMBS)]
    return [*climbs, *(start + each for start, each in product(("", "a/"), (*DEVICES, *LONG, *BRACES)))]


def values(text: str = "a cat") -> dict[str, Any]:
    job = Job(prompt=text, seed=7, steps=20, cfg=5.0, width=64, height=64, sampler="euler", schedule="karras")
    return naming.values(job, seed=7, index=1, batch=1, model=text, now=datetime.datetime(2026, 1, 2, 3, 4, 5))


def _write(root: Path, name: Callable[[], Path]) -> Path | None:
    """The picture's path, or None where the name is refused; any other error goes up."""
    try:
        path = name()
        with contextlib.suppress(FileExistsError):
            write_atomic(path, lambda file: file.write(b"picture"), overwrite=False)
        with contextlib.suppress(LdmError):  # and again, in the place of what is there
            write_atomic(naming.place(root, path.relative_to(root).as_posix()), lambda file: file.write(b"picture"), overwrite=True)
    except LdmError:
        return None
    return path


def as_pattern(folder: Path, text: str) -> Path | None:
    root = folder / "pictures"
    return _write(root, lambda: next(naming.parse(text).candidates(root, values(), ".png")))


def as_word(folder: Path, text: str) -> Path | None:
    root = folder / "pictures"
    path = _write(root, lambda: next(naming.parse("{prompt}/{model}-{prompt}/{seed}").candidates(root, values(text), ".png")))
    if path is None:
        raise AssertionError(f"the prompt {text!r} has no name")
    return path


def as_line(folder: Path, text: str) -> Path | None:
    """By --f of a prompt file."""
    root = folder / "pictures"

    def name() -> Path:
        content = f"a cat --f {text}".encode("utf-8", "surrogateescape" if "\udcff" in text else "surrogatepass")
        file = prompts.parse(content, "file", "text", Job()).tasks[0].file
        return naming.place(root, f"{file}.png")

    return _write(root, name)


def as_path(folder: Path, text: str) -> Path | None:
    """With nothing checked before."""
    root = folder / "pictures"
    return _write(root, lambda: naming.place(root, f"{text}.png"))


def over_links(folder: Path, text: str) -> Path | None:
    """Where links that lead out stand under the names of the first folder and of the file."""
    root, away = folder / "pictures", folder / "away"
    root.mkdir()
    away.mkdir()
    for name in ("2026-01-02", "a", "7", "x.png", "link"):
        os.symlink(away if not name.endswith("png") else away / "stolen.png", root / name)
    path = as_pattern(folder, text)
    linked = _write(root, lambda: naming.place(root, "link/x.png"))
    if linked is not None:
        raise AssertionError("a link was followed")
    return path


ATTEMPTS = (as_pattern, as_word, as_line, as_path, over_links)


def outside(folder: Path) -> int:
    """The number of files in `folder` that are not in its folder of pictures."""
    return sum(Path(top, name).is_file() for top, _, names in os.walk(folder) if Path(top) != folder / "pictures" and
               folder / "pictures" not in Path(top).parents for name in names)  # fmt: skip


def escaped(path: Path | None, folder: Path) -> bool:
    """Whether a path that was written really lies elsewhere."""
    root = os.path.realpath(folder / "pictures")
    return path is not None and os.path.commonpath((root, os.path.realpath(path))) != root
