"""How far the tiers are from the exact one, on the model in the box: `python -m scripts.tiers [--sampler NAME ...] [--seeds N]`.

Of every picture: the relative error of its latents and the PSNR of its pixels against the exact tier's with the same seed, and how much
of the UNet's arithmetic is left out (multiplications and additions of its matrix products, convolutions and attention, counted).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf, log10
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.flop_counter import FlopCounterMode

import ldm
from ldm import ops
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.options import Job
from ldm.pipeline import Pipeline
from ldm.runtime import approx

PROMPTS = ("a red apple", "a yellow star on a blue background", "a cat face", "a green tree", "two hearts", "a house at night")
TIERS: dict[str, tuple[str, str, dict[str, float]]] = {  # speed, dtype, and what of the approximate tier is not as it is
    "approx": ("approx", "auto", {}),
    "step caching alone": ("approx", "auto", {"LOW": -1.0}),
    "guidance interval alone": ("approx", "auto", {"EVERY": 1}),
    "int8": ("exact", "int8", {}),
    "fp8": ("fp8", "auto", {}),
}


@dataclass(frozen=True)
class Row:
    """One tier beside the exact one, over several pictures."""

    tier: str
    sampler: str
    errors: Sequence[float]  # relative, of the latents
    psnrs: Sequence[float]  # in dB
    saved: float  # share of the UNet's arithmetic

    def __str__(self) -> str:
        errors, psnrs = (f"{median(self.errors):.3f}, {max(self.errors):.3f}", f"{median(self.psnrs):.1f}, {min(self.psnrs):.1f}")
        return f"| {self.tier} | {self.sampler} | {errors} | {psnrs} | {self.saved:.0%} |"


HEAD = "| tier | sampler | latents' error: median, worst | PSNR in dB: median, least | of the UNet left out |\n|---|---|---|---|---|"


def row(pipeline: Pipeline, tier: str, jobs: Sequence[Job]) -> Row:
    """Raises InputError where the machine does not run the tier."""
    speed, dtype, changes = TIERS[tier]
    other = pipeline if dtype == "auto" else ldm.load(dtype=dtype)
    with ExitStack() as changed:
        for name, value in changes.items():
            changed.enter_context(patch.object(approx, name, value))
        theirs = [other.run(replace(job, speed=speed)) for job in jobs]
        work = flops(pipeline, replace(jobs[0], speed=speed))
    exact = [pipeline.run(job) for job in jobs]
    errors = [relative_error(one.latents, two.latents) for one, two in zip(theirs, exact, strict=True)]
    psnrs = [psnr(one.images[0], two.images[0]) for one, two in zip(theirs, exact, strict=True)]
    return Row(tier, str(exact[0].job.sampler), errors, psnrs, 1 - work / flops(pipeline, jobs[0]))


def flops(pipeline: Pipeline, job: Job) -> int:
    """Of the sampling of a job, as the plain operations count them."""
    counter = FlopCounterMode(display=False)
    sample = pipeline.sample

    def counted(*args: Any, **named: Any) -> torch.Tensor:
        with counter, ops.reference():
            return sample(*args, **named)

    with patch.object(pipeline, "sample", counted):
        pipeline.run(job)
    return int(counter.get_total_flops())


def psnr(one: Image, two: Image) -> float:
    """In dB, of 8-bit pictures; infinite where they are equal."""
    error = float(np.square(np.asarray(one, np.float64) - np.asarray(two, np.float64)).mean())
    return 10 * log10(255**2 / error) if error else inf


def rows(samplers: Sequence[str], seeds: int, tiers: Sequence[str] = tuple(TIERS)) -> Iterator[Row | str]:
    """A tier that this machine does not run is a line that says so."""
    pipeline = ldm.load()
    for tier in tiers:
        for sampler in samplers:
            jobs = [Job(prompt, sampler=sampler, seed=seed) for prompt in PROMPTS for seed in range(1, seeds + 1)]
            try:
                yield row(pipeline, tier, jobs)
            except InputError:
                yield f"| {tier} | {sampler} | not measured | not measured | |"


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m scripts.tiers")
    made.add_argument("--sampler", action="append", help="may be repeated; none: dpmpp_2m")
    made.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    made.add_argument("--tier", action="append", choices=list(TIERS), help="may be repeated; none: all")
    given = made.parse_args()
    print(HEAD)
    for each in rows(given.sampler or ["dpmpp_2m"], given.seeds, given.tier or list(TIERS)):
        print(each, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
