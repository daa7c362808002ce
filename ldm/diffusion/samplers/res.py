"""Refined exponential solver (Zhang et al. 2023, arXiv 2308.02157), in t = -log(sigma), for the data prediction x0."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk


def res_multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None) -> Iterator[Step]:
    """The second-order multistep method: x0 on the line through the last two, integrated exactly; the first step is Euler's.

    Over a step of length h in t: e^(-h) x + (1 - e^(-h)) x0 + h² phi_2(-h) x0', with phi_2(z) = (e^z - 1 - z) / z².
    """
    past: deque[Step] = deque(maxlen=1)

    def advance(s: Step) -> Tensor:
        last = past.pop() if past else None
        past.append(s)
        out = toward(s.x0, s.x, s.sigma_next / s.sigma)
        if last is None:
            return out
        h = math.log(s.sigma / s.sigma_next)
        return out + (s.x0 - last.x0) * ((h + math.expm1(-h)) / math.log(last.sigma / last.sigma_next))

    return walk(denoise, x, sigmas, advance)
