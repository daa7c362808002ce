"""All randomness of a run: the first x, and the noise that stochastic samplers ask for on the way.

Noise is a function of (seed, image, step and interval): never of the batch, the device or the order of the questions,
unless a profile asks for another engine's habit. It is made on the CPU in float32 and handed over on the run's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ldm.diffusion import philox
from ldm.diffusion.brownian import BrownianTree
from ldm.diffusion.rounding import log_trip
from ldm.diffusion.samplers.loop import check_sigmas

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.diffusion.samplers import NoiseFn, Sampler
    from ldm.diffusion.schedules import SigmaTable

Shape = tuple[int, ...]
_SEEDS = 2**64


class _Stream(Protocol):
    """The draws of one generator, by number."""

    def __init__(self, seed: int, shape: Shape) -> None: ...

    def draw(self, k: int) -> Tensor: ...


class _CpuStream:
    """torch's CPU generator. It only runs forward, so an earlier draw starts it again."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self._seed, self._shape = seed, shape
        self._restart()

    def draw(self, k: int) -> Tensor:
        if k < self._drawn:
            self._restart()
        while self._drawn < k:
            self._next()
        return self._next()

    def _restart(self) -> None:
        self._generator, self._drawn = torch.Generator().manual_seed(self._seed), 0

    def _next(self) -> Tensor:
        self._drawn += 1
        return torch.randn(self._shape, generator=self._generator)


class _PhiloxStream:
    """CUDA's generator, counted instead of run."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self._seed, self._shape = seed, shape

    def draw(self, k: int) -> Tensor:
        return philox.randn(self._seed, k, self._shape)


_STREAMS: dict[str, type[_Stream]] = {"cpu": _CpuStream, "philox": _PhiloxStream}


class Noise:
    """The noise of one run: `first()` for its start, `noise(i, sigma, sigma_next)` for its steps; each (B, 4, h, w) float32.

    It belongs to the run that made it: give every thread its own.
    """

    def __init__(self, starts: Sequence[_Stream], step: NoiseFn, device: str | torch.device) -> None:
        self._starts, self._step, self._device = starts, step, device

    def first(self) -> Tensor:
        """Unit noise for the first x."""
        return torch.cat([stream.draw(0) for stream in self._starts]).to(self._device)

    def __call__(self, i: int, sigma: float, sigma_next: float) -> Tensor:
        """Unit noise for step i, or for a part of it, from `sigma` down to `sigma_next`."""
        return self._step(i, sigma, sigma_next).to(self._device)


def make_noise(
    profile: Profile, seeds: Sequence[int], shape: Shape, sigmas: Sequence[float], sampler: Sampler, device: str | torch.device = "cpu"
) -> Noise:
    """The noise that `sampler` needs along `sigmas`, by the profile's rules.

    `seeds`: one an image, each 0 to 2^64 - 1. `shape`: of one image, (4, h, w), or of the batch. `sigmas`: the full schedule; InputError
    where they are none.
    """
    check_sigmas(sigmas)
    starts = _streams(profile, seeds, shape)
    step: NoiseFn = _no_noise
    if sampler.noise == "ancestral":
        step = _Ancestral(profile, seeds, shape)
    elif sampler.noise == "brownian":
        step = _Brownian(profile, seeds, shape, sigmas, sampler)
    return Noise(starts, step, device)


def start(source: Noise, sigmas: Sequence[float], table: SigmaTable, profile: Profile) -> Tensor:
    """The first x (B, 4, h, w) at sigmas[0]: unit noise times sigma, or times sqrt(1 + sigma²), which is what training ends at."""
    sigma = torch.tensor(sigmas[0])
    full = sigmas[0] >= table.high * (1 - 1e-5)
    if profile.start_noise == "sqrt1p" or (profile.start_noise == "sqrt1p-if-full" and full):
        sigma = (1 + sigma**2).sqrt()
    noise = source.first()
    return noise * sigma.to(noise.device)


class _Ancestral:
    """Independent draws, one a step."""

    def __init__(self, profile: Profile, seeds: Sequence[int], shape: Shape) -> None:
        rule = profile.ancestral_rng
        continued = rule == "continued" and profile.ensd == 0
        added = {"same-seed": 0, "next-seed": 1, "continued": profile.ensd}[rule]
        self._streams = _streams(profile, [(seed + added) % _SEEDS for seed in seeds], shape)
        self._used = int(continued)  # the start noise was the stream's first draw

    def __call__(self, i: int, sigma: float, sigma_next: float) -> Tensor:
        return torch.cat([stream.draw(i + self._used) for stream in self._streams])


class _Brownian:
    """Increments of a path over the schedule's range, from its least sigma > 0 to its largest, each divided by its std."""

    def __init__(self, profile: Profile, seeds: Sequence[int], shape: Shape, sigmas: Sequence[float], sampler: Sampler) -> None:
        stream = _STREAMS[profile.rng]
        low, high = min(sigma for sigma in sigmas if sigma > 0), max(sigmas)
        self._trees = [
            BrownianTree(low, high, seed, part, lambda seed, shape: stream(seed, shape).draw(0))
            for seed, part in _parts(seeds, shape, whole=profile.brownian == "batch")
        ]
        tripped = profile.brownian_ends == "log-trip" and sampler.log_time
        self._ends = {sigma: log_trip(sigma) for sigma in sigmas} if tripped else {}

    def __call__(self, i: int, sigma: float, sigma_next: float) -> Tensor:
        high, low = (self._ends.get(end, end) for end in (sigma, sigma_next))
        increments = torch.cat([tree(low, high) for tree in self._trees])
        length = torch.tensor(high) - torch.tensor(low)
        if not length:  # a midpoint that rounds to its end: the increment is zero, and so is its std
            return torch.zeros_like(increments)
        return -increments / length.sqrt()


def _no_noise(i: int, sigma: float, sigma_next: float) -> Tensor:
    raise RuntimeError("a sampler that is declared to need no noise asked for some")


def _streams(profile: Profile, seeds: Sequence[int], shape: Shape) -> list[_Stream]:
    parts = _parts(seeds, shape, whole=profile.batch_noise == "one-draw")
    return [_STREAMS[profile.rng](seed, part) for seed, part in parts]


def _parts(seeds: Sequence[int], shape: Shape, *, whole: bool) -> list[tuple[int, Shape]]:
    """(seed, shape) of what is drawn together: each image with its seed, or the whole batch with the first."""
    image = shape[-3:]  # (4, h, w)
    return [(seeds[0], (len(seeds), *image))] if whole else [(seed, (1, *image)) for seed in seeds]
