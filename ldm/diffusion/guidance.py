"""Classifier-free guidance as a combinator over a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) -> x0


class Guidance:
    """`denoise(x, sigma) -> x0` moved away from the unconditional prediction (Ho and Salimans 2022, eq. 6).

    x of B rows becomes one batch of 2B rows for the inner denoiser: the unconditional rows first, or after the conditional
    ones when `order` is "cond-first". A scale of 1 asks it for the B conditional rows alone. `rescale` in [0, 1] draws the
    spread of the result back to the conditional one's (Lin et al. 2023, eq. 14 to 16). Several `weights` are as many conditionings
    side by side: the conditional prediction is the unconditional one moved by each, as far as its weight says (Liu et al. 2022, eq. 11).
    `uncond`: the unconditional x0 of the last call; None before the first and when the scale is 1, unless `both` asks for it there too.
    """

    def __init__(
        self,
        denoise: Denoise,
        scale: float,
        *,
        order: Literal["uncond-first", "cond-first"] = "uncond-first",
        rescale: float = 0.0,
        both: bool = False,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self._denoise = denoise
        self._scale = scale
        self._uncond_first = order == "uncond-first"
        self._rescale = rescale
        self._weights = tuple(weights)
        self._both = both or scale != 1 or self._weights != (1,)
        self.uncond: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """x (B, 4, h, w) -> x0, same shape and dtype."""
        if not self._both:
            return self._denoise(x, sigma)
        count = len(self._weights) + 1
        answers = self._denoise(torch.cat([x] * count), sigma).chunk(count)
        uncond, conds = (answers[0], answers[1:]) if self._uncond_first else (answers[-1], answers[:-1])
        cond = conds[0] if self._weights == (1,) else self._composed(uncond, conds)
        self.uncond = uncond
        guided = uncond + (cond - uncond) * self._scale
        return _rescaled(guided, cond, x, sigma, self._rescale) if self._rescale else guided

    def picture(self, k: int, count: int) -> Guidance:
        """The same for picture k of `count` alone: x of 1 row."""
        alone = copy(self)
        rows: Callable[[Sequence[int]], Denoise] | None = getattr(self._denoise, "rows", None)
        if rows is not None:
            alone._denoise = rows([k + side * count for side in range(len(self._weights) + 1)] if self._both else [k])
        return alone

    def _composed(self, uncond: Tensor, conds: Sequence[Tensor]) -> Tensor:
        moves = [(cond - uncond) * weight for cond, weight in zip(conds, self._weights, strict=True)]
        return uncond + torch.stack(moves).sum(0)


def _rescaled(guided: Tensor, cond: Tensor, x: Tensor, sigma: float, amount: float) -> Tensor:
    """`guided` with `amount` of its velocity's spread replaced by that of `cond`; the spread is taken over each image.

    Velocity is (x / (sigma² + 1) - x0) * sqrt(sigma² + 1) / sigma, whatever the network predicts.
    """
    root = math.sqrt(sigma**2 + 1)
    mean, factor = x / root**2, root / sigma
    v_guided, v_cond = (mean - guided) * factor, (mean - cond) * factor
    ratio = v_cond.std(dim=(1, 2, 3), keepdim=True) / v_guided.std(dim=(1, 2, 3), keepdim=True)
    return mean - v_guided * (amount * ratio + (1 - amount)) / factor
