"""A folder in which pictures of many jobs are made, by one process or several, and after a kill by the next ones.

room = Room(folder)                                       # settles what killed processes left
for at, claim in room.take_all(digests):                  # each picture that nobody has made, or is making
    with claim:
        path = room.put(claim, content, names, seed=7)    # the picture, then its line in the manifest
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ldm.files import write_atomic
from ldm.jobs import leftovers
from ldm.jobs.claims import Claim, Claims
from ldm.jobs.manifest import FAILED, Entry, Manifest

Put = Callable[[Iterator[Path], Callable[..., Path]], Path]  # (names, save): save under the first name that is free


class Room:
    """`manifest`: what is done. `held`: pictures that other living processes were making when `take_all` ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.held = folder, 0
        self.manifest = Manifest(folder)
        self._claims = Claims(folder, self.manifest)
        self.removed = sum(leftovers.sweep(each) for each in {folder, *self._claims.sweep()})

    def take_all(self, digests: Sequence[str]) -> Iterator[tuple[int, Claim]]:
        """(place, claim) of each picture to make. Those that others have are tried again at the end, since their makers may have died."""
        todo = list(range(len(digests)))
        while todo:
            tried, todo, before = todo, [], len(todo)
            for at in tried:
                claim = self.take(digests[at])
                if claim is not None:
                    yield at, claim
                elif self.manifest.done(digests[at]) is None:
                    todo.append(at)
            self.held = len(todo)
            if len(todo) == before:
                break
        self._claims.tidy()

    def take(self, digest: str) -> Claim | None:
        """The claim of one picture; None where it is done or another living process has it."""
        return None if self.manifest.done(digest) else self._claims.take(digest)

    def borrow(self, digest: str) -> Claim:
        """The claim of one picture that is made whether it is done or not; see `Claims.borrow`."""
        return self._claims.borrow(digest)

    def tidy(self) -> None:
        """Remove the folder of the claims, unless others are at work or a line is missing."""
        self._claims.tidy()

    def put(
        self, claim: Claim, content: bytes, names: Iterator[Path], *, seed: int, put: Put, index: int = 0,
        timings: Mapping[str, float] | None = None, write: Callable[..., Path] | None = None, overwrite: bool = False,
    ) -> Entry:  # fmt: skip
        """Write a picture under the first free of `names`, all in the folder, then its line; `put` deals with the disk's refusals.

        `write(path)` is given where more than `content` is to be written, or a file may be replaced. Where the line cannot be written,
        LdmError is raised, and the claim stays on the disk: the next process finds the picture by it.
        """
        entry = Entry(claim.digest, seed, "", hashlib.sha256(content).hexdigest(), len(content), index=index, timings=timings or {})

        def save(path: Path) -> Path:
            return write_atomic(path, lambda file: file.write(content), overwrite=False)

        path = put(claim.intending(entry, names, overwrite=overwrite), write or save)
        made = replace(entry, path=path.relative_to(self.folder).as_posix())
        claim.keep = True
        self.manifest.append(made)
        claim.keep = False
        return made

    def fail(self, claim: Claim, seed: int) -> None:
        """Note in the manifest that a picture could not be made; another run tries it again."""
        self.manifest.append(Entry(claim.digest, seed, state=FAILED))
