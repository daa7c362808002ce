"""Pictures and captions as training takes them: latents in their buckets and the captions' features, made once and kept on disk.

What is kept says which weights and files made it, and is made again when those have changed or its bytes are damaged.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import InputError, LdmError
from ldm.jobs.leftovers import sweep
from ldm.opening import MAX_PIXELS
from ldm.train.cache import fingerprint
from ldm.train.data import to_tensor
from ldm.train.fitting import Fit, Size, fit, sizes
from ldm.train.recipe import PicturesRecipe
from ldm.train.sealed import read_note, seal, unseal_made_by
from ldm.train.watching import counter

if TYPE_CHECKING:
    from ldm.models.vae import VAE
    from ldm.train.cache import Pictures
    from ldm.train.sources import Example, Found

Say = Callable[[str], None]
Kept = tuple[dict[str, Any], dict[str, Tensor]]  # the note and the tensors
RECORD = "latents.json"  # in the folder of a run
BEGUN = "begun-*.json"  # there too: what was encoded of latents that are not whole yet
PAUSE = 120.0  # seconds from one of these to the next
SHOWN = 20  # pictures that were left out, said one by one


@dataclass(frozen=True)
class Prepared:
    """Row i of each list is one picture; `z` are the means of the VAE's distribution, scaled."""

    z: list[Tensor]  # (C, h, w) float32
    numbers: Tensor  # (N, 6) float32: original, crop, target, each (height, width) or (top, left)
    captions: list[str]
    keep: list[int | None]
    rows: list[int]  # the pictures of one epoch, those with repeats as often as they ask
    skipped: list[str]
    folder: Path | None = None  # where the captions' features are kept beside the latents

    def decided(self) -> list[str]:
        """What decides a run's words and their order."""
        return [*self.captions, *(f"{row} {self.keep[row]}" for row in self.rows)]

    def buckets(self) -> list[Size]:
        """Of each entry of `rows`."""
        sides = [(int(pair[0]), int(pair[1])) for pair in self.numbers[:, 4:].tolist()]
        return [sides[row] for row in self.rows]


def prepare(
    folder: Path,
    found: Found,
    vae: VAE,
    recipe: PicturesRecipe,
    seed: int,
    say: Say,
    *,
    late: Callable[[], bool] = lambda: False,
    check: Callable[[list[str]], None] = lambda _: None,
) -> Prepared:
    """The latents of all pictures that can be opened, from `folder` where they are kept already. Raises InputError where none can.

    LdmError where it is `late` before all are encoded; `check` is called with what decides the words before older latents are replaced.
    """
    files = [_mark(each) for each in found.examples]
    source = hashlib.sha256(repr((fingerprint(vae.state_dict()), recipe, seed, files, "on white")).encode()).hexdigest()
    record = folder / RECORD
    kept = unseal_made_by(record, source)
    if kept is None:
        with Latents(folder, source, vae, late, say).kept() as latent:
            kept = _encode(found.examples, latent, recipe, seed, say)
            made = _prepared(folder, found, kept, vae, say)
            check(made.decided())
            sweep(folder)
            seal(record, kept[1], {"source": source, **kept[0]})
    else:
        made = _prepared(folder, found, kept, vae, say)
    discard(folder)
    return made


def _prepared(folder: Path, found: Found, kept: Kept, vae: VAE, say: Say) -> Prepared:
    note, tensors = kept
    used = [found.examples[at] for at in note["used"]]
    skipped = tell(found, note["skipped"], note["notes"], len(used), say)
    scale = vae.shape.scale
    z = [tensors[f"z.{at}"].float() * scale for at in range(len(used))]
    words, keep = [each.caption for each in used], [each.keep for each in used]
    return Prepared(z, tensors["numbers"], words, keep, repeated(used), skipped, folder)


def composed(pictures: Pictures) -> Prepared:
    """Pictures of a new model's stages, with what brings their latents to a standard deviation of one as the scale."""
    scale, count = pictures.scale, len(pictures.z)
    z = [each.float() * scale for each in pictures.z]
    return Prepared(z, pictures.numbers.float(), pictures.captions, [None] * count, list(range(count)), [])


def repeated(examples: Sequence[Example]) -> list[int]:
    """The rows of one epoch."""
    return [row for row, each in enumerate(examples) for _ in range(each.repeats)]


def _mark(example: Example) -> tuple[object, ...]:
    """What changes when a picture's file does."""
    try:
        info = os.stat(example.path)
    except OSError:
        return (example.name,)
    return (str(example.path), example.span, info.st_size, info.st_mtime_ns)


