"""Every random choice of training as a function of (seed, step), so that a resumed run needs no saved generators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def order(seed: int, step: int, batch: int, count: int) -> Tensor:
    """The rows of one step's batch: whole passes over `count` rows, each in an order of its own."""
    wanted = np.arange(step * batch, (step + 1) * batch)
    passes = {number: np.random.default_rng([seed, 2, int(number)]).permutation(count) for number in np.unique(wanted // count)}
    return torch.tensor([passes[i // count][i % count] for i in wanted])
