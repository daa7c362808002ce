"""How the weights of a prompt act on a tower's hidden states: a profile's `weighting`. Weight 1 leaves every bit alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["interpolate-empty", "scale-mean", "none"]


def weigh(
    hidden: Sequence[Tensor], weights: Sequence[Tensor], times: Sequence[int], rule: Weighting, empty: Callable[[], Tensor]
) -> list[Tensor]:
    """States (n, 77, W) of texts that belong together, and weights (n, 77) -> states, weighted.

    "interpolate-empty": the token's state moved along the line from that of the empty prompt at its place, which `empty` gives, (1, 77, W)
    (ComfyUI `comfy/sd1_clip.py`). "scale-mean": the state times its weight, then each chunk scaled so that its mean over all texts, each
    counted as often as `times` says, is what it was (stable-diffusion-webui `modules/sd_emphasis.py`).
    """
    if rule == "none" or all(bool((each == 1).all()) for each in weights):
        return list(hidden)
    if rule == "interpolate-empty":
        ground = empty()
        return [torch.where(w[..., None] == 1, h, ground + (h - ground) * w[..., None]) for h, w in zip(hidden, weights, strict=True)]
    scaled = [h * w[..., None] for h, w in zip(hidden, weights, strict=True)]
    ratios = _means(hidden, times) / _means(scaled, times)  # (n,), exactly 1 where no weight is another
    return [each * ratios[:, None, None] for each in scaled]


def _means(hidden: Sequence[Tensor], times: Sequence[int]) -> Tensor:
    """The mean (n,) of each chunk over texts, places and features."""
    if len(hidden) == 1:
        return hidden[0].mean(dim=(1, 2))
    total = sum(each.double().mean(dim=(1, 2)) * count for each, count in zip(hidden, times, strict=True))
    return (torch.as_tensor(total) / sum(times)).float()
