"""Every random choice of training as a function of (seed, step), so that a resumed run needs no saved generators."""

from __future__ import annotations

import torch


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
