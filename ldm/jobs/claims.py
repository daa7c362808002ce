"""Claims: of several processes that make pictures in one folder, one has a job, and a killed one has none.

A claim is a locked file, `.ldm-claims/DIGEST`. The lock goes with the process, however it ends. Before a picture is written under a
name, the claim's file tells which name and which bytes: after a kill, a loss of power or a full disk between the picture and its line
in the manifest, the next process finds the picture by that and writes the line, so nothing is made twice. Without locks (Windows, some
network file systems) a folder is for one process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ldm.errors import LdmError
from ldm.files import lock, make_folder, sync_folder
from ldm.jobs.manifest import Entry, Manifest, read_entry, write_entry

FOLDER = ".ldm-claims"
_CHUNK = 2**20
TRIES = 100  # at a folder that others remove, or that cannot be


class Claim:
    """The right to make one picture, until it is released; a context manager releases it. With descriptor -1 it is nobody's file.

    `keep`: the picture is there and its line is not, so the file stays for the next process, which writes it.
    """

    def __init__(self, path: Path, descriptor: int, folder: Path) -> None:
        self.digest, self._path, self._descriptor, self._folder, self.keep = path.name, path, descriptor, folder, False

    def intending(self, entry: Entry, names: Iterator[Path], *, overwrite: bool = False) -> Iterator[Path]:
        """`names` without those that are taken; each is written down before it is given, with the sha256 and the size of `entry`."""
        for name in names:
            if overwrite or not os.path.lexists(name):
                with contextlib.suppress(OSError):  # what is written down is for a kill: without it a picture is made all the same
                    self.intend(replace(entry, digest=self.digest, path=name.relative_to(self._folder).as_posix()))
                yield name

    def intend(self, entry: Entry) -> None:
        """Write down what is about to be put at `entry.path`."""
        if self._descriptor < 0:
            return
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, write_entry(entry), 0)
        os.fsync(self._descriptor)
        sync_folder(self._path.parent)

    def intent(self) -> Entry | None:
        """What a process that had this claim was about to write, if it came so far."""
        return read_entry(os.pread(self._descriptor, _CHUNK, 0))

    def release(self) -> None:
        """Give it back, done or not."""
        if self._descriptor < 0:
            return
        if not self.keep:
            with contextlib.suppress(OSError):  # it is settled later
                self._path.unlink(missing_ok=True)  # while it is locked: who opens it now sees that it is gone
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Claims:
    """The claims in one folder; what dead processes left is settled when a claim is met."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._claims = folder / FOLDER

    def take(self, digest: str) -> Claim | None:
        """The claim of a job; None where another living process has it, or it turns out to be done."""
        try:
            claim = self._open(digest)
        except OSError as error:
            raise LdmError(f"cannot claim a job in {self._claims}: {error.strerror or error}: choose another folder", "E5001") from error
        if claim is None:
            return None
        try:
            self._settle(claim)
            self._manifest.refresh()
            if self._manifest.done(digest) is None:
                return claim
        except BaseException:
            claim.release()
            raise
        claim.release()
        return None

    def borrow(self, digest: str) -> Claim:
        """The claim of a job that is made though it may be done; an empty one where another process has it, or the disk refuses."""
        claim = None
        try:
            claim = self._open(digest)
            if claim is not None:
                self._settle(claim)
                return claim
        except (OSError, LdmError):
            if claim is not None:
                claim.release()
        return Claim(self._claims / digest, -1, self._folder)

    def _open(self, digest: str, *, make: bool = True) -> Claim | None:
        path = self._claims / digest
        for tries_left in reversed(range(TRIES)):
            try:
                if make:
                    self._make_folder()
                descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0) | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # another process removed the empty folder meanwhile; or there can be none here, as in /proc
                if not make:
                    return None
                if not tries_left:
                    raise
                continue
            held = lock(descriptor)
            if held is not False and _same(descriptor, path):
                return Claim(path, descriptor, self._folder)
            os.close(descriptor)
            if held is False:
                return None
        return None

    def _make_folder(self) -> None:
        """FileNotFoundError where it was there and then was not: `mkdir` of pathlib takes that for a file in the way."""
        make_folder(self._folder)
        try:
            self._claims.mkdir()
            sync_folder(self._folder)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(self._claims).st_mode):
                raise

    def _settle(self, claim: Claim) -> None:
        """Write the line of a picture whose maker was killed before it could."""
        intent = claim.intent()
        if intent is None or intent.digest != claim.digest:
            return
        self._manifest.refresh()
        if self._manifest.done(claim.digest):
            return
        if not self._manifest.names(intent) and _holds(self._folder / intent.path, intent):
            claim.keep = True
            self._manifest.append(intent)
            claim.keep = False
            self._manifest.refresh()

    def sweep(self) -> set[Path]:
        """Settle and remove the claims of dead processes; the folders that they were about to write to."""
        folders: set[Path] = set()
        for name in self._names():
            with contextlib.suppress(OSError):  # a link, or another user's
                claim = self._open(name, make=False)
                if claim is not None:
                    folders |= self._bury(claim)
        self.tidy()
        return folders

    def _bury(self, claim: Claim) -> set[Path]:
        with claim:
            self._settle(claim)
            intent = claim.intent()
            return {(self._folder / intent.path).parent} if intent else set()

    def tidy(self) -> None:
        """Remove the folder of the claims, unless others are at work."""
        with contextlib.suppress(OSError):
            self._claims.rmdir()

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._claims) if re.fullmatch("[0-9a-f]{64}", name)]
        except OSError:
            return []


def _same(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _holds(path: Path, entry: Entry) -> bool:
    """Whether the file at `path` has the bytes of `entry`."""
    try:
        if path.is_symlink() or path.stat().st_size != entry.bytes:
            return False
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False
