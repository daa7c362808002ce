"""The model's sigma table: the noise level of every training step, and the way between sigma and t."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.errors import InputError

STEPS = 1000  # of the training process; t runs from 0 to STEPS - 1
LAST_ALPHA = 4.8973451890853435e-08  # of a schedule with zero terminal SNR: sigma 4518
_BETAS = (0.00085, 0.012)  # scaled linear: evenly spaced in sqrt(beta)
_DTYPES = {  # of the betas, and of the alphas that are cumulated from them
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float64, torch.float32),
    "float32-betas": (torch.float32, torch.float32),
    "float16": (torch.float64, torch.float16),
}


class SigmaTable:
    """sigma of every training step, and the way between sigma and t.

    `sigmas` and `log_sigmas`: (1000,) float32, ascending. `low`, `high`: the ends as floats.
    `alphas` names the precision of the cumulated alphas, in which engines differ: "float64", "float32", "float16", or "float32-betas"
    where all is float32 from the betas on (diffusers).
    `zero_terminal` rescales them so that the last step is noise alone but for LAST_ALPHA, as ComfyUI does it; float16 has no number
    there but 2^-24 and 0, so the two together are an InputError.
    """

    def __init__(self, alphas: str = "float64", *, zero_terminal: bool = False) -> None:
        if zero_terminal and alphas == "float16":
            raise InputError("alphas 'float16' cannot hold a schedule with zero terminal SNR: take --set alphas=float32")
        self.zero_terminal = zero_terminal
        start, end = (math.sqrt(beta) for beta in _BETAS)
        first, cumulated = _DTYPES[alphas]
        betas = torch.linspace(start, end, STEPS, dtype=first) ** 2
        alphas_bar = (1 - betas).cumprod(0).to(cumulated)
        if zero_terminal:
            alphas_bar = _rescaled(alphas_bar)
        sigmas = ((1 - alphas_bar) / alphas_bar) ** 0.5
        self.sigmas = sigmas.float()
        self.log_sigmas = sigmas.log().float()
        self.low, self.high = float(self.sigmas[0]), float(self.sigmas[-1])

    def at(self, t: Tensor) -> Tensor:
        """sigma at steps t (n,), by linear interpolation in log sigma."""
        return _interpolate(self.log_sigmas, t).exp()

    def at_linear(self, t: Tensor) -> Tensor:
        """sigma at steps t (n,), by linear interpolation in sigma; a whole t gives the table's own value."""
        return _interpolate(self.sigmas, t)

    def locate(self, sigma: float, rule: str) -> tuple[float, float]:
        """(t, sigma to denoise with) by one of these rules, all but the last of which keep sigma:

        "float": t between two entries, linear in log sigma; "float-linear": linear in sigma; "entry-or-float": the entry of that sigma, or
        the first rule where there is none; "floor": the first rule, cut to a whole number; "nearest-log": the entry nearest in log sigma;
        "nearest-snap": the entry nearest in sigma, and its sigma.
        """
        value = torch.tensor(sigma, dtype=torch.float32)
        if rule == "entry-or-float" and bool((hits := self.sigmas == value).any()):
            return float(hits.int().argmax()), sigma
        if rule in ("float", "entry-or-float"):
            return _between(self.log_sigmas, value.log()), sigma
        if rule == "float-linear":
            return _between(self.sigmas, value), sigma
        if rule == "floor":  # in float64, where the table's last entry itself is a rounding below 999
            return float(math.floor(_between(self.log_sigmas.double(), value.double().log()))), sigma
        if rule == "nearest-log":
            return float((value.log() - self.log_sigmas).abs().argmin()), sigma
        if rule != "nearest-snap":
            raise ValueError(f"no rule {rule!r} from sigma to t")
        index = int((value - self.sigmas).abs().argmin())
        return float(index), float(self.sigmas[index])


def _between(levels: Tensor, value: Tensor) -> float:
    """Where `value` lies among ascending `levels` (1000,): the index, with its fraction."""
    index = int((levels <= value).sum().sub(1).clamp(0, STEPS - 2))
    low, high = levels[index], levels[index + 1]
    w = ((low - value) / (low - high)).clamp(0, 1)
    return float((1 - w) * index + w * (index + 1))


def _rescaled(alphas_bar: Tensor) -> Tensor:
    """Lin et al. 2023, algorithm 1, on cumulated alphas (1000,); the last is not 0, as no sigma would be finite."""
    roots = alphas_bar.sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    squares = roots**2
    squares[-1] = LAST_ALPHA
    return squares


def _interpolate(levels: Tensor, t: Tensor) -> Tensor:
    t = t.clamp(0, STEPS - 1)
    w = t.frac()
    return (1 - w) * levels[t.floor().long()] + w * levels[t.ceil().long()]
