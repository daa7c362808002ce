"""Non-finite values are found at the step where they arose, without waiting for the device at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.diffusion.samplers.loop import Step
from ldm.errors import NumericError


class Guard:
    """Sees every step, and says at the end which was the first that went wrong."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = sigmas
        self._finite: list[Tensor] = []  # a flag a step, on the device

    def see(self, step: Step) -> None:
        self._finite.append(step.x0.isfinite().all() & step.x.isfinite().all())

    def check(self) -> None:
        """Raises NumericError with the first step whose result or prediction is not finite."""
        good = torch.stack(self._finite).tolist() if self._finite else []
        if not all(good):
            step = good.index(False)
            where = f"step {step + 1} of {len(self._sigmas) - 1} (sigma {self._sigmas[step]:.4g})"
            raise NumericError(f"sampling: values that are not finite at {where}: try --dtype float32 or another file")
