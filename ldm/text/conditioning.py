"""What the UNet is told of a picture: the towers' hidden states, their pooled vector and the sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.limits import LIMITS
from ldm.ops.embedding import sinusoid
from ldm.text.prompt import LENGTH

if TYPE_CHECKING:
    from ldm.models.clip import CLIPText, TextOutput
    from ldm.models.shapes import Family

AESTHETIC = 6.0  # the refiner's score for the prompt; generative-models `sgm/inference/api.py`
AESTHETIC_NEGATIVE = 2.5  # and for the negative
CHUNKS_AT_ONCE = 16  # bounds the towers' memory where a prompt is very long
MOST_CHUNKS = int(LIMITS["prompt"].high) // (LENGTH - 2) + 1  # what one prompt can be at a token a character

EmptyNegative = Literal["encode", "zeros-if-none", "zeros-if-empty", "zeros"]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Conditioning:
    """One prompt and its sizes, float32."""

    context: Tensor  # (B, 77n, D)
    vector: Tensor  # (B, V)


def fourier(numbers: Tensor, dim: int = 256) -> Tensor:
    """(B, n) numbers -> (B, n * dim) float32: each as its own sinusoid, cosine half first, one after the other."""
    return sinusoid(numbers.flatten(), dim).reshape(numbers.shape[0], -1)  # (B n, dim) -> (B, n dim)


def size_numbers(
    names: Sequence[str],
    *,
    size: Pair,
    original: Pair | None = None,
    crop: Pair = (0, 0),
    target: Pair | None = None,
    aesthetic: float | None = None,
) -> list[float]:
    """The numbers of `Family.numbers` in its order; sizes are (height, width), `crop` is (top, left).

    `original` and `target` default to `size`, `aesthetic` to `AESTHETIC`. Source of the order: generative-models `configs/inference`.
    """
    score = AESTHETIC if aesthetic is None else aesthetic
    values = {"original": original or size, "crop": crop, "target": target or size, "aesthetic": (score,)}
    return [float(number) for name in names for number in values[name]]


def encode(
    towers: Sequence[CLIPText],
    family: Family,
    ids: Sequence[Sequence[Sequence[int]]],
    numbers: Sequence[float],
    at_once: int = CHUNKS_AT_ONCE,
) -> Conditioning:
    """Ids (n, 77) of one prompt for each tower, and its numbers -> context (1, 77n, D) and vector (1, V).

    Context: the layer before the last, without the final norm, towers side by side on the features, chunks one after the other. Vector:
    what the last tower pools of the first chunk, then the numbers' Fourier features. Prompts are never encoded together, so that none
    depends on another; `at_once` chunks of one go through a tower together.
    """
    hidden, pooled = zip(*(_run(tower, chunks, at_once) for tower, chunks in zip(towers, ids, strict=True)), strict=True)
    context = torch.cat(hidden, -1).flatten(0, 1)[None]  # (n, 77, D) -> (1, 77n, D)
    if pooled[-1] is None or not family.numbers:
        return Conditioning(context, context.new_zeros(1, 0))
    features = fourier(torch.tensor([numbers]), family.size_embedding)  # on the CPU: the same bits for every device
    return Conditioning(context, torch.cat([pooled[-1], features.to(context.device)], -1))


def _run(tower: CLIPText, chunks: Sequence[Sequence[int]], at_once: int) -> tuple[Tensor, Tensor | None]:
    """(n, 77) ids -> hidden states (n, 77, W) and what is pooled of the first chunk (1, P), float32; a few chunks at a time."""
    device = next(tower.parameters()).device
    parts: list[TextOutput] = [tower(part) for part in torch.split(torch.tensor(chunks, device=device), at_once)]
    pooled = parts[0].pooled
    return torch.cat([part.penultimate for part in parts]).float(), None if pooled is None else pooled[:1].float()


def decide_zero(rule: EmptyNegative, negative: str | None) -> bool:
    """Whether the negative's text is zeros instead of being encoded. None: none was given.

    "encode": never (ComfyUI). "zeros-if-none": an empty text is encoded (diffusers). "zeros-if-empty": none or "", but not spaces
    (stable-diffusion-webui). "zeros": always, so that a negative text has no effect (generative-models' base).
    """
    return {"encode": False, "zeros-if-none": negative is None, "zeros-if-empty": not negative, "zeros": True}[rule]


def zeroed(cond: Conditioning, family: Family) -> Conditioning:
    """Without its text: context and the pooled part of the vector are zeros, the numbers stay.

    Source: generative-models `sgm/modules/encoders/modules.py`, force_zero_embeddings.
    """
    vector = cond.vector.clone()
    vector[:, : family.towers[-1].projection] = 0
    return replace(cond, context=torch.zeros_like(cond.context), vector=vector)


def rows(cond: Conditioning, uncond: Conditioning | None, cfg: float, pictures: int, order: str) -> tuple[Conditioning, int]:
    """The rows that guidance asks for, in its order, and how many pictures each serves. Raises InputError where they do not fit."""
    if uncond is None and cfg != 1:
        raise InputError(f"cfg {cfg} needs what it leads away from: give uncond, or cfg 1")
    both = [cond] if uncond is None else [uncond, cond] if order == "uncond-first" else [cond, uncond]
    counts = [each.context.shape[0] for each in both]
    if pictures % max(counts) or not set(counts) <= {1, max(counts)}:
        raise InputError(f"{pictures} pictures with conditioning of {counts} rows: give 1 row, or one a picture")
    wide = [(each.context.expand(max(counts), -1, -1), each.vector.expand(max(counts), -1)) for each in same_length(*both)]
    contexts, vectors = zip(*wide, strict=True)
    return Conditioning(torch.cat(contexts), torch.cat(vectors)), pictures // max(counts)


def same_length(*conds: Conditioning) -> tuple[Conditioning, ...]:
    """Contexts repeated to their least common length, so that they fit one batch.

    Attention over a context repeated whole is attention over it once: the result is that of a pass for each (ComfyUI repeats,
    stable-diffusion-webui makes two passes). Raises InputError where the common length is beyond that of the longest prompt.
    """
    lengths = [cond.context.shape[1] for cond in conds]
    common = math.lcm(*lengths)
    if common > MOST_CHUNKS * LENGTH and common > max(lengths):
        counts = " and ".join(str(length // LENGTH) for length in lengths)
        made = f"{counts} chunks of {LENGTH - 2} tokens, {common // LENGTH} together"
        raise InputError(f"prompt and negative have {made}: the limit is {MOST_CHUNKS}: shorten one")
    return tuple(replace(cond, context=cond.context.repeat(1, common // length, 1)) for cond, length in zip(conds, lengths, strict=True))
