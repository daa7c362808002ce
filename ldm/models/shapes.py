"""The numbers of every model family, without torch: frozen dataclasses filled from configs/models/*.toml or from a file's own metadata.

Sources of the official numbers: generative-models `configs/inference/sd_xl_base.yaml` and `sd_xl_refiner.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from ldm.errors import InputError
from ldm.resources import read_toml


class _Numbers:
    """Strict construction from plain data: an unknown or a missing key is an error that names it."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        wrong = sorted(set(values) ^ set(known))
        if wrong:
            what = "unknown" if wrong[0] in values else "missing"
            raise InputError(f"{cls.__name__}: {what} key {wrong[0]!r}: the keys are {', '.join(known)}")
        hints = get_type_hints(cls)
        return cls(**{key: _convert(f"{cls.__name__}.{key}", hints[key], value) for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]


def _convert(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`, where kind is a scalar, a tuple of one kind, a Literal or a nested dataclass."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(name, args[0], item) for item in value)
    if isinstance(kind, type) and issubclass(kind, _Numbers) and isinstance(value, Mapping):
        return kind.from_dict(value)
    if origin is Literal and value in args:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise InputError(f"{name}: {value!r} is not acceptable: expected {getattr(kind, '__name__', None) or kind}")


@dataclass(frozen=True)
class UNetShape(_Numbers):
    in_channels: int
    out_channels: int
    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    transformer_depth: tuple[int, ...]  # one a level; 0: no attention at that level
    middle_depth: int
    head_dim: int  # channels a head; ignored where num_heads is set
    num_heads: int  # heads at every level (SD 1.x), or 0
    context_dim: int
    vector_dim: int  # 0: the family has no vector conditioning
    norm_groups: int
    linear_proj: bool  # proj_in and proj_out are Linear (SDXL, SD 2.x), or 1x1 convolutions (SD 1.x)


@dataclass(frozen=True)
class VAEShape(_Numbers):
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    norm_groups: int
    scale: float  # x = z * scale


@dataclass(frozen=True)
class TowerShape(_Numbers):
    layout: Literal["hf", "open_clip"]  # how the file names its tensors
    prefix: str  # where they stand in the file
    width: int
    layers: int
    heads: int
    mlp: int
    activation: Literal["quick_gelu", "gelu"]
    projection: int  # width of the pooled vector; 0: the tower gives none
    pad_token: int
    vocab: int
    length: int


@dataclass(frozen=True)
class Defaults(_Numbers):
    width: int
    height: int
    sampler: str
    schedule: str
    steps: int
    cfg: float


@dataclass(frozen=True)
class Family(_Numbers):
    name: str
    title: str
    prediction: Literal["epsilon", "v"]
    numbers: tuple[str, ...]  # what follows the pooled vector: "original", "crop", "target" (two numbers each), "aesthetic" (one)
    size_embedding: int  # Fourier features a number
    vae_dtype: Literal["float32", "any"]  # "float32": the official VAE overflows in half precision
    unet: UNetShape
    vae: VAEShape
    towers: tuple[TowerShape, ...]
    defaults: Defaults

    def __post_init__(self) -> None:
        pooled = self.towers[-1].projection
        count = sum(1 if number == "aesthetic" else 2 for number in self.numbers)
        if self.unet.vector_dim != (pooled + count * self.size_embedding if self.numbers else 0):
            wide = f"pooled {pooled} + {count} numbers of {self.size_embedding}"
            raise InputError(f"family {self.name}: vector_dim {self.unet.vector_dim} is not {wide}")
        if self.unet.context_dim != sum(tower.width for tower in self.towers):
            raise InputError(f"family {self.name}: context_dim {self.unet.context_dim} is not the sum of the towers' widths")

    @property
    def downscale(self) -> int:
        """Pixels a latent, on each axis: 8 for every official VAE."""
        return int(2 ** (len(self.vae.ch_mult) - 1))


def load_family(name: str) -> Family:
    """The family of configs/models/`name`.toml. Raises InputError for an unknown name or key."""
    return Family.from_dict({"name": name, **read_toml("models", name)})
