"""What the UNet is told of a picture: the towers' hidden states, their pooled vector and the sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ldm.ops.embedding import sinusoid
from ldm.text.tokenizer import padded
from ldm.text.weighting import Weighting, weigh

if TYPE_CHECKING:
    from ldm.models.clip import CLIPText, TextOutput
    from ldm.models.shapes import Family
    from ldm.options import Job
    from ldm.text.prompt import TowerText

AESTHETIC = 6.0  # the refiner's score for the prompt; generative-models `sgm/inference/api.py`
AESTHETIC_NEGATIVE = 2.5  # and for the negative
SQUARE = (1024, 1024)
CHUNKS_AT_ONCE = 16  # bounds the towers' memory where a prompt is very long

EmptyNegative = Literal["encode", "zeros-if-none", "zeros-if-empty", "zeros-any", "zeros-keep-pooled", "zeros"]
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


def sizes_told(job: Job, rule: str = "picture") -> tuple[dict[str, Any], dict[str, Any]]:
    """What a finished job tells the model of sizes, for the prompt and for the negative; the words are those of `size_numbers`.

    `rule`: what is told where a size is not given, the picture's own, or 1024 for the original (generative-models), or for both (InvokeAI).
    """
    size = (int(job.height or 0), int(job.width or 0))
    original = job.original or (size if rule == "picture" else SQUARE)
    target = job.target or (SQUARE if rule == "1024" else size)
    told: dict[str, Any] = {"size": size, "original": original, "crop": job.crop or (0, 0), "target": target}
    apart = {"original": job.negative_original, "crop": job.negative_crop, "target": job.negative_target}
    given = {name: pair for name, pair in apart.items() if pair is not None}
    return told, {**told, **given, "aesthetic": AESTHETIC_NEGATIVE}


def encode(
    towers: Sequence[CLIPText],
    family: Family,
    texts: Sequence[Sequence[TowerText]],
    numbers: Sequence[float],
    *,
    times: Sequence[int] = (1,),
    weighting: Weighting = "none",
    depths: Pair = (2, 2),
    at_once: int = CHUNKS_AT_ONCE,
) -> list[Conditioning]:
    """What each tower reads of each text, and the numbers of all -> context (1, 77n, D) and vector (1, V) of each text.

    Context: the layer before the last (or those of `depths`), without the final norm, weighted, towers side by side on the features, chunks
    one after the other. Vector: what the last tower pools of the first chunk, without weights, then the numbers' Fourier features. Texts
    are the forms of one prompt that changes on the way, each in `times` stretches of it: they meet in nothing but the mean of `weighting`.
    `at_once` chunks of one text go through a tower together.
    """
    read = [int(depths[bool(at) or len(towers) == 1]) for at in range(len(towers))]  # a tower alone is not CLIP-L
    sides = [
        _of_tower(tower, [each[k] for each in texts], times, weighting, depth, at_once)
        for k, (tower, depth) in enumerate(zip(towers, read, strict=True))
    ]
    return [_joined(side, family, numbers) for side in zip(*sides, strict=True)]


def _of_tower(
    tower: CLIPText, texts: Sequence[TowerText], times: Sequence[int], weighting: Weighting, depth: int, at_once: int
) -> list[tuple[Tensor, Tensor | None]]:
    """Hidden states (n, 77, W), weighted, and what is pooled of the first chunk (1, P), of each text."""
    hidden, pooled = zip(*(_run(tower, text.ids, at_once, depth) for text in texts), strict=True)
    weights = [torch.tensor(text.weights, device=hidden[0].device) for text in texts]
    done = weigh(hidden, weights, times, weighting, lambda: _run(tower, [padded([], tower.shape.pad_token)], 1, depth)[0])
    return list(zip(done, pooled, strict=True))


def _joined(sides: Sequence[tuple[Tensor, Tensor | None]], family: Family, numbers: Sequence[float]) -> Conditioning:
    context = torch.cat([hidden for hidden, _ in sides], -1).flatten(0, 1)[None]  # (n, 77, D) -> (1, 77n, D)
    pooled = sides[-1][1]
    if pooled is None or not family.numbers:
        return Conditioning(context, context.new_zeros(1, 0))
    features = fourier(torch.tensor([numbers]), family.size_embedding)  # on the CPU: the same bits for every device
    return Conditioning(context, torch.cat([pooled, features.to(context.device)], -1))


def _run(tower: CLIPText, chunks: Sequence[Sequence[int]], at_once: int, depth: int) -> tuple[Tensor, Tensor | None]:
    """(n, 77) ids -> hidden states (n, 77, W) and what is pooled of the first chunk (1, P), float32; a few chunks at a time."""
    device = tower.text_model.final_layer_norm.weight.device  # a weight that is in memory whatever else comes and goes
    parts: list[TextOutput] = [tower(part, depth) for part in torch.split(torch.tensor(chunks, device=device), at_once)]
    pooled = parts[0].pooled
    return torch.cat([part.penultimate for part in parts]).float(), None if pooled is None else pooled[:1].float()


def depths(rule: str, skip: int | None, *, negative: bool = False) -> tuple[int, int]:
    """Which state of CLIP-L, and of the other towers, is read, counted from the end, by a profile's `clip_skip`; 2 unless asked.

    "layer": that state (ComfyUI's CLIPSetLastLayer). "at-least-2": not the last (Forge). "beyond-2": so many more are left out (InvokeAI),
    "prompt-beyond-2": of the prompt alone (diffusers). "clip-l": of that tower alone, "ignored": of none (stable-diffusion-webui, with and
    without its option sdxl_clip_l_skip).
    """
    if not skip or rule == "ignored" or (negative and rule == "prompt-beyond-2"):
        return 2, 2
    read = {"layer": skip, "clip-l": skip, "at-least-2": max(skip, 2)}.get(rule, skip + 2)
    return read, 2 if rule == "clip-l" else read


def decide_zero(rule: EmptyNegative, negative: str | None) -> bool:
    """Whether the negative's text is zeros instead of being encoded. None: none was given.

    "encode": never (ComfyUI). "zeros-if-none": an empty text is encoded (diffusers). "zeros-if-empty": none or "", but not spaces
    (stable-diffusion-webui). "zeros": always, so that a negative text has no effect (generative-models' base).
    "zeros-any": as "zeros-if-empty", but see `emptied` (InvokeAI). "zeros-keep-pooled": none or "", and what is pooled stays
    (stable-diffusion.cpp).
    """
    return rule == "zeros" or (negative is None if rule == "zeros-if-none" else rule != "encode" and not negative)


def emptied(rule: EmptyNegative, text: str | None, second: str | None, *, negative: bool, aesthetic: bool = False) -> tuple[bool, bool]:
    """Whether what the towers read of a text becomes zeros: the last, to which `second` is told where it is given, and those before it.

    "zeros-any" asks of each tower whether what it reads is empty, in the prompt too; all others ask of the negative as a whole. With an
    `aesthetic` score, as the refiner has it, "zeros" and "zeros-any" encode all texts. Sources: generative-models
    `configs/inference/sd_xl_refiner.yaml` (is_legacy), InvokeAI `compel.py`.
    """
    if aesthetic and rule in ("zeros", "zeros-any"):
        return False, False
    if rule == "zeros-any":
        return not (text if second is None else second), not text
    zero = negative and decide_zero(rule, text or second or text)
    return zero, zero


def zeroed(cond: Conditioning, family: Family, towers: tuple[bool, bool] = (True, True), *, pooled: bool = True) -> Conditioning:
    """Without the text of `towers`, the last and those before it: their context and, where `pooled`, what the last pools are zeros.

    The numbers stay. Source: generative-models `sgm/modules/encoders/modules.py`, force_zero_embeddings.
    """
    last, before = towers
    context, vector = cond.context.clone(), cond.vector.clone()
    width = family.towers[-1].width
    context[..., -width if last else context.shape[-1] :] = 0
    context[..., : context.shape[-1] - width if before else 0] = 0
    vector[:, : family.towers[-1].projection if pooled and last else 0] = 0
    return replace(cond, context=context, vector=vector)
