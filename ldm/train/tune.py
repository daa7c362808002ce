"""Training on one's own pictures with captions, of any family that the engine loads: the recipe, and the noise predictor or a LoRA of it.

`reconstructing` has the VAE, `matching` the text towers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.checkpoint.identity import UNET
from ldm.diffusion.schedules import SigmaTable
from ldm.errors import InputError
from ldm.models.shapes import Family, Numbers
from ldm.models.unet import ResBlock, TransformerBlock, UNet
from ldm.text.conditioning import AESTHETIC, fourier
from ldm.train.draws import generator
from ldm.train.fitting import Batches
from ldm.train.losses import Weighting, diffusion_loss, level_weight, noised, target
from ldm.train.noising import Noising
from ldm.train.optim import autocast
from ldm.train.recipe import SEEDS, LoraRecipe, Optim, PicturesRecipe, Precision, Windowed, filled
from ldm.train.watching import many

if TYPE_CHECKING:
    from ldm.models.clip import CLIPText
    from ldm.train.prepared import Prepared


@dataclass(frozen=True)
class LossRecipe(Numbers):
    weighting: Weighting = "none"  # of the noise levels
    gamma: float = 5.0  # of the weighting min-snr
    huber: float = 0.0  # the pseudo-Huber loss's c; 0: the square
    dropout: float = 0.1  # share of captions replaced by the empty one

    def __post_init__(self) -> None:
        self._require(0 < self.gamma <= 1000, "gamma", "expected above 0, up to 1000")
        self._require(0 <= self.huber <= 100, "huber", "expected 0 to 100")
        self._require(0 <= self.dropout <= 1, "dropout", "expected 0 to 1")


@dataclass(frozen=True)
class WindowsRecipe(Windowed):
    """What a VAE is trained on, and by: L1 + `gradient` times that of neighbours' differences + `kl` times the KL divergence."""

    crop: int  # pixels a side of the windows of pictures
    gradient: float = 1.0
    kl: float = 0.0005  # of the mean over all latents
    part: Literal["all", "decoder"] = "all"  # the decoder alone: latents, and with them the UNet, stay what they are


@dataclass(frozen=True)
class TowersRecipe(Numbers):
    alone: int = 0  # batches in which the picture encoder, which begins from nothing, learns alone

    def __post_init__(self) -> None:
        self._ranges(0, 10**9, "alone")


PLAIN, SQUARE, TOGETHER = Noising(), LossRecipe(), TowersRecipe()


@dataclass(frozen=True)
class TuneRecipe(Numbers):
    """A run of `ldm train` on one's own pictures."""

    train: Literal["unet", "lora", "vae", "towers"]
    seed: int
    precision: Precision  # of the matrix products and convolutions; weights, losses and the optimiser are float32
    pictures: PicturesRecipe
    optim: Optim
    model: str | None = None  # a file or a name; none: the model in the box
    data: str | None = None  # a folder, a .tar, a .jsonl or sd-scripts' dataset .toml
    noise: Noising = PLAIN
    loss: LossRecipe = SQUARE
    lora: LoraRecipe | None = None
    vae: WindowsRecipe | None = None
    towers: TowersRecipe = TOGETHER
    checkpointing: bool = False  # blocks are computed again on the way back: less memory, a third more time
    zero_terminal: bool = False  # noise levels that end in noise alone; of v-prediction

    def __post_init__(self) -> None:
        self._ranges(0, SEEDS, "seed")
        for table in ("lora", "vae"):
            rule = f"expected a table [{table}] with {table!r}, and with nothing else"
            self._require((getattr(self, table) is not None) == (self.train == table), "train", rule)
        predicting = ("noise", "loss", "checkpointing", "zero_terminal")
        foreign = ("towers", *predicting) if self.train == "vae" else predicting if self.train == "towers" else ("towers",)
        for key in foreign:
            self._require(getattr(self, key) == self._defaults()[key], key, f"expected none with train = {self.train!r}")
        self._require(self.train != "towers" or self.optim.batch > 1, "optim", "expected a batch above 1: captions are told apart in it")


def load_tuning(path: Path) -> TuneRecipe:
    """The recipe in a TOML file. Raises InputError for a file that cannot be read and for unknown or missing keys."""
    return filled(TuneRecipe, path)


