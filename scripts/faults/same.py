"""Rows B8 and B9: pictures that must not differ, whatever runs beside them, before them or around them."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ldm
from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.profiles import load_profile
from ldm.text.conditioning import Conditioning
from scripts.faults import Figure
from scripts.faults.tiny import NAMES, SMALL, some, tiny

ROOT = Path(__file__).parents[2]

JOBS: list[dict[str, Any]] = [
    {"width": 64, "height": 64, "sampler": "dpmpp_sde"},
    {"width": 128, "height": 128, "sampler": "dpmpp_2m"},
    {"width": 200, "height": 104, "sampler": "euler_a", "profile": "a1111"},  # sizes that no number of threads divides
    {"width": 72, "height": 136, "sampler": "heun", "batch": 2},
]
THREADS = (1, 2, 3, 4)


def digests(count: int, threads: Sequence[int] = ()) -> list[str]:
    """sha256 of pixels and latents of `count` runs of the model in the box, the jobs in turn; the numbers of threads in turn, if given."""
    pipeline, made = ldm.load(device="cpu"), []
    for k in range(count):
        if threads:
            torch.set_num_threads(threads[k // len(JOBS) % len(threads)])
        result = pipeline.generate("a red apple", "blue", steps=2, seed=3, **JOBS[k % len(JOBS)])
        data = b"".join(picture.tobytes() for picture in result.images) + result.latents.numpy().tobytes()
        made.append(hashlib.sha256(data).hexdigest())
    return made


def elsewhere(count: int, threads: Sequence[int]) -> list[str]:
    """The same in a fresh process: with that number of threads from its start, or with those in turn."""
    turns = tuple(threads) if len(threads) > 1 else ()
    code = f"from scripts.faults.same import digests; print(*digests({count}, {turns}))"
    # More threads than cores would burn them while they wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads[0]), "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def b8(count: int | None = None) -> Figure:
    """Half of the runs in one process with 1 to 4 threads in turn, half in others with a number of their own, four in a full count."""
    count = 1000 if count is None else count
    places = some(THREADS, max(2, count // 10))
    apart = max(1, count // 2 // len(places))
    first = elsewhere(count - apart * len(places), THREADS)
    runs = [first, *(elsewhere(apart, [threads]) for threads in places)]
    equal = [digest == first[k % len(JOBS)] for run in runs for k, digest in enumerate(run)]
    reached = f"{sum(equal)} of {len(equal)} runs equal in pixels and latents, {len(runs)} processes, 1 to 4 threads"
    return Figure("identical pixels, 1,000 of 1,000", reached, all(equal) and len(equal) >= count)


def b9(count: int | None = None) -> Figure:
    """Pictures of a batch against each alone, in another order, and beside others of other sizes in other threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = some(list(itertools.product((1, 2, 3, 4, 8), NAMES, ("comfyui", "a1111"))), count)
        alike = [same for size, name, profile in batches for same in batch_alike(size, name, profile)]
        alike += [same for name in some(NAMES, count) for same in order_alike(name)]
        beside = queue_alike(64 if count is None else count)
    equal, total = sum(alike) + sum(beside), len(alike) + len(beside)
    reached = f"{equal} of {total} pictures bitwise equal: {len(alike)} in batches of 1 to 8 and permuted, {len(beside)} in 4 threads"
    return Figure("CPU float32 bitwise, 100 %", reached, equal == total)


# (width, height) by the size of the batch. Latents of 4 and 12 positions go through other kernels of torch's where there are more rows, on
# any processor, those of 36 on some: a batch that is evaluated in one pass has other bits there. At 32x24 it would not.
SHAPES = {1: (32, 24), 2: (16, 16), 3: (48, 48), 4: (48, 16), 8: (16, 16)}


def batch_alike(size: int, name: str, profile: str) -> list[bool]:
    """Picture k of a batch of `size`, and that of seed + k alone."""
    width, height = SHAPES[size]
    job: dict[str, Any] = SMALL | {"sampler": name, "profile": profile, "steps": 3, "width": width, "height": height}
    together = tiny().generate("a cat", "a dog", batch=size, **job)
    same = []
    for k, picture in enumerate(together.images):
        alone = tiny().generate("a cat", "a dog", **job | {"seed": int(SMALL["seed"]) + k})
        same.append(torch.equal(together.latents[k], alone.latents[0]) and picture.tobytes() == alone.images[0].tobytes())
    return same


def order_alike(name: str) -> list[bool]:
    """Seeds and prompts in another order, each with a row of conditioning of its own."""
    pipeline, rules, order = tiny(), load_profile("comfyui"), [3, 0, 4, 1, 2]
    table = schedules.SigmaTable(rules.alphas)
    levels = schedules.sigmas("karras", 3, table, rules, name)
    conds = [pipeline.encode(text, size=(24, 32)) for text in ("a cat", "two dogs", "the sea", "", "a red house")]

    def made(places: Sequence[int]) -> Tensor:
        random = noise.make_noise(rules, [50 + k for k in places], (4, 3, 4), levels, samplers.get(name, rules))
        x = noise.start(random, levels, table, rules)
        cond = Conditioning(torch.cat([conds[k].context for k in places]), torch.cat([conds[k].vector for k in places]))
        return pipeline.sample(cond, conds[3], x, levels, sampler=name, cfg=4.0, noise=random)

    straight, permuted = made(range(len(order))), made(order)
    return [torch.equal(permuted[k], straight[place]) for k, place in enumerate(order)]


def queue_alike(count: int) -> list[bool]:
    """Calls of mixed sizes, samplers, batches and prompts, in 4 threads on one pipeline, against the same calls in a row."""
    pipeline, sizes = tiny(), [(16, 16), (32, 24), (24, 40), (48, 16)]
    jobs = [
        SMALL | {"width": sizes[k % 4][0], "height": sizes[k % 4][1], "sampler": NAMES[k % len(NAMES)], "batch": 1 + k % 3, "seed": k}
        for k in range(count)
    ]

    def made(job: dict[str, Any]) -> Tensor:
        return pipeline.generate(f"picture {job['seed']}", **job).latents

    serial = [made(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(made, jobs))
    return [torch.equal(one, two) for one, two in zip(serial, parallel, strict=True)]
