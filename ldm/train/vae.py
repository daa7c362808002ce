"""The first stage: the autoencoder, on windows of composed pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ldm.models.vae import VAE, AttentionBlock, ResnetBlock
from ldm.train.data import to_tensor
from ldm.train.draws import generator
from ldm.train.losses import gradient_loss, kl_loss

if TYPE_CHECKING:
    from ldm.models.shapes import VAEShape
    from ldm.train.data import Composer
    from ldm.train.recipe import Recipe

QUIET = -5.0  # the posterior's first log-variance: with 0 its noise would hide the picture for hundreds of steps


class VAETask:
    """L1 + gradient + KL: reconstruction from one draw of the posterior."""

    def __init__(self, shape: VAEShape, composer: Composer, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.module = VAE(shape)
        initialise(self.module)
        self.composer, self.recipe = composer, recipe

    def batch(self, step: int) -> Tensor:
        """Windows of the pictures (B, 3, crop, crop) in [-1, 1]."""
        size, count = self.recipe.vae.crop, self.recipe.vae.optim.batch
        rng = np.random.default_rng([self.recipe.seed, 1, step])
        windows = np.empty((count, size, size, 3), np.uint8)
        for k in range(count):
            image = self.composer.sample(step * count + k).image
            top, left = (int(rng.integers(0, side - size + 1)) for side in image.shape[:2])
            windows[k] = image[top : top + size, left : left + size]
        return to_tensor(windows)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        image = self.batch(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            mean, logvar = (moment.float() for moment in self.module.encode(image))
            noise = torch.randn(mean.shape, generator=generator(self.recipe.seed, step))
            decoded = self.module.decode(mean + (logvar / 2).exp() * noise).float()
        l1, gradient, kl = (decoded - image).abs().mean(), gradient_loss(decoded, image), kl_loss(mean, logvar)
        loss = l1 + self.recipe.vae.gradient * gradient + self.recipe.vae.kl * kl
        return loss, {"l1": float(l1.detach()), "gradient": float(gradient.detach()), "kl": float(kl.detach())}


@torch.no_grad()
def initialise(vae: VAE) -> None:
    """Residual branches begin at zero, which lets flat colours through from the first step, and the posterior's noise small."""
    last: list[nn.Module] = [block.conv2 for block in vae.modules() if isinstance(block, ResnetBlock)]
    last += [block.proj_out for block in vae.modules() if isinstance(block, AttentionBlock)]
    for parameter in [parameter for layer in last for parameter in layer.parameters()]:
        parameter.zero_()
    vae.get_parameter("quant_conv.bias")[vae.shape.z_channels :] = QUIET
