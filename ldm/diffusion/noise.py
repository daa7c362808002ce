"""All randomness of a run: the first x, and the noise that stochastic samplers ask for on the way.

Noise is a function of (seed, image, step and interval): never of the batch, the device or the order of the questions,
unless a profile asks for another engine's habit. It is made on the CPU in float32 and handed over on the run's device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ldm.diffusion import philox
from ldm.diffusion.brownian import BrownianTree
from ldm.diffusion.rounding import log_trip
from ldm.diffusion.samplers.loop import check_sigmas
from ldm.diffusion.variation import Variation, centred, slerp

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.diffusion.samplers import NoiseFn, Sampler
    from ldm.diffusion.schedules import SigmaTable

Shape = tuple[int, ...]
_SEEDS = 2**64
_LOW_BITS = 2**32 - 1


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
_Draw = Callable[[], Tensor]


class _Varied:
    """A first draw on the way to another seed's, or of another size."""

    def __init__(self, own: _Draw, base: _Draw, other: _Draw, variation: Variation) -> None:
        self._own, self._base, self._other, self._variation = own, base, other, variation

    def __call__(self) -> Tensor:
        noise, strength = self._base(), self._variation.strength
        if strength:
            noise = slerp(strength, noise, self._other())
        return noise if self._variation.size is None else centred(noise, self._own())


class Noise:
    """The noise of one run: `first()` for its start, `noise(i, sigma, sigma_next)` for its steps; each (B, 4, h, w) float32.

    It belongs to the run that made it: give every thread its own.
    """

    def __init__(self, starts: Sequence[_Draw], step: NoiseFn, device: str | torch.device) -> None:
        self._starts, self.draw, self.device = starts, step, torch.device(device)

    def first(self) -> Tensor:
        """Unit noise for the first x."""
        return _moved(torch.cat([draw() for draw in self._starts]), self.device)

    def __call__(self, i: int, sigma: float, sigma_next: float) -> Tensor:
        """Unit noise for step i, or for a part of it, from `sigma` down to `sigma_next`."""
        return _moved(self.draw(i, sigma, sigma_next), self.device)

    def drawn_by(self, draw: NoiseFn) -> Noise:
        """The same, for the steps' noise `draw` in the place of its own `draw`, which gives it on the CPU."""
        return Noise(self._starts, draw, self.device)

    def after(self, draws: int) -> NoiseFn:
        """The noise of a run that goes on, along the rest of the list, where so many draws were made: one a step by most samplers."""
        return lambda i, sigma, sigma_next: self(i + draws, sigma, sigma_next)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """A GPU is not waited for: it computes a step while the next one's noise is drawn."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def make_noise(
    profile: Profile,
    seeds: Sequence[int],
    shape: Shape,
    sigmas: Sequence[float],
    sampler: Sampler,
    device: str | torch.device = "cpu",
    variation: Variation | None = None,
) -> Noise:
    """The noise that `sampler` needs along `sigmas`, by the profile's rules.

    `seeds`: one an image, each 0 to 2^64 - 1. `shape`: of one image, (4, h, w), or of the batch. `sigmas`: the full schedule; InputError
    where they are none. `variation` is done to the first noise alone.
    """
    check_sigmas(sigmas)
    starts = _starts(profile, seeds, shape, variation or Variation())
    step: NoiseFn = _no_noise
    if sampler.noise == "ancestral" or sampler.name in profile.plain_noise:
        step = _Ancestral(profile, seeds, shape)
    elif sampler.noise == "brownian":
        step = _Brownian(profile, seeds, shape, sigmas, sampler)
    return Noise(starts, step, device)


def start(
    source: Noise, sigmas: Sequence[float], table: SigmaTable, profile: Profile, sampler: str = "", schedule: str | None = None
) -> Tensor:
    """The first x (B, 4, h, w) at sigmas[0]: unit noise times `start_scale`."""
    noise = source.first()
    return noise * start_scale(sigmas, table, profile, sampler, schedule).to(noise.device)


def start_scale(sigmas: Sequence[float], table: SigmaTable, profile: Profile, sampler: str = "", schedule: str | None = None) -> Tensor:
    """sigma, or sqrt(1 + sigma²), which is what training ends at, of sigmas[0].

    By the profile's start_noise: "sqrt1p-if-full" takes the latter where sigmas[0] is the table's last, "by-spacing" unless its spacing,
    or the schedule, goes to the table's end (diffusers); solvers in its `scaled` always do, as unit noise is their first x.
    """
    sigma = torch.tensor(sigmas[0])
    full = sigmas[0] >= table.high * (1 - 1e-5)
    short = profile.spacing in ("leading", "legacy") and schedule != "trailing"
    one_more = {"sigma": False, "sqrt1p": True, "sqrt1p-if-full": full, "by-spacing": short}
    if one_more[profile.start_noise] or sampler in profile.scaled:
        sigma = (1 + sigma**2).sqrt()
    return sigma


def leave(x: Tensor, sigmas: Sequence[float], profile: Profile, sampler: str) -> Tensor:
    """The latents of a run that ended at `x`: that, or, if the sampler is one of the profile's `scaled`, x as such a one leaves it.

    Only a list that ends above 0 makes a difference.
    """
    return x / math.sqrt(1 + sigmas[-1] ** 2) if sampler in profile.scaled else x


class _Ancestral:
    """Independent draws, one a step."""

    def __init__(self, profile: Profile, seeds: Sequence[int], shape: Shape) -> None:
        rule = profile.ancestral_rng
        continued = rule == "continued" and profile.ensd == 0
        added = {"same-seed": 0, "next-seed": 1, "continued": profile.ensd, "flipped": 0}[rule]
        flipped = _LOW_BITS if rule == "flipped" else 0
        self._streams = _streams(profile, [((seed + added) % _SEEDS) ^ flipped for seed in seeds], shape)
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


def _starts(profile: Profile, seeds: Sequence[int], shape: Shape, variation: Variation) -> list[_Draw]:
    """The first draw of each part, as the variation has it."""
    drawn = (*shape[-3:-2], *(variation.size or shape[-2:]))  # (4, h, w)
    kinds = (seeds, shape), (seeds, drawn), (variation.seeds or seeds, drawn)
    own, base, other = ([partial(stream.draw, 0) for stream in _streams(profile, *kind)] for kind in kinds)
    return [_Varied(*draws, variation) for draws in zip(own, base, other, strict=True)]


def _streams(profile: Profile, seeds: Sequence[int], shape: Shape) -> list[_Stream]:
    parts = _parts(seeds, shape, whole=profile.batch_noise == "one-draw")
    return [_STREAMS[profile.rng](seed, part) for seed, part in parts]


def _parts(seeds: Sequence[int], shape: Shape, *, whole: bool) -> list[tuple[int, Shape]]:
    """(seed, shape) of what is drawn together: each image with its seed, or the whole batch with the first."""
    image = shape[-3:]  # (4, h, w)
    return [(seeds[0], (len(seeds), *image))] if whole else [(seed, (1, *image)) for seed in seeds]
