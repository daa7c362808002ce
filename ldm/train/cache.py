"""What later stages learn from, computed once and kept on disk: latents of composed pictures, and features of their captions.

Both files say which weights made them, and are made again when those have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ldm.checkpoint.writer import save, tensor_items
from ldm.errors import InputError
from ldm.train.data import CAPTIONS, COLOURS, JITTER, MARGIN, Thing, to_tensor

if TYPE_CHECKING:
    from ldm.models.clip import CLIPText
    from ldm.models.vae import VAE
    from ldm.train.data import Composer

PICTURES = "pictures.safetensors"  # in the folder of a run
BATCH = 64


@dataclass(frozen=True)
class Pictures:
    z: Tensor  # (N, 4, h, w) float32, the posterior's means, unscaled
    numbers: Tensor  # (N, 6) int32: original, crop, target, each (height, width) or (top, left)
    caption: Tensor  # (N,) int32, into `captions`
    captions: list[str]  # distinct; the empty one is the first

    @property
    def scale(self) -> float:
        """What brings the latents to a standard deviation of one: the family's VAE scale."""
        return 1.0 / float(self.z.std())


@dataclass(frozen=True)
class Features:
    context: Tensor  # (C, 77, D) float16: the towers' penultimate layers side by side
    pooled: Tensor  # (C, P) float32


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 of a state's names and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def things_digest(things: Sequence[Thing]) -> str:
    """sha256 of what the pictures are composed of: the things' pixels and names, and the fixed lists of captions and colours."""
    digest = hashlib.sha256(repr((CAPTIONS, COLOURS, JITTER, MARGIN)).encode())
    for thing in things:
        digest.update(repr((thing.names, thing.plural, thing.tile.size)).encode() + thing.tile.tobytes())
    return digest.hexdigest()


def pictures(path: Path, composer: Composer, vae: VAE, precision: str, say: Callable[[str], None]) -> Pictures:
    """The first samples of the composer, as many as its data says, encoded; read from `path` when it holds just these."""
    source = f"{fingerprint(vae.state_dict())} {composer.data} {composer.seed} {things_digest(composer.things)} {precision}"
    tensors, captions = _kept(path, source, lambda: _encode_pictures(composer, vae, precision, say))
    return Pictures(tensors["z"].float(), tensors["numbers"], tensors["caption"], captions)


def load_pictures(out: Path, vae: Mapping[str, Tensor]) -> Pictures:
    """The latents that a run's later stages were trained on. Raises InputError when there are none yet, or when another VAE made them."""
    if not (out / PICTURES).exists():
        raise InputError(f"{out / PICTURES}: no encoded pictures: train the stage 'towers' first")
    source, tensors, captions = _read(out / PICTURES)
    if not source.startswith(fingerprint(vae)):
        raise InputError(f"{out / PICTURES}: encoded by another VAE than the newest of {out / 'vae'}: train 'towers' and 'unet' again")
    return Pictures(tensors["z"].float(), tensors["numbers"], tensors["caption"], captions)


def features(path: Path, towers: Sequence[CLIPText], ids: Sequence[Tensor], captions: list[str], say: Callable[[str], None]) -> Features:
    """Context and pooled vector of every caption; ids (C, 77), one tensor a tower."""
    source = " ".join([*(fingerprint(tower.state_dict()) for tower in towers), hashlib.sha256(json.dumps(captions).encode()).hexdigest()])
    tensors, _ = _kept(path, source, lambda: (_encode_captions(towers, ids, say), captions))
    return Features(tensors["context"], tensors["pooled"])


def _kept(path: Path, source: str, make: Callable[[], tuple[dict[str, Tensor], list[str]]]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors and captions in `path` if they came from `source`; otherwise they are made and written there."""
    if path.exists():
        found, tensors, captions = _read(path)
        if found == source:
            return tensors, captions
    tensors, captions = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, tensor_items(tensors), {"source": source, "captions": json.dumps(captions)}, overwrite=True)
    return tensors, captions


def _read(path: Path) -> tuple[str, dict[str, Tensor], list[str]]:
    """Source, tensors and captions of a file that `_kept` wrote."""
    with safe_open(path, "pt") as file:
        note = file.metadata()
        return note["source"], {name: file.get_tensor(name) for name in file.keys()}, json.loads(note["captions"])  # noqa: SIM118


@torch.no_grad()
def _encode_pictures(composer: Composer, vae: VAE, precision: str, say: Callable[[str], None]) -> tuple[dict[str, Tensor], list[str]]:
    z, numbers, caption, count = [], [], [], composer.data.pictures
    known: dict[str, int] = {"": 0}
    for first in range(0, count, BATCH):
        samples = [composer.sample(index) for index in range(first, min(first + BATCH, count))]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            z.append(vae.encode(to_tensor(np.stack([sample.image for sample in samples])))[0].half())
        numbers += [sample.numbers for sample in samples]
        caption += [known.setdefault(sample.caption, len(known)) for sample in samples]
        if first % (BATCH * 16) == 0:
            say(f"encoding pictures: {first}/{count}")
    tensors = {"z": torch.cat(z), "numbers": torch.tensor(numbers, dtype=torch.int32), "caption": torch.tensor(caption, dtype=torch.int32)}
    return tensors, list(known)


@torch.no_grad()
def _encode_captions(towers: Sequence[CLIPText], ids: Sequence[Tensor], say: Callable[[str], None]) -> dict[str, Tensor]:
    say(f"encoding {len(ids[0])} captions")
    rows: list[dict[str, Any]] = []
    for first in range(0, len(ids[0]), BATCH):
        outputs = [tower(part[first : first + BATCH]) for tower, part in zip(towers, ids, strict=True)]
        rows.append({"context": torch.cat([output.penultimate for output in outputs], -1).half(), "pooled": outputs[-1].pooled})
    return {name: torch.cat([row[name] for row in rows]) for name in ("context", "pooled")}
