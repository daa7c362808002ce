"""Non-finite values are found at the step where they arose: at once on the CPU, at the end on a device, which is not waited for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.diffusion.samplers.loop import Step
from ldm.errors import NumericError

Denoise = Callable[[Tensor, float], Tensor]
REMEDY = "try --dtype float32 or another file"


class Guard:
    """Sees the text, every evaluation and every step of one run; the first of them that is not finite is a NumericError.

    On the CPU it is raised where it is seen. Elsewhere each look leaves one number on the device, and `check` reads them all at the end.
    `at_once` forces one of the two.
    """

    def __init__(self, sigmas: Sequence[float], *, at_once: bool | None = None) -> None:
        self._steps, self._done, self._at_once = len(sigmas) - 1, 0, at_once
        self._peaks: list[Tensor] = []  # the largest magnitude of each look: not finite where a value was not
        self._looks: list[str] = []

    def see_text(self, name: str, context: Tensor, vector: Tensor, widths: Sequence[int]) -> None:
        """Conditioning of the prompt `name` before the first step: context (B, 77n, D) of towers of `widths`, vector (B, V)."""
        for number, part in enumerate(context.split(list(widths), -1), 1):
            self._look(part, f"text encoding: non-finite in tower {number} of {len(widths)} for the {name}")
        if vector.numel():
            self._look(vector, f"text encoding: non-finite in the pooled vector of tower {len(widths)} for the {name}")

    def watch(self, denoise: Denoise) -> Watched:
        """`denoise`, each of its answers seen, and before it the unconditional half where there is one."""
        return Watched(denoise, self._see_prediction)

    def see(self, step: Step) -> None:
        """A step that is finished."""
        where = self._where(step.i, step.sigma)
        self._look(step.x0, f"{where}, in the prediction")
        self._look(step.x, f"{where}, in the solver's update")
        self._done = step.i + 1

    def check(self) -> None:
        """To be called at the end: raises NumericError with the first look that was not finite."""
        good = torch.stack(self._peaks).isfinite().tolist() if self._peaks else []
        if not all(good):
            raise _error(self._looks[good.index(False)])

    def _see_prediction(self, x0: Tensor, uncond: Tensor | None, sigma: float) -> None:
        where = self._where(self._done, sigma)
        if uncond is not None:
            self._look(uncond, f"{where}, in the unconditional prediction")
        self._look(x0, f"{where}, in the {'conditional ' if uncond is not None else ''}prediction")

    def _where(self, i: int, sigma: float) -> str:
        total = f" of {self._steps}" if i < self._steps else ""  # an adaptive sampler takes as many as it likes
        return f"sampling: non-finite at step {i + 1}{total} (sigma={sigma:.4g})"

    def _look(self, x: Tensor, words: str) -> None:
        peak = x.detach().abs().amax()  # NaN is the largest of all
        if x.device.type == "cpu" if self._at_once is None else self._at_once:
            if not math.isfinite(peak.item()):
                raise _error(words)
        else:
            self._peaks.append(peak.float())
            self._looks.append(words)


class Watched:
    """A denoiser under a guard's eyes; `uncond` is its own, for samplers that ask for it."""

    def __init__(self, denoise: Denoise, see: Callable[[Tensor, Tensor | None, float], None]) -> None:
        self._denoise, self._see = denoise, see

    @property
    def uncond(self) -> Tensor | None:
        return getattr(self._denoise, "uncond", None)

    def picture(self, k: int, count: int) -> Watched:
        """The same for picture k of `count` alone, where the denoiser tells them apart."""
        one: Callable[[int, int], Denoise] | None = getattr(self._denoise, "picture", None)
        return self if one is None else Watched(one(k, count), self._see)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        x0 = self._denoise(x, sigma)
        self._see(x0, self.uncond, sigma)
        return x0


def _error(words: str) -> NumericError:
    return NumericError(f"{words}: {REMEDY}")
