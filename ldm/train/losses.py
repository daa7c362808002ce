"""The losses of the three stages, each with its equation. Every one returns a scalar float32 tensor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Weighting = Literal["none", "min-snr", "debiased"]


def noised(z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x = (z + sigma noise) / sqrt(1 + sigma^2): the network's input at noise level sigma (B,); variance one for z of variance one."""
    s = sigma.view(-1, 1, 1, 1)
    return (z + s * noise) / (1 + s**2).sqrt()


def target(z: Tensor, noise: Tensor, sigma: Tensor, prediction: Literal["epsilon", "v"]) -> Tensor:
    """What the network predicts: the noise, or v = (noise - sigma z) / sqrt(1 + sigma^2) (Salimans and Ho 2022, appendix D)."""
    s = sigma.view(-1, 1, 1, 1)
    return noise if prediction == "epsilon" else (noise - s * z) / (1 + s**2).sqrt()


def level_weight(kind: Weighting, sigma: Tensor, gamma: float, prediction: Literal["epsilon", "v"]) -> Tensor:
    """How much each noise level counts; SNR = 1 / sigma^2.

    "none": 1. "min-snr": min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v (Hang et al. 2023, section 3.4).
    "debiased": 1 / sqrt(SNR) (Yu et al. 2023, "Debias the training of diffusion models"), half way from the squared error of the noise
    to that of x0, which is 1 / SNR of it; for v the same after its own factor, 1 / (SNR + 1), where sd-scripts takes this factor alone.
    """
    snr = sigma**-2
    own = snr if prediction == "epsilon" else snr + 1
    return {"none": torch.ones_like(snr), "min-snr": snr.clamp(max=gamma) / own, "debiased": snr.sqrt() / own}[kind]


def diffusion_loss(predicted: Tensor, wanted: Tensor, weight: Tensor, huber: float = 0.0) -> Tensor:
    """Mean squared error d^2, picture by picture times `weight` (B,).

    With `huber` = c > 0 the pseudo-Huber loss 2 c (sqrt(d^2 + c^2) - c) instead, which is d^2 for small d and 2 c |d| for large ones
    (Charbonnier et al. 1997; Khrapov et al. 2024 for diffusion).
    """
    squares = (predicted.float() - wanted.float()).square()
    if huber:
        squares = 2 * huber * squares / ((squares + huber**2).sqrt() + huber)  # the same, without the difference of what is nearly equal
    return (squares.mean(dim=(1, 2, 3)) * weight).mean()


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), the mean over all latents (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def gradient_loss(image: Tensor, wanted: Tensor) -> Tensor:
    """L1 distance of the differences between neighbouring pixels, down and across: blurred edges cost."""
    difference = image - wanted
    return (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean() + (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean()


def contrastive_loss(pictures: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over all pairs of a batch; features (B, D) are normalised here (Radford et al. 2021, figure 3)."""
    logits = scale * F.normalize(pictures.float(), dim=-1) @ F.normalize(captions.float(), dim=-1).T  # (picture, caption)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