class Latents:
    """Of pictures, by their number in the source; those that an earlier attempt has left in `folder` are not made again."""

    def __init__(self, folder: Path, source: str, vae: VAE, late: Callable[[], bool], say: Say) -> None:
        self.folder, self.source, self.vae, self.late, self.say = folder, source, vae, late, say
        self.made: dict[str, Tensor] = {}  # the first `stored` of them are on disk
        self.stored, self.due = 0, time.monotonic() + PAUSE

    def __call__(self, at: int, picture: Image.Image) -> Tensor:
        if str(at) not in self.made:
            if self.late():
                raise LdmError("stopped before all pictures were encoded: give the same command again, with more --minutes")
            self.made[str(at)] = _latent(self.vae, picture)
            if time.monotonic() >= self.due:
                self.store()
        return self.made[str(at)]

    def store(self) -> None:
        """Write what is new beside what is stored, which stays as it is: a kill amid it costs no more than this."""
        new = dict(islice(self.made.items(), self.stored, None))
        if new:
            seal(self.folder / BEGUN.replace("*", f"{int(list(new)[-1]):08}"), new, {"source": self.source})
        self.stored, self.due = len(self.made), time.monotonic() + PAUSE

    @contextmanager
    def kept(self) -> Iterator[Latents]:
        """Where the block fails or is stopped, what it has made is kept for the next attempt."""
        for record in sorted(self.folder.glob(BEGUN)):
            found = unseal_made_by(record, self.source)
            self.made |= found[1] if found else {}
        self.stored = len(self.made)
        try:
            yield self
        except BaseException:  # a signal too
            try:
                self.store()
            except LdmError as error:  # does not hide why it ended
                self.say(str(error))
            if self.stored:
                self.say(f"encoded pictures that are kept in {self.folder} for the same command: {self.stored:,}")
            raise


def discard(folder: Path) -> None:
    """Remove what was stored on the way to latents that are whole, the record after the files that it names."""
    for record in folder.glob(BEGUN):
        note = read_note(record)
        for name in (*note["files"], record.name) if note else ():
            with suppress(OSError):
                record.with_name(Path(name).name).unlink(missing_ok=True)


def _encode(examples: Sequence[Example], latent: Latents, recipe: PicturesRecipe, seed: int, say: Say) -> Kept:
    """The latents of the pictures that can be opened; `used` are those, `skipped` a line for each of the others, `notes` as of `opened`."""
    tensors: dict[str, Tensor] = {}
    used: list[int] = []
    skipped: list[str] = []
    notes = Counter[str]()
    numbers: list[list[float]] = []
    done = counter("encoding pictures", len(examples), say)
    for at, picture, place in opened(examples, recipe, seed, skipped, notes, done):
        tensors[f"z.{len(used)}"] = latent(at, cut(picture, place))
        used.append(at)
        numbers.append([float(number) for number in place.numbers])
    tensors["numbers"] = torch.tensor(numbers, dtype=torch.float32).reshape(-1, 6)
    return {"used": used, "skipped": skipped, "notes": notes}, tensors


def opened(
    examples: Sequence[Example],
    recipe: PicturesRecipe,
    seed: int,
    skipped: list[str],
    notes: Counter[str],
    done: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[int, Image.Image, Fit]]:
    """Number, pixels and place of every picture that can be opened; of the others a line goes to `skipped`.

    `notes` counts what was done to pictures that are not as training takes them; `done` is told how many have been seen to.
    """
    buckets = sizes(recipe.size**2, recipe.step)
    for at, example in enumerate(examples):
        done(at)
        try:
            whole = example.open()
            picture = whole.rgb
            place = fit((picture.height, picture.width), buckets, recipe.crop, np.random.default_rng([seed, 4, at]))
            if math.prod(place.scaled) > MAX_PIXELS:
                raise InputError(f"{example.name} is {picture.width}x{picture.height}: too long and thin for any bucket")
        except (LdmError, OSError) as error:
            skipped.append(str(error))
            continue
        notes.update(re.sub(r"it has \d+ frames", "it has several frames", note) for note in whole.notes)
        yield at, picture, place
    done(len(examples))


def cut(picture: Image.Image, place: Fit) -> Image.Image:
    """A picture (RGB) scaled and cropped into its bucket."""
    (height, width), (top, left) = place.scaled, place.crop
    if (picture.height, picture.width) != place.scaled:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture.crop((left, top, left + place.bucket[1], top + place.bucket[0]))


@torch.no_grad()
def _latent(vae: VAE, picture: Image.Image) -> Tensor:
    weight = next(vae.parameters())
    return vae.encode(to_tensor(np.array(picture)[None]).to(weight))[0][0].float().cpu()


def tell(found: Found, broken: Sequence[str], notes: Mapping[str, int], used: int, say: Say) -> list[str]:
    """All that is left out, the first of them said with the notes of the source and of `opened`. Raises InputError where none is used."""
    skipped = [*found.skipped, *broken]
    for note in (*found.notes, *(f"{count:,} of {used:,} pictures: {note}" for note, count in notes.items())):
        say(note)
    if skipped:
        say(f"{len(skipped):,} of {used + len(skipped):,} pictures are left out:")
        for line in skipped[:SHOWN]:
            say(f"  {line}")
        if len(skipped) > SHOWN:
            say(f"  and {len(skipped) - SHOWN:,} more")
    if not used:
        raise InputError(f"none of {len(skipped):,} pictures can be used: {skipped[0] if skipped else 'the source is empty'}")
    return skipped
