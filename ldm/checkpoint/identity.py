"""What is known of a file by its header: the words that a title, a refusal and `ldm info` are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.checkpoint.safetensors import Header

UNET = "model.diffusion_model."
VAE = "first_stage_model."
FAMILY_KEY = "ldm.family"  # in __metadata__: the family's numbers as JSON
OFFICIAL = "official layout"
DIFFUSERS = "diffusers' layout"
CROSS = {2048: "SDXL base", 1280: "SDXL refiner", 1024: "SD 2.x", 768: "SD 1.x"}  # width of the text that cross-attention reads


@dataclass(frozen=True)
class Identity:
    """What a file is, and no more than names and shapes can tell: a fine-tune has those of the model that it was made from."""

    kind: str  # "checkpoint", "UNet", "VAE", "text encoder", "LoRA", "ControlNet", "embedding", "TAESD", "adapter" or "unknown"
    model: str  # the model that it is, or belongs to; "": not known
    layout: str  # how its tensors are named
    name: str  # kind and model in words
    details: tuple[str, ...] = ()
    flag: str = ""  # of `ldm sample`, with which it is given; "": the engine does not use it
    remedy: str = "give an SDXL base, refiner or Turbo checkpoint"  # for who gave it as a model

    @property
    def title(self) -> str:
        """One line."""
        return ", ".join(part for part in (self.name, self.layout, *self.details) if part)

    def __str__(self) -> str:
        """The title with its article, for a sentence."""
        return f"{'an' if re.match('SD|SV|IP|[AEIOaeio]|unkn', self.title) else 'a'} {self.title}"


def shape(header: Header, name: str) -> tuple[int, ...]:
    """The shape of a tensor; () where there is none."""
    entry = header.tensors.get(name)
    return entry.shape if entry is not None else ()


def first_ending(header: Header, ending: str, start: str = "") -> tuple[int, ...]:
    """The shape of the first tensor that starts and ends so; () where there is none."""
    return next((entry.shape for name, entry in header.tensors.items() if name.endswith(ending) and name.startswith(start)), ())


def any_starting(header: Header, *starts: str) -> bool:
    return any(name.startswith(starts) for name in header.tensors)


def any_holding(header: Header, *parts: str) -> bool:
    return any(part in name for name in header.tensors for part in parts)


def counted(pairs: Iterable[tuple[str, int]]) -> str:
    """ "UNet 722, text tower 1 72", those that are not nothing."""
    return ", ".join(f"{name} {count:,}" for name, count in pairs if count)
