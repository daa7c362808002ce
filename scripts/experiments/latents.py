"""The experiment on the VAE alone: what its latents' channels mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.train.data import to_tensor
from scripts.experiments.common import Asked, Found, Table, sheet
from scripts.experiments.measures import colour_axes, explained

AT_ONCE = 32
LEAST = 0.1  # of a variance: below it a channel is not said to mean anything
TARGETS = ("luminance (Y)", "yellow to blue (Cb)", "cyan to red (Cr)", "lighter on the right", "lighter below", "contrast")


def latents(asked: Asked) -> Found:
    images = np.stack([asked.composer.sample(k).image for k in range(asked.count)])
    z = encoded(asked, images)
    x, y = np.moveaxis(z, 1, -1).reshape(-1, z.shape[1]), cells(images, asked.pipeline.family.downscale).reshape(-1, len(TARGETS))
    rows, said = [], []
    for at, target in enumerate(TARGETS):
        alone = [explained(x[:, k : k + 1], y[:, at]) for k in range(x.shape[1])]
        rows.append([target, *alone, explained(x, y[:, at])])
        said.append(f"{target} {f'channel {int(np.argmax(alone))}' if max(alone) >= LEAST else 'none'} ({max(alone):.2f})")
    head = ["R² of", *(f"channel {k}" for k in range(x.shape[1])), "all together"]
    shown = [[image.astype(np.float32), *grey(each)] for image, each in zip(images[:3], z[:3], strict=True)]
    best = f"The best channel for each alone, where its R² is {LEAST} or more: {'; '.join(said)}."
    figure = sheet(shown, heads=["picture", *head[1:-1]])
    return Found([Table(head, rows)], best, figure, "Pictures of the data, and the channels of their latents in grey.")


def encoded(asked: Asked, images: np.ndarray) -> np.ndarray:
    """(N, C, h, w)"""
    parts: list[Tensor] = [
        asked.pipeline.encode_image(to_tensor(images[first : first + AT_ONCE]).to(asked.pipeline.device))
        for first in range(0, len(images), AT_ONCE)
    ]
    return torch.cat([part.float().cpu() for part in parts]).numpy().astype(np.float64)


def cells(images: np.ndarray, side: int) -> np.ndarray:
    """(N, H, W, 3) -> (N, H / side, W / side, 6), of each cell: the means of Y, Cb and Cr; how much lighter its right half is
    than its left one, its lower half than its upper one; the standard deviation of its Y.
    """
    count, height, width, _ = images.shape
    axes = colour_axes(images.astype(np.float64)).reshape(count, height // side, side, width // side, side, 3).swapaxes(2, 3)
    y, half = axes[..., 0], side // 2  # (N, h, w, side, side)
    right, below = y[..., half:] - y[..., :half], y[..., half:, :] - y[..., :half, :]
    inner = [each.mean(axis=(3, 4)) for each in (right, below)] + [y.std(axis=(3, 4))]
    return np.concatenate([axes.mean(axis=(3, 4)), np.stack(inner, axis=-1)], axis=-1)


def grey(z: np.ndarray) -> Sequence[np.ndarray]:
    """The channels (C, h, w), each as a picture of its whole range."""
    spans = [(channel - channel.min()) / max(float(np.ptp(channel)), 1e-9) * 255 for channel in z]
    return [np.repeat(span[..., None], 3, axis=-1) for span in spans]
