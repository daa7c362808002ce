"""From a network that predicts noise or velocity to `denoise(x, sigma) -> x0`: the one place where the two meet.

Outside, x is data + sigma * noise in float32. Inside, the network sees x scaled to unit variance and a training step t, in
whatever dtype it computes; what it returns comes back to x's dtype here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal

from torch import Tensor

from ldm.diffusion.schedules import SigmaTable
from ldm.errors import InputError

Predict = Callable[[Tensor, float], Tensor]  # (x scaled (N, 4, h, w), t) -> eps or v, (N, 4, h, w) of any float dtype


class Denoiser:
    """`denoise(x, sigma) -> x0` around `predict(x_in, t)`, which is all that is known of the network.

    `prediction` is "epsilon" (noise; Ho et al. 2020) or "v" (velocity; Salimans and Ho 2022, section 4). `timestep` is the
    profile's rule of SigmaTable.locate. N rows go in, N come out; nothing is remembered between calls. Epsilon with a table of zero
    terminal SNR is an InputError: at its last step x is noise alone, and x - sigma * eps the difference of two equal numbers.
    """

    def __init__(self, predict: Predict, table: SigmaTable, prediction: Literal["epsilon", "v"], timestep: str) -> None:
        if table.zero_terminal and prediction != "v":
            raise InputError(f"prediction {prediction!r} with zero terminal SNR: it needs v-prediction: take the model's own schedule")
        self._predict = predict
        self._table = table
        self._velocity = prediction == "v"
        self._rule = timestep

    def time(self, sigma: float) -> float:
        """The training step that the network is given at `sigma`."""
        return self._table.locate(sigma, self._rule)[0]

    def rows(self, picked: Sequence[int]) -> Denoiser:
        """The same for some of the rows alone, by number: x of as many rows."""
        alone = copy(self)
        rows: Callable[[Sequence[int]], Predict] | None = getattr(self._predict, "rows", None)
        if rows is not None:
            alone._predict = rows(picked)
        return alone

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """x (N, 4, h, w) at noise level `sigma` > 0 -> x0, same shape and dtype."""
        t, sigma = self._table.locate(sigma, self._rule)
        scale = 1 / math.sqrt(sigma**2 + 1)  # c_in: brings data + sigma * noise to unit variance
        out = self._predict(x * scale, t)
        if self._velocity:  # x / sqrt(sigma² + 1) = cos·z + sin·eps and v = cos·eps - sin·z, so z = cos·(...) - sin·v
            return x * scale**2 - out * (sigma * scale)
        return x - out * sigma
