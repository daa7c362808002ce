"""UniPC (Zhao et al. 2023): each prediction of x0 also corrects the step that led to it, at no more evaluations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from ldm.diffusion.samplers.integrals import lagrange, phi
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk

NEAR_ZERO = 0.001  # where ComfyUI's list ends instead of at 0
Scale = Callable[[float], float]  # B(h), section 3.1, of -h


def unipc(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None, *, second: bool = False) -> Iterator[Step]:
    """With B(h) = h: see `_unipc`."""
    return _unipc(denoise, x, sigmas, lambda z: z, second=second)


def unipc_bh2(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn | None = None, *, second: bool = False
) -> Iterator[Step]:
    """With B(h) = exp(h) - 1: see `_unipc`."""
    return _unipc(denoise, x, sigmas, math.expm1, second=second)


def _unipc(denoise: Denoise, x: Tensor, sigmas: Sequence[float], scale: Scale, *, second: bool) -> Iterator[Step]:
    """Algorithms 5 and 6 on x0, order 3, in the last steps less; the last step goes to NEAR_ZERO where the list says 0 (ComfyUI).

    If `second`, order 2 and to 0 (diffusers).
    """
    steps = len(sigmas) - 1
    most = 2 if second else max(1, min(3, steps - 1))
    past: deque[Step] = deque(maxlen=3)  # newest first; their x is the corrected one

    def advance(s: Step) -> Tensor:
        if past:
            s = s._replace(x=_moved(past, s.sigma, _order(s.i, steps, most), scale, s.x0))
        past.appendleft(s)
        end = s.sigma_next or NEAR_ZERO
        return s.x0 if end >= s.sigma else _moved(past, end, _order(s.i + 1, steps, most), scale)

    return walk(denoise, x, sigmas, advance, denoised_last=second)


def _order(k: int, steps: int, most: int) -> int:
    """Of the step that ends at sigma number k: it grows with the past and shrinks towards the end."""
    return min(most, k, steps + 1 - k)


def _moved(past: Sequence[Step], end: float, order: int, scale: Scale, x0_end: Tensor | None = None) -> Tensor:
    """From past[0] to sigma `end` by the `order` newest predictions (eq. 3), and, if given, by that at the end (eq. 5)."""
    s = past[0]
    h = math.log(s.sigma / end)
    ratios = [math.log(s.sigma / old.sigma) / h for old in list(past)[1:order]]
    changes = [(old.x0 - s.x0) / r for old, r in zip(list(past)[1:order], ratios, strict=True)]
    out = toward(s.x0, s.x, end / s.sigma)
    if x0_end is not None:
        ratios, changes = [*ratios, 1.0], [*changes, x0_end - s.x0]
    for share, change in zip(shares(ratios, -h, scale, final=x0_end is not None), changes, strict=True):
        out = out - change * (scale(-h) * share)
    return out


def shares(ratios: Sequence[float], z: float, scale: Scale, *, final: bool) -> list[float]:
    """The solution of eq. 4: the vector that integrates the powers of u from 1 on exactly, given the changes over u at `ratios`.

    With one unknown it is 1/2, which is the limit for small steps: of order 1 for the corrector, 2 for the predictor (the authors' code).
    """
    if len(ratios) <= 1:
        return [0.5] * len(ratios)
    right = [math.factorial(p + 1) * z * phi(p + 2, z) / scale(z) for p in range(len(ratios))]
    return [sum(c * b for c, b in zip(lagrange(ratios, k), right, strict=True)) for k in range(len(ratios))]
