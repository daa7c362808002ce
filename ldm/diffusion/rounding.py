"""Floats that a tensor's dtype represents exactly.

A Brownian path is rough: it moves by about sqrt(d) when its time moves by d, so one last bit of a sigma changes a
stochastic picture by 1e-3. Every sigma therefore is a Python float that float32 holds exactly, and the few numbers that
are derived from sigmas and handed on as sigmas are made here, by the float32 operations that other engines use.
"""

from __future__ import annotations

import torch


def nearest(value: float, dtype: torch.dtype = torch.float32) -> float:
    """The number nearest to `value` that `dtype` holds."""
    return float(torch.tensor(value, dtype=dtype))


def midpoint(sigma: float, sigma_next: float, dtype: torch.dtype = torch.float32) -> float:
    """The geometric mean of two sigmas > 0: half way in t = -log(sigma), each operation rounded to `dtype`."""
    return between(sigma, sigma_next, 0.5, dtype)


def between(sigma: float, sigma_next: float, share: float, dtype: torch.dtype = torch.float32) -> float:
    """The sigma that is `share` of the way from one to another, both > 0, in t = -log(sigma), each operation rounded to `dtype`."""
    t, t_next = _time(sigma, dtype), _time(sigma_next, dtype)
    return float((t + (t_next - t) * share).neg().exp())


def log_trip(sigma: float) -> float:
    """exp(log(sigma)) in float32: `sigma`, or one of its neighbours. A solver written in log time asks for these."""
    return float(_time(sigma, torch.float32).neg().exp()) if sigma > 0 else sigma


def _time(sigma: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(sigma, dtype=dtype).log().neg()
