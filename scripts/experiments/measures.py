"""Measures of pictures, latents and features, in numpy alone. Pixels are (H, W, 3) of 0 to 255."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.evaluate import standing_out, whole

FINE = 0.25  # cycles a pixel: half of what a grid of pixels can hold
Pair = list[float | None]  # a mean and its standard error


def mean(values: Sequence[float]) -> Pair:
    """With the standard error of the mean, where there are values for one."""
    if not len(values):
        return [None, None]
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return [float(np.mean(values)), error]


def luminance(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...): Y of BT.601."""
    return pixels @ np.array([0.299, 0.587, 0.114])


def colour_axes(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) -> (..., 3): Y, Cb and Cr of BT.601, the last two around 0."""
    y = luminance(pixels)
    return np.stack([y, (pixels[..., 2] - y) * 0.564, (pixels[..., 0] - y) * 0.713], axis=-1)


def offset(pixels: np.ndarray) -> tuple[float, float] | None:
    """How far the middle of what stands out lies from the picture's: (down, right) in pixels; None where nothing stands out."""
    box = whole(standing_out(pixels))
    if box is None:
        return None
    return (box[1] + box[3] - pixels.shape[0]) / 2, (box[0] + box[2] - pixels.shape[1]) / 2


def sharpness(pixels: np.ndarray) -> tuple[float, float]:
    """The root mean square difference of neighbours' luminance, and the share of its variance above FINE cycles a pixel.

    The mean absolute difference would not do: over an edge it is the same however wide the edge is blurred.
    """
    y = luminance(pixels)
    gradient = np.sqrt((np.square(np.diff(y, axis=0)).mean() + np.square(np.diff(y, axis=1)).mean()) / 2)
    power = np.abs(np.fft.fft2(y - y.mean())) ** 2
    down, right = (np.fft.fftfreq(side) for side in y.shape)
    fine = np.hypot(down[:, None], right[None, :]) > FINE
    return float(gradient), float(power[fine].sum() / max(power.sum(), 1e-9))


def spread(points: np.ndarray) -> float:
    """(N, ...) -> the mean over all pairs of the root of the mean squared difference."""
    flat = points.reshape(len(points), -1)
    return float(np.mean([np.sqrt(np.square(a - b).mean()) for k, a in enumerate(flat) for b in flat[:k]]))


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The squared Frechet distance of Gaussians fitted to (N, D) and (M, D) (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); the last trace is that of (R S2 R)^(1/2) with R the root of S1.
    """
    (m1, s1), (m2, s2) = ((each.mean(axis=0), np.cov(each, rowvar=False)) for each in (one, other))
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    crossed = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - 2 * crossed)


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of a linear map from x (N, D) to y (N,), fitted on the first half and measured on the second."""
    padded, half = np.column_stack([x, np.ones(len(x))]), len(x) // 2
    weights = np.linalg.lstsq(padded[:half], y[:half], rcond=None)[0]
    rest = y[half:]
    return float(1 - np.square(rest - padded[half:] @ weights).sum() / max(np.square(rest - rest.mean()).sum(), 1e-12))
