"""The sinusoidal embedding of a number: Fourier features with geometric frequencies, cosine half first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm.ops.activation import steady


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """values (N,) -> (N, dim) float32: cos then sin of value * 10000^(-i / half), i = 0 .. half - 1.

    Source: generative-models `sgm/modules/diffusionmodules/util.py`, timestep_embedding; computed in float32 as there.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)  # (N, half)
    return torch.cat([steady(torch.ops.aten.cos, angles), steady(torch.ops.aten.sin, angles)], dim=-1)
