"""A training recipe: frozen dataclasses filled from one TOML file; an unknown or a missing key is an error that names it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ldm.errors import InputError
from ldm.models.shapes import Numbers, UnfitError
from ldm.train.fitting import Crop

Precision = Literal["float32", "bfloat16", "float16"]
N = TypeVar("N", bound=Numbers)
MOST = 10**9  # of steps
SEEDS = 2**40  # below: (seed, step) make one number of 64 bits


@dataclass(frozen=True)
class Optim(Numbers):
    steps: int
    batch: int
    lr: float
    warmup: int  # steps of linear growth
    final: float  # the last step's share of lr; half a cosine leads there
    weight_decay: float  # on matrices and kernels only
    clip: float  # of the gradient's norm
    ema: float  # decay a step, once warm
    accumulate: int = 1  # batches whose gradients are summed for one step

    def __post_init__(self) -> None:
        self._ranges(1, MOST, "steps")
        self._ranges(1, 65_536, "batch", "accumulate")
        self._ranges(0, MOST, "warmup")
        self._require(0 < self.lr <= 100, "lr", "expected above 0, up to 100")
        self._require(0 <= self.final <= 1, "final", "expected 0 to 1")
        self._require(0 <= self.weight_decay <= 100, "weight_decay", "expected 0 to 100")
        self._require(0 < self.clip <= 1e9, "clip", "expected above 0, up to 1e9")
        self._require(0 <= self.ema < 1, "ema", "expected 0 up to below 1")

    @property
    def pictures(self) -> int:
        """Of one step."""
        return self.batch * self.accumulate


@dataclass(frozen=True)
class Data(Numbers):
    size: int  # pixels a side of the square bucket
    step: int  # that a bucket's sides are multiples of
    other_shapes: float  # share of pictures that are not square
    pictures: int  # composed and encoded for the towers and the UNet
    crop_share: float  # of the pictures with one thing, windows of a larger canvas
    small_share: float  # of the pictures with one thing, enlarged from a smaller one

    def __post_init__(self) -> None:
        self._ranges(16, 4096, "size")
        self._ranges(8, 256, "step")
        self._require(self.step % 8 == 0, "step", "expected a multiple of 8")
        self._require(self.size % self.step == 0, "size", f"expected a multiple of the step {self.step}")
        self._ranges(1, 10**8, "pictures")
        for key in ("other_shapes", "crop_share", "small_share"):
            self._require(0 <= getattr(self, key) <= 1, key, "expected 0 to 1")
        self._require(self.crop_share + self.small_share <= 1, "small_share", "expected at most what crop_share leaves of 1")


class Windowed(Numbers):
    """The ranges of what a VAE learns from, and by."""

    crop: int
    gradient: float
    kl: float

    def __post_init__(self) -> None:
        self._ranges(8, 4096, "crop")
        self._require(0 <= self.gradient <= 1000, "gradient", "expected 0 to 1000")
        self._require(0 <= self.kl <= 1000, "kl", "expected 0 to 1000")


@dataclass(frozen=True)
class VAERecipe(Windowed):
    crop: int  # pixels a side of the windows it learns from
    gradient: float
    kl: float
    optim: Optim


@dataclass(frozen=True)
class TowersRecipe(Numbers):
    optim: Optim


@dataclass(frozen=True)
class UNetRecipe(Numbers):
    dropout: float  # share of captions replaced by the empty one
    weighting: Literal["none", "min-snr", "debiased"]  # of the noise levels
    gamma: float  # of min-snr
    offset: float  # of offset noise
    optim: Optim
    pyramid: float = 0.0  # of pyramid noise
    perturbation: float = 0.0  # of the input's noise alone
    huber: float = 0.0  # the pseudo-Huber loss's c; 0: the square
    checkpointing: bool = False  # blocks are computed again on the way back

    def __post_init__(self) -> None:
        for key in ("dropout", "offset", "pyramid", "perturbation"):
            self._require(0 <= getattr(self, key) <= 1, key, "expected 0 to 1")
        self._require(0 < self.gamma <= 1000, "gamma", "expected above 0, up to 1000")
        self._require(0 <= self.huber <= 100, "huber", "expected 0 to 100")


@dataclass(frozen=True)
class Recipe(Numbers):
    family: str
    seed: int
    precision: Precision
    data: Data
    vae: VAERecipe
    towers: TowersRecipe
    unet: UNetRecipe

    def __post_init__(self) -> None:
        self._ranges(0, SEEDS, "seed")


Target = Literal["transformer", "convolution", "towers"]


@dataclass(frozen=True)
class LoraRecipe(Numbers):
    """What is adapted: the UNet's transformers as sd-scripts does it, its convolutions beside them, the text towers."""

    rank: int
    alpha: float  # the product counts alpha / rank
    targets: tuple[Target, ...] = ("transformer",)

    def __post_init__(self) -> None:
        self._ranges(1, 1024, "rank")
        self._require(0 < self.alpha <= 1024, "alpha", "expected above 0, up to 1024")
        self._require(bool(self.targets), "targets", "expected at least one")


@dataclass(frozen=True)
class PicturesRecipe(Numbers):
    size: int  # the root of a bucket's area
    step: int  # that a bucket's sides are multiples of
    crop: Crop = "random"

    def __post_init__(self) -> None:
        self._ranges(16, 4096, "size")
        self._ranges(8, 256, "step")
        self._require(self.step % 8 == 0, "step", "expected a multiple of 8")
        self._require(self.size >= self.step, "size", "expected at least the step")


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises InputError for a file that cannot be read and for unknown or missing keys."""
    return filled(Recipe, path)


def filled(kind: type[N], path: Path) -> N:
    """A recipe of `kind`; errors name the file, and the table and the key as they stand in it."""
    values = read_recipe(path)
    try:
        return kind.from_dict(values)
    except UnfitError as error:
        place = " ".join([f"[{'.'.join(error.tables)}]"] * bool(error.tables) + [error.key] * bool(error.key))
        raise InputError(f"{path}: {place}{': ' * bool(place)}{error.told}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe's file. Raises InputError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        why = "no such file"
    except OSError as error:
        why = str(error.strerror)
    except ValueError as error:
        why = str(error)
    raise InputError(f"{path}: {why}: give a recipe, such as configs/train/lora.toml")