class TuneTask:
    """The loss of the prediction at a uniformly drawn training step; everything random is drawn from (seed, step)."""

    def __init__(
        self,
        family: Family,
        unet: UNet,
        towers: Sequence[CLIPText],
        data: Prepared,
        recipe: TuneRecipe,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        from ldm.train.adapting import adapt, first_values, gathered
        from ldm.train.words import Words

        check(family, recipe)
        self.family, self.unet, self.data, self.recipe = family, unet, data, recipe
        self.device = next(unet.parameters()).device
        learning = recipe.lora is not None and "towers" in recipe.lora.targets
        self.adapted = adapt(unet, towers, recipe.lora) if recipe.lora is not None else {}
        first_values(self.adapted, recipe.seed)
        self.module: nn.Module = gathered(self.adapted).to(self.device) if self.adapted else unet.requires_grad_(True)
        self.words = Words(towers, data.captions, data.keep, live=learning, folder=data.folder, say=say)
        self.batches = Batches(data.buckets(), recipe.optim.batch, recipe.seed)
        self.sigmas = SigmaTable("float64", zero_terminal=recipe.zero_terminal or family.zero_terminal).sigmas
        if recipe.checkpointing:
            compute_again(unet)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings, random = self.recipe.loss, generator(self.recipe.seed, step)
        rows = [self.data.rows[at] for at in self.batches.rows(step)]
        z = torch.stack([self.data.z[row] for row in rows])  # (B, C, h, w): a batch is of one bucket
        held, wanted = self.recipe.noise.draw((len(rows), *z.shape[1:]), random)
        t = torch.randint(len(self.sigmas), (len(rows),), generator=random)
        dropped = (torch.rand(len(rows), generator=random) < settings.dropout).tolist()
        sigma = self.sigmas[t]
        x, wanted = noised(z, held, sigma), target(z, wanted, sigma, self.family.prediction)
        weight = level_weight(settings.weighting, sigma, settings.gamma, self.family.prediction)
        x, t, wanted, weight = (each.to(self.device) for each in (x, t, wanted, weight))
        with autocast(self.device, self.recipe.precision):
            context, pooled = self.words.read(rows, dropped, random, self.device)
            predicted = self.unet.denoise(x, t.float(), context, self._vector(pooled, rows))
        plain = (predicted.detach().float() - wanted).square().mean()
        return diffusion_loss(predicted, wanted, weight, settings.huber), {"mse": float(plain), "pictures": len(rows)}

    @property
    def learns_from(self) -> list[str]:
        """What decides the data, beside the recipe."""
        return self.data.decided()

    def said(self) -> str:
        return f"{many(len(self.data.z), 'picture')} in {many(len(set(self.data.buckets())), 'bucket')}"

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The UNet, under the names of an official file."""
        return {UNET + name: value for name, value in state.items()}

    def _vector(self, pooled: Tensor | None, rows: Sequence[int]) -> Tensor | None:
        """(B, V): the pooled words, then each number's Fourier features, in the family's order."""
        if pooled is None or not self.family.unet.vector_dim:
            return None
        told = dict(zip(("original", "crop", "target"), self.data.numbers[list(rows)].split(2, dim=1), strict=True))
        told["aesthetic"] = torch.full((len(rows), 1), AESTHETIC)
        numbers = torch.cat([told[name] for name in self.family.numbers], dim=1)
        return torch.cat([pooled, fourier(numbers, self.family.size_embedding).to(pooled)], dim=1)


def check(family: Family, recipe: TuneRecipe) -> None:
    """InputError for what does not go together."""
    if recipe.zero_terminal and family.prediction != "v":
        raise InputError("zero_terminal with a model that predicts epsilon: at its last step there is nothing to learn: leave it out")
    if recipe.zero_terminal and recipe.loss.weighting != "none":
        raise InputError(f"zero_terminal with the weighting {recipe.loss.weighting!r}: the last step would hardly count: give 'none'")
    if recipe.pictures.step % family.downscale:
        raise InputError(f"pictures.step {recipe.pictures.step} is no multiple of the model's {family.downscale}: give one that is")
    if recipe.vae is not None and recipe.vae.crop % family.downscale:
        raise InputError(f"vae.crop {recipe.vae.crop} is no multiple of the model's {family.downscale}: give one that is")


def compute_again(unet: UNet) -> None:
    """Keep the inputs of the blocks alone for the way back (Chen et al. 2016)."""
    for block in unet.modules():
        if isinstance(block, ResBlock | TransformerBlock):
            block.forward = partial(_again, block.forward)  # type: ignore[method-assign]


def _again(forward: Callable[..., Any], *given: Any) -> Any:
    """Nothing in a block is random. Samples know no gradient: `checkpoint` would ask for generators' states, which a CUDA graph forbids."""
    if not torch.is_grad_enabled():
        return forward(*given)
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False)
