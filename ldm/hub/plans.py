"""What a download will be, asked of the Hub through its own library (huggingface_hub, the extra `hub`), and its refusals in one line."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ldm
from ldm.errors import InputError, LdmError
from ldm.hub.names import COMMIT, SUFFIX, HubName, cache_folder, is_plain, repo_folder

FAILED = "E9001"
TIMEOUT = 20  # seconds in which the server must say something


@dataclass(frozen=True)
class Plan:
    """What will be downloaded: one file of one commit."""

    name: HubName
    commit: str
    etag: str  # the file's digest: sha256, or that of a git blob where the file is small
    size: int
    url: str
    cache: Path

    @property
    def blob(self) -> Path:
        return repo_folder(self.name.repo, self.cache) / "blobs" / self.etag

    @property
    def part(self) -> Path:
        return self.blob.with_name(f"{self.etag}.ldm.incomplete")

    @property
    def path(self) -> Path:
        return repo_folder(self.name.repo, self.cache) / "snapshots" / self.commit / str(self.name.file)

    @property
    def have(self) -> int:
        """Bytes that are here already."""
        found = next((path for path in (self.blob, self.part) if path.is_file()), None)
        return found.stat().st_size if found else 0

    @property
    def free(self) -> int:
        """Bytes free where the file goes."""
        return shutil.disk_usage(next(folder for folder in (self.blob.parent, *self.blob.parents) if folder.is_dir())).free


def library() -> Any:
    """huggingface_hub, told not to report about this program; InputError where it is not installed."""
    _endpoint()  # refused here, the library fails on it in other ways
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise InputError('the Hub needs the package huggingface_hub: pip install "ldm[hub]", or download by hand') from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it warns of is said here, or mended
    return huggingface_hub


def make_plan(name: HubName, cache: Path | None = None) -> Plan:
    """Ask the Hub what `name` is. Raises InputError for what it does not give, LdmError where it does not answer."""
    if name.file is not None:
        _check_suffix(name)
    hub = library()
    with _explained(name, hub):
        if name.file is None:
            name = replace(name, file=_only_file(name, hub))
        url = hub.hf_hub_url(name.repo, name.file, revision=name.revision, endpoint=_endpoint())
        found = hub.get_hf_file_metadata(url, timeout=TIMEOUT, library_name="ldm", library_version=ldm.__version__)
    commit, etag = found.commit_hash or "", found.etag or ""
    if not COMMIT.fullmatch(commit) or found.size is None:
        raise LdmError(f"{name}: the server does not answer as the Hub does (no commit or no size): check HF_ENDPOINT", FAILED)
    if not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag):
        raise LdmError(f"{name}: the server gives no digest, so a download could not be checked: download the file by hand", FAILED)
    pinned = hub.hf_hub_url(name.repo, name.file, revision=commit, endpoint=_endpoint())
    return Plan(name, commit, etag, found.size, pinned, cache_folder() if cache is None else cache)


def _endpoint() -> str | None:
    """HF_ENDPOINT, for the library as it stands now and not as it stood when it was imported."""
    text = (os.environ.get("HF_ENDPOINT") or "").rstrip("/")
    try:
        parts = urlsplit(text)
        good = not text or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"HF_ENDPOINT {text!r} is not an address that starts with https://: unset it")
    return text or None


def _check_suffix(name: HubName) -> None:
    if not str(name.file).lower().endswith(SUFFIX):
        raise InputError(f"{name}: only {SUFFIX} files are downloaded, and never pickles (.ckpt, .pt, .bin), which can run code")


def _only_file(name: HubName, hub: Any) -> str:
    """The one .safetensors file at the top of a repository, or in it; InputError lists them where there are several."""
    siblings = hub.HfApi(endpoint=_endpoint()).model_info(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT).siblings
    sizes = {each.rfilename: each.size or 0 for each in siblings or () if is_plain(each.rfilename)}
    files = [file for file in sorted(sizes) if file.lower().endswith(SUFFIX)]
    files = [file for file in files if "/" not in file] or files
    if len(files) == 1:
        return files[0]
    if not files:
        raise InputError(f"{name} has no {SUFFIX} file: only those are downloaded, and never pickles, which can run code")
    listed = ", ".join(f"{replace(name, file=file)} ({sizes[file] / 1e9:.2f} GB)" for file in files[:20])
    raise InputError(f"{name} has {len(files)} {SUFFIX} files: name one of them: {listed}")


@contextmanager
def _explained(name: HubName, hub: Any) -> Iterator[None]:
    try:
        yield
    except LdmError:
        raise
    except (hub.errors.HTTPError, OSError, ValueError) as error:
        raise explain(error, name, hub) from error


def explain(error: Exception, name: HubName, hub: Any) -> LdmError:
    """The error of ours that a refusal or a failure of the Hub is."""
    for kind, what in _refusals(hub):
        if isinstance(error, kind):
            return InputError(f"{name}: {what}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return InputError(f"{name}: the Hub refuses it ({status}): set HF_TOKEN to a token that may read it")
    if status is not None:
        return LdmError(f"{name}: the Hub answers {status}: try again later", FAILED)
    text = next(iter(str(error).splitlines()), "")[:120]
    return LdmError(
        f"{name}: the Hub cannot be reached ({type(error).__name__}: {text}): check the connection, the proxy and HF_ENDPOINT", FAILED
    )


def _refusals(hub: Any) -> list[tuple[type[Exception], str]]:
    """In this order: the first is a special case of the second."""
    errors = hub.errors
    return [
        (errors.GatedRepoError, "is gated: accept its terms on its page at the Hub, then set HF_TOKEN to your token"),
        (errors.RepositoryNotFoundError, "the Hub has no such repository, or a private one: check the name, or set HF_TOKEN to your token"),
        (errors.RevisionNotFoundError, "the repository has no such revision: leave @revision out, or name a branch, a tag or a commit"),
        (errors.EntryNotFoundError, "the repository has no such file: leave :file out to see those that it has"),
        (errors.DisabledRepoError, "the Hub has taken the repository down: choose another"),
        (errors.HFValidationError, "is not a name that the Hub knows: write org/repo:file@revision"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids connections: unset it"),
    ]
