"""Captions as the UNet reads them: features made once for captions that stay, and kept on disk, or by the towers at every step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.models.clip import CLIPText
from ldm.text.prompt import chunks
from ldm.text.tokenizer import encode, padded
from ldm.train.cache import fingerprint
from ldm.train.sealed import seal, unseal_made_by
from ldm.train.watching import counter

AT_ONCE = 64  # captions
# Captions, and bytes, of features that are made before the first step; of more, those of a batch at its step.
KEPT, HELD = 20_000, 2**32
RECORD = "words.json"  # in the folder of a run
Say = Callable[[str], None]


class Words:
    """`read` gives the captions' context and pooled vector; `live`: the towers learn, so nothing can be kept.

    A caption with a number in `keep` has its comma-separated parts shuffled at every step, but for so many at its front. Of a long one the
    first 75 tokens are read. Features that are made once are kept in `folder`, where one is given.
    """

    def __init__(
        self,
        towers: Sequence[CLIPText],
        captions: Sequence[str],
        keep: Sequence[int | None],
        *,
        live: bool = False,
        folder: Path | None = None,
        say: Say = lambda _: None,
    ) -> None:
        self.towers, self.captions, self.keep = towers, captions, keep
        self.learning = live
        texts = sorted({"", *captions})
        self.live = live or any(each is not None for each in keep) or len(texts) > KEPT or len(texts) * _size(towers) > HELD
        made = {} if self.live else features(towers, texts, folder, say)
        self._kept = {text: {name: values[at] for name, values in made.items()} for at, text in enumerate(texts if made else ())}

    def read(
        self, rows: Sequence[int], dropped: Sequence[bool], random: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """context (B, 77, D) and pooled (B, P), if there is one, of the captions of `rows`; "" where they are dropped."""
        texts = ["" if drop else shuffled(self.captions[row], self.keep[row], random) for row, drop in zip(rows, dropped, strict=True)]
        if self.live:
            with torch.set_grad_enabled(self.learning):
                return run(self.towers, texts)
        found = [self._kept[text] for text in texts]
        pooled = [each["pooled"] for each in found if "pooled" in each]
        return torch.stack([each["context"] for each in found]).float().to(device), torch.stack(pooled).to(device) if pooled else None


def features(towers: Sequence[CLIPText], texts: Sequence[str], folder: Path | None, say: Say) -> dict[str, Tensor]:
    """context (N, 77, D) and pooled (N, P), if there is one, of all texts, on the CPU; from `folder` where these are kept there whole."""
    if folder is None:
        return _made(towers, texts, say)
    record, marks = folder / RECORD, [fingerprint(tower.state_dict()) for tower in towers]
    source = hashlib.sha256(repr((marks, list(texts))).encode()).hexdigest()
    kept = unseal_made_by(record, source)
    if kept is not None:
        return kept[1]
    made = _made(towers, texts, say)
    seal(record, made, {"source": source})
    return made


@torch.no_grad()
def _made(towers: Sequence[CLIPText], texts: Sequence[str], say: Say) -> dict[str, Tensor]:
    parts, done = list[tuple[Tensor, Tensor | None]](), counter("encoding captions", len(texts), say)
    for first in range(0, len(texts), AT_ONCE):
        parts.append(run(towers, texts[first : first + AT_ONCE]))
        done(min(first + AT_ONCE, len(texts)))
    context, pooled = [each[0].cpu() for each in parts], [each[1].cpu() for each in parts if each[1] is not None]
    return {"context": torch.cat(context)} | ({"pooled": torch.cat(pooled)} if pooled else {})


def _size(towers: Sequence[CLIPText]) -> int:
    """Bytes of a caption's features."""
    return 4 * sum(tower.shape.length * tower.shape.width + tower.shape.projection for tower in towers)


def shuffled(caption: str, keep: int | None, random: torch.Generator) -> str:
    """Its comma-separated parts in another order, but for the first `keep`; None: as it is."""
    if keep is None:
        return caption
    parts = [part.strip() for part in caption.split(",")]
    order = torch.randperm(max(len(parts) - keep, 0), generator=random).tolist()
    return ", ".join([*parts[:keep], *(parts[keep + at] for at in order)])


def token_ids(texts: Sequence[str], pad: int) -> Tensor:
    """(B, 77): start, at most 75 tokens of a text, end, padding."""
    return torch.tensor([padded(chunks(encode(text), "cut")[0], pad) for text in texts])


def run(towers: Sequence[CLIPText], texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """context (B, 77, D): the towers' layers before the last side by side; pooled (B, P) of the last one."""
    made = [tower(token_ids(texts, tower.shape.pad_token).to(next(tower.parameters()).device)) for tower in towers]
    return torch.cat([each.penultimate for each in made], dim=-1), made[-1].pooled
