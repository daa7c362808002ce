"""One process of several that work in one folder: `python -m scripts.faults.worker batch FOLDER COUNT` or `names FOLDER COUNT MARK`.

The pictures are small ones made from their seeds, in place of a model: what is tried is who makes which, and what is on the disk
after a kill.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from pathlib import Path

from ldm.commands import output
from ldm.files import write_atomic
from ldm.jobs.manifest import digests
from ldm.jobs.work import Room
from ldm.options import Job

SIDE = 48


def jobs(count: int) -> list[Job]:
    """The jobs of a batch; every fifth makes two pictures, and some are equal."""
    return [Job(prompt=f"thing {at % (count - 2)}", seed=at % (count - 2), batch=1 + (at % 5 == 0)) for at in range(count)]


def picture(seed: int) -> bytes:
    """A PNG of noise."""
    rows = b"".join(b"\0" + row for row in (random.Random(f"{seed} {at}").randbytes(3 * SIDE) for at in range(SIDE)))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 1)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def batch(folder: Path, count: int) -> None:
    """All jobs that nobody has done or is doing."""
    made = zip(jobs(count), digests(jobs(count), "fake"), strict=True)
    todo = [(job, place, each) for job, places in made for place, each in enumerate(places)]
    room, numbers = Room(folder), output.Numbers(folder)
    for at, claim in room.take_all([each for _, _, each in todo]):
        job, place, _ = todo[at]
        seed = (job.seed or 0) + place
        with claim:
            room.put(claim, picture(seed), output.candidates(str(folder), seed, place, numbers), seed=seed, put=output.save_free)


def names(folder: Path, count: int, mark: str) -> None:
    """Pictures without claims, as several commands at once write them; all processes ask for the same seeds."""
    numbers = output.Numbers(folder)
    for seed in range(count):
        content = picture(seed) + f"{mark} {seed}".encode()
        output.save_free(output.candidates(str(folder), seed, 0, numbers), lambda path, content=content: _save(path, content))


def _save(path: Path, content: bytes) -> Path:
    return write_atomic(path, lambda file: file.write(content), overwrite=False)


if __name__ == "__main__":
    verb, where, number, *rest = sys.argv[1:]
    batch(Path(where), int(number)) if verb == "batch" else names(Path(where), int(number), rest[0])
