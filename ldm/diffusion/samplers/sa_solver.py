"""SA-Solver (Xue et al. 2023): Adams' predictor and corrector for the SDE whose noise is scaled by tau."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.diffusion.samplers.integrals import lagrange, moment
from ldm.diffusion.samplers.loop import Denoise, NoiseFn, Step, toward, walk

if TYPE_CHECKING:
    from ldm.diffusion.table import SigmaTable

Tau = Callable[[float, float], float]  # (sigma, sigma_next) -> tau of that step


@dataclass(frozen=True)
class Rules:
    """What engines choose: the orders, where there is noise, and how order 2 is written."""

    predictor: int
    corrector: int
    tau: Tau
    late: int  # the predictor's order is at most the number of steps that are left after this one, plus `late`, on the way to 0
    simple: bool = False  # order 2 with half a step's weight for the change (appendix D), which differs in the third power of the step
    draws_always: bool = False  # also where tau is 0: later draws are then others


def comfyui_rules(table: SigmaTable) -> Rules:
    """Orders 3 and 4; noise in steps that end between 20 and 80 % of the training steps."""
    low, high = table.at(torch.tensor([0.2, 0.8]) * (len(table.sigmas) - 1)).tolist()
    return Rules(3, 4, lambda sigma, sigma_next: float(low <= sigma_next <= high), late=0)


def diffusers_rules(table: SigmaTable) -> Rules:
    """Orders 2 and 2, simple; noise in steps that start at training steps 200 to 800."""

    def tau(sigma: float, sigma_next: float) -> float:
        return float(200 <= table.locate(sigma, "nearest-log")[0] <= 800)

    return Rules(2, 2, tau, late=1, simple=True, draws_always=True)


def sa_solver(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: NoiseFn, *, rules: Rules | None = None) -> Iterator[Step]:
    """Algorithm 1, on x0: predicted by eq. 14, then, when x0 is known there, corrected by eq. 17 with the same noise."""
    from ldm.diffusion.table import SigmaTable

    run = _Run(sigmas, noise, rules or comfyui_rules(SigmaTable()))
    return walk(denoise, x, sigmas, run.advance)


@dataclass
class _Leg:
    """A step on the way from sigma to `end`."""

    x: Tensor
    sigma: float
    end: float
    tau: float
    noise: Tensor | None


@dataclass
class _Run:
    """The state of one run."""

    sigmas: Sequence[float]
    noise: NoiseFn
    rules: Rules
    past: deque[Step] = field(default_factory=lambda: deque(maxlen=4))  # newest first
    leg: _Leg | None = None
    drawn: Iterator[int] = field(default_factory=count)

    def advance(self, s: Step) -> Tensor:
        self.past.appendleft(s)
        left, to_zero = len(self.sigmas) - 2 - s.i, self.sigmas[-1] == 0
        x = s.x
        if self.leg is not None:
            most = left + 1 if to_zero and not self.rules.late else len(self.past)
            x = self._moved(self.leg, min(self.rules.corrector, len(self.past), most))
        tau = self.rules.tau(s.sigma, s.sigma_next)
        draw = self.rules.draws_always or tau
        fresh = self.noise(next(self.drawn), s.sigma, s.sigma_next) if draw else None
        self.leg = _Leg(x, s.sigma, s.sigma_next, tau, fresh)
        most = left + self.rules.late if to_zero or self.rules.late else len(self.past)
        return self._moved(self.leg, min(self.rules.predictor, len(self.past), most))

    def _moved(self, leg: _Leg, order: int) -> Tensor:
        """The end of `leg`, by the `order` newest predictions, which may lie before it or at its end."""
        used = list(self.past)[:order]
        h = math.log(leg.sigma / leg.end)
        c = (1 + leg.tau**2) * h
        at = [math.log(leg.sigma / old.sigma) / h for old in used]
        out = toward(used[0].x0, leg.x, math.exp(-c))
        for weight, old in list(zip(weights(at, c, simple=self.rules.simple), used, strict=True))[1:]:
            out = out + (old.x0 - used[0].x0) * weight
        if leg.noise is None or not leg.tau:
            return out
        return out + leg.noise * (leg.end * math.sqrt(-math.expm1(-2 * leg.tau**2 * h)))


def weights(at: Sequence[float], c: float, *, simple: bool = False) -> list[float]:
    """Of the predictions at `at`, in u from 0 to 1 over the step: the integrals of eq. 15 and 18, of c exp(-(1 - u) c) times Lagrange's."""
    moments = [moment(p, c) for p in range(len(at))]
    if simple and len(at) == 2:
        moments[1] = c / 2
    return [sum(a * b for a, b in zip(lagrange(at, j), moments, strict=True)) for j in range(len(at))]
