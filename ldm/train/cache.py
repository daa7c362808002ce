"""What the later stages learn from, computed once and kept on disk: latents of composed pictures.

The file says which weights and things made it, and is made again when those have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ldm.checkpoint.safetensors import read_header
from ldm.checkpoint.writer import HASH, save, tensor_items
from ldm.errors import FileError, InputError
from ldm.train.data import RULES, Ahead, to_tensor
from ldm.train.optim import autocast
from ldm.train.sealed import writing
from ldm.train.state import load_mean
from ldm.train.watching import counter

if TYPE_CHECKING:
    from ldm.models.vae import VAE
    from ldm.train.data import Composer, Sample
    from ldm.train.fitting import Size
    from ldm.train.recipe import Precision
    from ldm.train.scenes import Thing

STAGES = ("vae", "towers", "unet")
AGAIN = "go on with the stage 'unet', which encodes the pictures again"
PICTURES = "pictures.safetensors"  # in the folder of a run
BATCH = 64


@dataclass(frozen=True)
class Pictures:
    """Composed pictures by bucket; row i of `numbers` and `caption` is picture i, whichever bucket it is in."""

    z: list[Tensor]  # N of (4, h, w) float16, the posterior's means, unscaled
    numbers: Tensor  # (N, 6) int32: original, crop, target, each (height, width) or (top, left)
    captions: list[str]  # N

    @property
    def scale(self) -> float:
        """What brings the latents to a standard deviation of one: the family's VAE scale."""
        values = torch.cat([each.flatten().float() for each in self.z])
        return 1.0 / float(values.std())

    def buckets(self) -> list[Size]:
        return [(int(height), int(width)) for height, width in self.numbers[:, 4:].tolist()]


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state's names and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def things_digest(things: Sequence[Thing]) -> str:
    """sha256 of the things that pictures are composed of: pixels, names and weights."""
    digest = hashlib.sha256()
    for thing in things:
        digest.update(repr((thing.names, thing.plural, thing.weight, thing.tile.size)).encode() + thing.tile.tobytes())
    return digest.hexdigest()


def pictures(path: Path, composer: Composer, vae: VAE, precision: Precision, workers: int, say: Callable[[str], None]) -> Pictures:
    """The first samples of the composer, as many as its data says, encoded; read from `path` when it holds just these."""
    made_by = f"{composer.data} {composer.seed} {things_digest(composer.things)} {RULES} {precision}"
    source = f"{fingerprint(vae.state_dict())} {made_by}"
    if path.exists() and whole(path) and read_source(path) == source:
        return read_pictures(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    tensors, captions = _encode(composer, vae, precision, workers, say)
    tensors["captions"] = torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)  # so that the hash is of them too
    with writing(path):
        save(path, tensor_items(tensors), {"source": source}, overwrite=True, digest=True)
    return read_pictures(path)


def load_pictures(out: Path, vae: Mapping[str, Tensor]) -> Pictures:
    """The latents that a run's later stages were trained on. Raises InputError when there are none yet, or when another VAE made them."""
    if not (out / PICTURES).exists():
        raise InputError(f"{out / PICTURES}: no encoded pictures: train the stage 'towers' first")
    if not whole(out / PICTURES):
        raise InputError(f"{out / PICTURES} is damaged, or of an older version: {AGAIN}")
    if not read_source(out / PICTURES).startswith(fingerprint(vae)):
        raise InputError(f"{out / PICTURES}: encoded by another VAE than the newest of {out / 'vae'}: {AGAIN}")
    return read_pictures(out / PICTURES)


def built_on(out: Path, stage: str) -> str:
    """What a state of `stage` has been trained upon: the weights of the stages before it. Raises InputError where one is not there."""
    return " ".join(fingerprint(load_mean(out / each)) for each in STAGES[: STAGES.index(stage)])


def whole(path: Path) -> bool:
    """Whether a file of pictures can be read and has the bytes that it was written with."""
    try:
        header = read_header(path)
    except FileError:
        return False
    with path.open("rb") as file:
        file.seek(min(entry.start for entry in header.tensors.values()))
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "source" in header.metadata and "captions" in header.tensors and header.metadata.get(HASH) == f"0x{found}"


def read_source(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str(file.metadata()["source"])


def read_pictures(path: Path) -> Pictures:
    """Of a file that `pictures` wrote: all latents in one flat tensor, in the pictures' order."""
    with safe_open(path, "pt") as file:
        names = ("z", "shapes", "numbers", "captions")
        flat, shapes, numbers, text = (file.get_tensor(name).clone() for name in names)  # not of the file, which may change
    captions: list[str] = json.loads(text.numpy().tobytes())
    parts = flat.split(shapes.prod(dim=1).tolist())
    return Pictures([part.view(shape) for part, shape in zip(parts, shapes.tolist(), strict=True)], numbers, captions)


@torch.no_grad()
def _encode(
    composer: Composer, vae: VAE, precision: Precision, workers: int, say: Callable[[str], None]
) -> tuple[dict[str, Tensor], list[str]]:
    count = composer.data.pictures
    ahead, done = Ahead(composer.sample, workers, count), counter("encoding pictures", count, say)
    z, numbers, captions = list[Tensor](), list[tuple[int, ...]](), list[str]()
    for first in range(0, count, BATCH):
        samples = [ahead(index) for index in range(first, min(first + BATCH, count))]
        z += _latents(vae, samples, precision)
        numbers += [sample.numbers for sample in samples]
        captions += [sample.caption for sample in samples]
        done(len(z))
    shapes = torch.tensor([each.shape for each in z], dtype=torch.int32)
    flat = torch.cat([each.flatten() for each in z])
    return {"z": flat, "shapes": shapes, "numbers": torch.tensor(numbers, dtype=torch.int32)}, captions


def _latents(vae: VAE, samples: Sequence[Sample], precision: Precision) -> list[Tensor]:
    """Of each sample (C, h, w), float16; encoded in batches of one shape."""
    device = next(vae.parameters()).device
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for at, sample in enumerate(samples):
        members[sample.image.shape].append(at)
    made: dict[int, Tensor] = {}
    for rows in members.values():
        with autocast(device, precision):
            means = vae.encode(to_tensor(np.stack([samples[at].image for at in rows])).to(device))[0]
        made |= {at: mean.half().cpu() for at, mean in zip(rows, means, strict=True)}
    return [made[at] for at in range(len(samples))]
