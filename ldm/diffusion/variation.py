"""Start noise on the way from one seed's to another's, and start noise of another size. Both after AUTOMATIC1111's `modules/rng.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PARALLEL = 0.9995  # mean cosine from which on there is no way along the sphere worth the name


@dataclass(frozen=True, slots=True)
class Variation:
    """What is done to the first noise of each image; later draws stay those of its seed."""

    seeds: Sequence[int] = ()  # one an image: where the way leads to
    strength: float = 0.0  # how far it is gone, 0 to 1; 0: not at all
    size: tuple[int, int] | None = None  # (h, w) of the latents that the noise is drawn for, before it is put into the middle


def slerp(strength: float, low: Tensor, high: Tensor) -> Tensor:
    """Between two noises (B, 4, h, w), column by column of each channel, so that lengths stay those of noise (Shoemake 1985).

    The weights are those of the angle between two columns, each h long; where it has no sine, or both noises are one, the way is straight.
    """
    cosine = (_unit(low) * _unit(high)).sum(2, keepdim=True).clamp(-1, 1)  # (B, 4, 1, w)
    if float(cosine.mean()) > _PARALLEL:
        return low * strength + high * (1 - strength)  # in this order
    angle = cosine.acos()
    sine = angle.sin()
    curved = (((1 - strength) * angle).sin() / sine) * low + ((strength * angle).sin() / sine) * high
    return torch.where(sine > 0, curved, (1 - strength) * low + strength * high)


def _unit(noise: Tensor) -> Tensor:
    return noise / noise.norm(dim=2, keepdim=True)


def centred(inner: Tensor, outer: Tensor) -> Tensor:
    """`outer` (B, 4, h, w) with `inner`, of another size, in its middle, cut where it is larger: half of the rest, rounded down, before it.

    A side that is larger by an odd number loses one more than half of that on each side.
    """
    out = outer.clone()
    (rows, from_rows), (columns, from_columns) = (_overlap(inner.shape[axis], outer.shape[axis]) for axis in (2, 3))
    out[:, :, rows, columns] = inner[:, :, from_rows, from_columns]
    return out


def _overlap(inner: int, outer: int) -> tuple[slice, slice]:
    """Where a side of `inner` comes to lie on a side of `outer`, and which part of it does."""
    before = (outer - inner) // 2  # below 0 where the inner one is larger
    length = inner + 2 * min(before, 0)
    to, since = max(before, 0), max(-before, 0)
    return slice(to, to + length), slice(since, since + length)
