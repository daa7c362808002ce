"""The first stage: the autoencoder, on windows of composed pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ldm.models.vae import VAE, AttentionBlock, ResnetBlock
from ldm.train.data import Ahead, to_tensor
from ldm.train.draws import generator
from ldm.train.losses import gradient_loss, kl_loss
from ldm.train.optim import autocast

if TYPE_CHECKING:
    from ldm.train.data import Composer
    from ldm.train.recipe import Precision, Recipe

QUIET = -5.0  # the posterior's first log-variance: with 0 its noise would hide the picture for hundreds of steps
DRAWN = 2  # windows of a picture, of which the one that shows more is learned from: the background alone teaches little


class Weights(Protocol):
    """Of the parts of a VAE's loss, beside L1."""

    @property
    def gradient(self) -> float: ...

    @property
    def kl(self) -> float: ...


class Reconstruction:
    """L1 + gradient + KL: the windows (B, h, w, 3) uint8 of a step, reconstructed from one draw of the posterior."""

    def __init__(self, vae: VAE, windows: Callable[[int], np.ndarray], weights: Weights, seed: int, precision: Precision) -> None:
        self.module, self.windows, self.weights, self.seed, self.precision = vae, windows, weights, seed, precision

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        device = next(self.module.parameters()).device
        image = to_tensor(self.windows(step)).to(device)
        with autocast(device, self.precision):
            mean, logvar = (moment.float() for moment in self.module.encode(image))
            noise = torch.randn(mean.shape, generator=generator(self.seed, step)).to(device)
            decoded = self.module.decode(mean + (logvar / 2).exp() * noise).float()
        parts = {"l1": (decoded - image).abs().mean(), "gradient": gradient_loss(decoded, image), "kl": kl_loss(mean, logvar)}
        loss = parts["l1"] + self.weights.gradient * parts["gradient"] + self.weights.kl * parts["kl"]
        return loss, {name: float(value.detach()) for name, value in parts.items()} | {"pictures": len(image)}


def vae_task(vae: VAE, composer: Composer, recipe: Recipe, workers: int = 0) -> Reconstruction:
    """On composed pictures, which so many processes compose ahead."""
    convert_conv2d_weight_memory_format(vae, torch.channels_last)  # a fifth faster on a CPU
    settings = recipe.vae
    windows = Ahead(partial(composed, composer, recipe), workers, settings.optim.steps * settings.optim.accumulate)
    return Reconstruction(vae, windows, settings, recipe.seed, recipe.precision)


def composed(composer: Composer, recipe: Recipe, step: int) -> np.ndarray:
    """Windows (B, crop, crop, 3) uint8 of the pictures of a step."""
    size, count = recipe.vae.crop, recipe.vae.optim.batch
    rng = np.random.default_rng([recipe.seed, 1, step])
    windows = np.empty((count, size, size, 3), np.uint8)
    for k in range(count):
        image = composer.sample(step * count + k).image
        windows[k] = max((_window(image, size, rng) for _ in range(DRAWN)), key=lambda window: float(window.std()))
    return windows


def _window(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(0, side - size + 1)) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


@torch.no_grad()
def initialise(vae: VAE) -> None:
    """Residual branches begin at zero, which lets flat colours through from the first step, and the posterior's noise small."""
    last: list[nn.Module] = [block.conv2 for block in vae.modules() if isinstance(block, ResnetBlock)]
    last += [block.proj_out for block in vae.modules() if isinstance(block, AttentionBlock)]
    for parameter in [parameter for layer in last for parameter in layer.parameters()]:
        parameter.zero_()
    vae.get_parameter("quant_conv.bias")[vae.shape.z_channels :] = QUIET
