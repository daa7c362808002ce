"""Files of the Hugging Face Hub by name, and where they lie in its cache: without its library and without a connection.

Layout (huggingface_hub's documentation, "Understand caching"), which other programs share:
models--ORG--NAME/refs/REVISION holds a commit, snapshots/COMMIT/FILE is a link to blobs/ETAG.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.errors import InputError

MAIN = "main"
SUFFIX = ".safetensors"
COMMIT = re.compile(r"[0-9a-f]{40}")
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<file>[^@]+))?(@(?P<revision>.+))?", re.ASCII)
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class HubName:
    """`org/repo[:file][@revision]`."""

    repo: str
    file: str | None = None
    revision: str = MAIN

    def __str__(self) -> str:
        return self.repo + (f":{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision != MAIN else "")


def parse(text: str) -> HubName | None:
    """The Hub's file, or all of a repository, that a text names; None where it has another form."""
    match = _ID.fullmatch(text)
    if match is None or "--" in match["repo"] or not all(map(is_plain, (match["repo"], match["file"], match["revision"]))):
        return None
    return HubName(match["repo"], match["file"], match["revision"] or MAIN)


def is_plain(text: str | None) -> bool:
    """Whether a text can be part of a path, and only below it."""
    if text is None:
        return True
    return text.isprintable() and "\\" not in text and not any(part in ("", ".", "..") for part in text.split("/")) and len(text) < 256


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment forbids connections to the Hub, by the names that its library reads."""
    return (environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or "").lower() in _TRUE


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The Hub's cache, by the variables that its library reads."""
    home = environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expanduser(os.path.expandvars(folder)))


def repo_folder(repo: str, cache: Path) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def cached(name: HubName, cache: Path | None = None) -> Path | None:
    """The file in the cache; None where it is not there. Without a file's name: the repository's only .safetensors file.

    Raises InputError where it has several, with their names.
    """
    cache = cache_folder() if cache is None else cache
    if name.file is not None:
        snapshot = _snapshot(name, cache)
        path = None if snapshot is None else snapshot / name.file
        return path if path is not None and os.path.isfile(path) else None
    files = listed(name, cache)
    if len(files) > 1:
        raise InputError(f"{name} has {len(files)} files in the Hub's cache: name one of them: {', '.join(map(str, files))}")
    return cached(files[0], cache) if files else None


def listed(name: HubName, cache: Path) -> list[HubName]:
    """The .safetensors files of a repository's revision that are in the cache."""
    snapshot = _snapshot(name, cache)
    if snapshot is None:
        return []
    files = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob(f"*{SUFFIX}") if os.path.isfile(path))
    return [replace(name, file=file) for file in files]


def everything(cache: Path) -> Iterator[tuple[HubName, Path]]:
    """All .safetensors files in the cache, of the revisions that have a name or else of every commit."""
    for folder in sorted(cache.glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        refs = folder / "refs"
        revisions = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if os.path.isfile(path))
        revisions = revisions or sorted(path.name for path in (folder / "snapshots").glob("*"))
        for revision in revisions:
            files = listed(HubName(repo, None, revision), cache)
            yield from ((name, path) for name in files if (path := cached(name, cache)))


def _snapshot(name: HubName, cache: Path) -> Path | None:
    """The folder of a revision: a branch or tag that was pulled, a commit, or the beginning of one."""
    folder = repo_folder(name.repo, cache)
    ref = folder / "refs" / name.revision
    try:
        commit = ref.read_text(encoding="ascii").strip() if ref.is_file() else name.revision
        commits = [each for each in os.listdir(folder / "snapshots") if COMMIT.fullmatch(each)]
    except (OSError, ValueError):
        return None
    fits = [each for each in commits if each == commit or (re.fullmatch(r"[0-9a-f]{7,40}", commit) and each.startswith(commit))]
    return folder / "snapshots" / fits[0] if len(fits) == 1 else None
