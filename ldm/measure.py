"""The one measure of agreement between two tensors, for tests, scripts and published figures."""

from __future__ import annotations

from torch import Tensor


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """norm(ours - reference) / norm(reference) over the whole tensor, summed in float64. Shapes must be equal."""
    if ours.shape != reference.shape:
        raise ValueError(f"shapes differ: {tuple(ours.shape)} and {tuple(reference.shape)}")
    difference = (ours.double() - reference.double()).norm()
    return float(difference / reference.double().norm())
