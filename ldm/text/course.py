"""Conditioning over a run: one as a rule; several side by side where AND joins them, one after the other where words change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from ldm.errors import InputError
from ldm.limits import LIMITS
from ldm.text.tokenizer import LENGTH

if TYPE_CHECKING:
    from ldm.text.conditioning import Conditioning

MOST_CHUNKS = int(LIMITS["prompt"].high) // (LENGTH - 2) + 1  # what one prompt can be at a token a character

@dataclass(frozen=True)
class Strand:
    """What one of the texts that AND joins is told. `at`: which of `conds`, by call of the denoiser; the last goes on."""

    conds: tuple[Conditioning, ...]
    at: tuple[int, ...] = (0,)
    weight: float = 1.0

    def __call__(self, call: int) -> Conditioning:
        return self.conds[self.at[min(call, len(self.at) - 1)]]


@dataclass(frozen=True)
class Course:
    """A prompt, or a negative, over a run."""

    strands: tuple[Strand, ...]

    @staticmethod
    def of(given: Conditioning | Course) -> Course:
        return given if isinstance(given, Course) else Course((Strand((given,)),))

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(strand.weight for strand in self.strands)

    @property
    def conds(self) -> list[Conditioning]:
        return [cond for strand in self.strands for cond in strand.conds]

    def during(self, calls: Sequence[int]) -> Course:
        """What is told at these calls of the denoiser, which are then the calls 0, 1, ... of a run of their own."""
        strands = [replace(each, at=tuple(each.at[min(call, len(each.at) - 1)] for call in calls)) for each in self.strands]
        return Course(tuple(strands))

    def mapped(self, change: Callable[[Conditioning], Conditioning]) -> Course:
        return Course(tuple(replace(strand, conds=tuple(map(change, strand.conds))) for strand in self.strands))


def sides(
    cond: Conditioning | Course, uncond: Conditioning | Course | None, cfg: float, *, both: bool = False
) -> tuple[Course, Course | None]:
    """Both as courses; no uncond where guidance has no need of it, unless `both` asks for what there is.

    Raises InputError where guidance has need of it, and there is none.
    """
    led = Course.of(cond)
    if cfg == 1 and led.weights == (1.0,):
        return led, Course.of(uncond) if both and uncond is not None else None
    if uncond is None:
        what = f"cfg {cfg}" if cfg != 1 else f"a prompt of weights {led.weights}"
        raise InputError(f"{what} needs what it leads away from: give uncond, or cfg 1")
    return led, Course.of(uncond)


class Scenes(NamedTuple):
    """The rows of conditioning that guidance asks for at each call of the denoiser."""

    rows: list[Conditioning]  # each different one once
    at: list[int]  # which of them, by call; the last goes on
    pictures: int  # that each row serves


def scenes(cond: Course, uncond: Course | None, pictures: int, order: str) -> Scenes:
    """Rows in the order of guidance, for `pictures` pictures. Raises InputError where they do not fit."""
    both = cond.strands if uncond is None else uncond.strands + cond.strands if order == "uncond-first" else cond.strands + uncond.strands
    rows: dict[tuple[int, ...], Conditioning] = {}
    at, count = [], 1
    for call in range(max(len(strand.at) for strand in both)):
        side_by_side = [strand(call) for strand in both]
        key = tuple(map(id, side_by_side))
        if key not in rows:
            rows[key], count = _rows(side_by_side, pictures)
        at.append(list(rows).index(key))
    return Scenes(list(rows.values()), at, count)


def _rows(side_by_side: Sequence[Conditioning], pictures: int) -> tuple[Conditioning, int]:
    """One batch, and how many pictures each row of it serves."""
    counts = [each.context.shape[0] for each in side_by_side]
    if pictures % max(counts) or not set(counts) <= {1, max(counts)}:
        raise InputError(f"{pictures} pictures with conditioning of {counts} rows: give 1 row, or one a picture")
    wide = [(each.context.expand(max(counts), -1, -1), each.vector.expand(max(counts), -1)) for each in same_length(*side_by_side)]
    contexts, vectors = zip(*wide, strict=True)
    return replace(side_by_side[0], context=torch.cat(contexts), vector=torch.cat(vectors)), pictures // max(counts)


def same_length(*conds: Conditioning) -> tuple[Conditioning, ...]:
    """Contexts repeated to their least common length, so that they fit one batch.

    Attention over a context repeated whole is attention over it once: the result is that of a pass for each (ComfyUI repeats,
    stable-diffusion-webui makes two passes). Raises InputError, as `common_length` does.
    """
    lengths = [cond.context.shape[1] for cond in conds]
    common = common_length(lengths)
    return tuple(replace(cond, context=cond.context.repeat(1, common // length, 1)) for cond, length in zip(conds, lengths, strict=True))


def common_length(lengths: Sequence[int]) -> int:
    """The least common multiple of contexts' lengths. Raises InputError where it is beyond the length of the longest prompt."""
    common = math.lcm(*lengths)
    if common > MOST_CHUNKS * LENGTH and common > max(lengths):
        counts = " and ".join(str(length // LENGTH) for length in lengths)
        made = f"{counts} chunks of {LENGTH - 2} tokens, {common // LENGTH} together"
        raise InputError(f"prompt and negative have {made}: the limit is {MOST_CHUNKS}: shorten one")
    return common
