"""What a run begins with: the first x of its pictures, and the noise on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.diffusion import noise, samplers
from ldm.diffusion.profiles import Profile
from ldm.diffusion.table import SigmaTable
from ldm.diffusion.variation import Variation
from ldm.limits import SEEDS
from ldm.models.shapes import Family
from ldm.options import Job


def begin(
    job: Job, pictures: Sequence[Job], rules: Profile, family: Family, table: SigmaTable, device: torch.device
) -> tuple[Tensor, noise.Noise]:
    """The first x (B, 4, h, w) and the noise of a finished job; `pictures` are its pictures, each as a job of its own."""
    levels, sampler, down = list(job.sigmas or ()), samplers.get(str(job.sampler), rules), family.downscale
    shape = (family.vae.z_channels, int(job.height or 0) // down, int(job.width or 0) // down)
    seeds, others = ([int(getattr(each, name) or 0) for each in pictures] for name in SEEDS)
    size = None if job.seed_resize is None else (job.seed_resize[0] // down, job.seed_resize[1] // down)
    variation = Variation(others, job.subseed_strength, size)
    random = noise.make_noise(rules, seeds, shape, levels, sampler, device=device, variation=variation)
    return noise.start(random, levels, table, rules, sampler.name, job.schedule), random
