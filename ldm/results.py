"""What a run gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.options import Job

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Result:
    """What generate() gives."""

    images: list[Image]
    latents: Tensor  # (B, 4, H/8, W/8) float32, as the UNet sees them: the VAE's scale is still in them
    seeds: list[int]  # one a picture
    job: Job  # with every choice filled in
    stopped_at: int | None  # the step after which on_step said stop
    vae_dtypes: list[str]  # in which the VAE decoded, one a picture: a second try can take another than its own


def joined(job: Job, parts: Sequence[Result]) -> Result:
    """The pictures of a job that were made apart."""
    images, seeds, dtypes = ([each for part in parts for each in getattr(part, name)] for name in ("images", "seeds", "vae_dtypes"))
    return Result(images, torch.cat([part.latents for part in parts]), seeds, job, parts[-1].stopped_at, dtypes)
