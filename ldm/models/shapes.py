"""The numbers of every model family, without torch: frozen dataclasses filled from configs/models/*.toml or from a file's own metadata.

A file's numbers may be anybody's: every class refuses, by an InputError of one line, what could not be built or could not run.

Sources of the official numbers: generative-models `configs/inference/sd_xl_base.yaml` and `sd_xl_refiner.yaml`.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Self, get_args, get_origin, get_type_hints

from ldm.errors import InputError, near_matches
from ldm.limits import LIMITS
from ldm.resources import read_toml

WIDEST = 65_536  # of every width, count and index
MOST_BLOCKS = 1000  # of blocks or layers in a row
MOST_VAE_BLOCKS = 64  # fewer: a file may be without its VAE, and then has nothing to hold them against
MOST_PARTS = 16  # levels, towers or numbers
MOST_LETTERS = 100  # of a name, a title or a prefix
SCALES = (1e-4, 1e4)  # latents beyond have left what half precision holds
TOKENS = {"vocab": 49408, "length": 77}  # of CLIP's tokenizer
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "a list"}


class UnfitError(InputError):
    """A key or its value that is refused: `told` says why; `tables` are the keys that lead to it from what was read."""

    tables: tuple[str, ...] = ()
    key = ""
    told = ""


class Numbers:
    """Strict construction from plain data: an unknown or a missing key, or a value out of range, is an error that names it."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for key in sorted(set(values) - set(known)):
            what, short = "table" if isinstance(values[key], Mapping) else "key", key[:MOST_LETTERS]
            raise _unfit(cls.__name__, f"unknown {what} {short!r}: {near_matches(short, known)}")
        for key in sorted(set(known) - set(values) - set(cls._defaults())):
            raise _unfit(cls.__name__, f"missing key {key!r}: the keys are {', '.join(known)}")
        hints = get_type_hints(cls)
        return cls(**{key: _convert(f"{cls.__name__}.{key}", hints[key], value) for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `from_dict`; what has a default and stands at it is left out."""
        defaults = self._defaults()
        made: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {key: value for key, value in made.items() if key not in defaults or value != defaults[key]}

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {field.name: field.default for field in fields(cls) if field.default is not MISSING}  # type: ignore[arg-type]

    def _require(self, good: bool, key: str, rule: str) -> None:
        if not good:
            _refuse(f"{type(self).__name__}.{key}", getattr(self, key), rule)

    def _ranges(self, low: int, high: int, *keys: str) -> None:
        """Each key's integer, or each of its tuple of 1 to `MOST_PARTS`, is from `low` to `high`."""
        for key in keys:
            value = getattr(self, key)
            items = value if isinstance(value, tuple) else (value,)
            self._require(1 <= len(items) <= MOST_PARTS, key, f"expected 1 to {MOST_PARTS} of them")
            for item in items:
                if not low <= item <= high:
                    _refuse(f"{type(self).__name__}.{key}", item, f"expected {low:,} to {high:,}")

    def _words(self, *keys: str) -> None:
        """Each key's text can be shown in one line of a terminal."""
        for key in keys:
            text = getattr(self, key)
            self._require(0 < len(text) <= MOST_LETTERS and text.isprintable(), key, f"expected 1 to {MOST_LETTERS} printable characters")


def _refuse(name: str, value: Any, rule: str) -> NoReturn:
    """Raises InputError with what can be shown of the value: short, on one line, whatever it is."""
    raise _unfit(name, f"{reprlib.repr(value)} is not acceptable: {rule}")


def _unfit(name: str, told: str) -> UnfitError:
    """Of a class, or of one of its keys."""
    error = UnfitError(f"{name}: {told}")
    error.key, error.told = name.partition(".")[2], told
    return error


def _convert(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`, where kind is a scalar, a tuple of one kind, a Literal or a nested dataclass, or one of these or None."""
    if get_origin(kind) is UnionType:
        kind = next(each for each in get_args(kind) if each is not NoneType)
    origin, args = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        if len(value) > MOST_PARTS:
            _refuse(name, value, f"expected at most {MOST_PARTS} of them")
        return tuple(_convert(name, args[0], item) for item in value)
    if isinstance(kind, type) and issubclass(kind, Numbers) and isinstance(value, Mapping):
        return _table(name, kind, value)
    if origin is Literal and isinstance(value, str) and value in args:
        return value
    if kind is float and type(value) in (int, float):
        return _finite(name, value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    _refuse(name, value, f"expected {' or '.join(args) if origin is Literal else KINDS.get(origin or kind, 'a table')}")


def _table(name: str, kind: type[Numbers], value: Mapping[str, Any]) -> Numbers:
    try:
        return kind.from_dict(value)
    except UnfitError as error:
        error.tables = (name.partition(".")[2], *error.tables)
        raise


def _finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        _refuse(name, value, "expected a finite number")
    return number


@dataclass(frozen=True)
class UNetShape(Numbers):
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

    def __post_init__(self) -> None:
        self._ranges(1, WIDEST, "in_channels", "out_channels", "model_channels", "channel_mult", "context_dim", "norm_groups")
        self._ranges(0, WIDEST, "head_dim", "num_heads", "vector_dim")
        self._ranges(1, MOST_BLOCKS, "num_res_blocks")
        self._ranges(0, MOST_BLOCKS, "transformer_depth", "middle_depth")
        levels, width = len(self.channel_mult), self.model_channels
        self._require(len(self.transformer_depth) == levels, "transformer_depth", f"expected {levels} of them, as in channel_mult")
        self._require(width * max(self.channel_mult) <= WIDEST, "channel_mult", f"model_channels {width} times it is over {WIDEST:,}")
        self._require(width % 2 == 0, "model_channels", "expected an even number: half are sines of the step, half cosines")
        self._require(width % self.norm_groups == 0, "norm_groups", f"expected a divisor of model_channels {width}")
        key = "num_heads" if self.num_heads else "head_dim"
        for attended in self._attended():
            split = getattr(self, key)
            self._require(split > 0 and attended % split == 0, key, f"expected a divisor of the width {attended}, which has attention")

    def _attended(self) -> list[int]:
        """Widths that have transformer blocks."""
        widths = [self.model_channels * mult for mult in self.channel_mult]
        depths = [*self.transformer_depth, self.middle_depth]
        return [width for width, depth in zip([*widths, widths[-1]], depths, strict=True) if depth]


@dataclass(frozen=True)
class VAEShape(Numbers):
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    norm_groups: int
    scale: float  # x = z * scale

    def __post_init__(self) -> None:
        self._ranges(1, WIDEST, "ch", "ch_mult", "z_channels", "norm_groups")
        self._ranges(1, MOST_VAE_BLOCKS, "num_res_blocks")
        self._require(self.ch * max(self.ch_mult) <= WIDEST, "ch_mult", f"ch {self.ch} times it is over {WIDEST:,}")
        self._require(self.ch % self.norm_groups == 0, "norm_groups", f"expected a divisor of ch {self.ch}")
        low, high = SCALES
        self._require(low <= self.scale <= high, "scale", f"expected {low:g} to {high:g}")
        side = LIMITS["width"].multiple
        self._require(side % 2 ** (len(self.ch_mult) - 1) == 0, "ch_mult", f"at most {side.bit_length()}: sizes are multiples of {side}")


@dataclass(frozen=True)
class TowerShape(Numbers):
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

    def __post_init__(self) -> None:
        self._words("prefix")
        self._ranges(1, WIDEST, "width", "heads", "mlp")
        self._ranges(0, WIDEST, "projection")
        self._ranges(1, MOST_BLOCKS, "layers")
        self._require(self.width % self.heads == 0, "heads", f"expected a divisor of the width {self.width}")
        for key, count in TOKENS.items():
            self._require(getattr(self, key) == count, key, f"expected {count}, as CLIP's tokenizer has")
        self._ranges(0, self.vocab - 1, "pad_token")


@dataclass(frozen=True)
class Defaults(Numbers):
    width: int
    height: int
    sampler: str
    schedule: str
    steps: int
    cfg: float

    def __post_init__(self) -> None:
        for key in ("width", "height", "steps", "cfg"):
            self._require(LIMITS[key].allows(getattr(self, key)), key, f"expected {LIMITS[key]}")
        for key in ("sampler", "schedule"):  # which ones there are is a matter of a higher floor
            self._require(re.fullmatch("[a-z][a-z0-9_]{0,39}", getattr(self, key)) is not None, key, "expected the name of one")


@dataclass(frozen=True)
class Family(Numbers):
    name: str
    title: str
    prediction: Literal["epsilon", "v"]
    numbers: tuple[Literal["original", "crop", "target", "aesthetic"], ...]  # after the pooled vector: two each, "aesthetic" one
    size_embedding: int  # Fourier features a number
    vae_dtype: Literal["float32", "any"]  # "float32": the official VAE overflows in half precision
    unet: UNetShape
    vae: VAEShape
    towers: tuple[TowerShape, ...]
    defaults: Defaults
    zero_terminal: bool = False  # the noise schedule rescaled to end in pure noise (Lin et al. 2023): v-prediction alone

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        try:
            return super().from_dict(values)
        except InputError as error:
            raise InputError(f"family {reprlib.repr(values.get('name'))}: {error}") from None

    def __post_init__(self) -> None:
        self._words("name", "title")
        self._require(1 <= len(self.towers) <= MOST_PARTS, "towers", f"expected 1 to {MOST_PARTS} of them")
        self._ranges(2 if self.numbers else 0, WIDEST, "size_embedding")
        self._require(self.size_embedding % 2 == 0, "size_embedding", "expected an even number: half are sines, half cosines")
        self._require(not self.zero_terminal or self.prediction == "v", "zero_terminal", "it needs v-prediction")
        self._check_vector()
        context, channels = sum(tower.width for tower in self.towers), self.vae.z_channels
        if self.unet.context_dim != context:
            _refuse("Family.unet.context_dim", self.unet.context_dim, f"expected {context}, the sum of the towers' widths")
        for key in ("in_channels", "out_channels"):
            if getattr(self.unet, key) != channels:
                _refuse(f"Family.unet.{key}", getattr(self.unet, key), f"expected {channels}, the z_channels of the VAE")

    def _check_vector(self) -> None:
        """The vector is what the last tower pools and the numbers' features, or there is none."""
        pooled, count = self.towers[-1].projection, sum(1 if number == "aesthetic" else 2 for number in self.numbers)
        self._require(pooled > 0 or not self.numbers, "numbers", "expected none, as the last tower has no projection")
        wide = pooled + count * self.size_embedding if self.numbers else 0
        if self.unet.vector_dim != wide:
            rule = f"expected {wide}: the last projection {pooled} and {count} numbers of {self.size_embedding}"
            _refuse("Family.unet.vector_dim", self.unet.vector_dim, rule if self.numbers else "expected 0, as there are no numbers")

    @property
    def downscale(self) -> int:
        """Pixels a latent, on each axis: 8 for every official VAE."""
        return int(2 ** (len(self.vae.ch_mult) - 1))


def load_family(name: str) -> Family:
    """The family of configs/models/`name`.toml. Raises InputError for an unknown name or key."""
    return Family.from_dict({"name": name, **read_toml("models", name)})
