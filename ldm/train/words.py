"""Captions as the UNet reads them: features made once for captions that stay, or by the towers at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.models.clip import CLIPText
from ldm.text.prompt import chunks
from ldm.text.tokenizer import encode, padded

AT_ONCE = 64  # captions
KEPT = 20_000  # captions whose features are made before the first step; of more, those of a batch at its step


class Words:
    """`read` gives the captions' context and pooled vector; `live`: the towers learn, so nothing can be kept.

    A caption with a number in `keep` has its comma-separated parts shuffled at every step, but for so many at its front. Of a long one the
    first 75 tokens are read.
    """

    def __init__(self, towers: Sequence[CLIPText], captions: Sequence[str], keep: Sequence[int | None], *, live: bool = False) -> None:
        self.towers, self.captions, self.keep = towers, captions, keep
        self.learning = live
        self._kept: dict[str, tuple[Tensor, Tensor | None]] = {}
        texts = sorted({"", *captions})
        self.live = live or any(each is not None for each in keep) or len(texts) > KEPT
        if not self.live:
            self._make(texts)

    def read(
        self, rows: Sequence[int], dropped: Sequence[bool], random: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """context (B, 77, D) and pooled (B, P), if there is one, of the captions of `rows`; "" where they are dropped."""
        texts = ["" if drop else shuffled(self.captions[row], self.keep[row], random) for row, drop in zip(rows, dropped, strict=True)]
        if self.live:
            with torch.set_grad_enabled(self.learning):
                return run(self.towers, texts)
        found = [self._kept[text] for text in texts]
        pooled = [each[1] for each in found if each[1] is not None]
        return torch.stack([each[0] for each in found]).float().to(device), torch.stack(pooled).to(device) if pooled else None

    @torch.no_grad()
    def _make(self, texts: Sequence[str]) -> None:
        for first in range(0, len(texts), AT_ONCE):
            part = texts[first : first + AT_ONCE]
            context, pooled = run(self.towers, part)
            for at, text in enumerate(part):
                self._kept[text] = (context[at].cpu(), None if pooled is None else pooled[at].cpu())


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
