"""Captions as the UNet reads them: features made once for captions that stay, or by the towers at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.models.clip import CLIPText
from ldm.text.prompt import chunks
from ldm.text.tokenizer import encode, padded

AT_ONCE = 64  # captions


class Words:
    """`read` gives the captions' context and pooled vector; `live`: the towers learn, so nothing can be kept.

    A caption with a number in `keep` has its comma-separated parts shuffled at every step, but for so many at its front. Of a long one the
    first 75 tokens are read.
    """

    def __init__(self, towers: Sequence[CLIPText], captions: Sequence[str], keep: Sequence[int | None], *, live: bool = False) -> None:
        self.towers, self.captions, self.keep = towers, captions, keep
        self.live = live or any(each is not None for each in keep)
        self._kept: dict[str, tuple[Tensor, Tensor | None]] = {}
        if not self.live:
            self._make(sorted({"", *captions}))

    def read(
        self, rows: Sequence[int], dropped: Sequence[bool], random: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """context (B, 77, D) and pooled (B, P), if there is one, of the captions of `rows`; "" where they are dropped."""
        texts = ["" if drop else self._shuffled(row, random) for row, drop in zip(rows, dropped, strict=True)]
        if self.live:
            return run(self.towers, texts)
        found = [self._kept[text] for text in texts]
        pooled = [each[1] for each in found if each[1] is not None]
        return torch.stack([each[0] for each in found]).float().to(device), torch.stack(pooled).to(device) if pooled else None

    def _shuffled(self, row: int, random: torch.Generator) -> str:
        keep = self.keep[row]
        if keep is None:
            return self.captions[row]
        parts = [part.strip() for part in self.captions[row].split(",")]
        order = torch.randperm(max(len(parts) - keep, 0), generator=random).tolist()
        return ", ".join([*parts[:keep], *(parts[keep + at] for at in order)])

    @torch.no_grad()
    def _make(self, texts: Sequence[str]) -> None:
        for first in range(0, len(texts), AT_ONCE):
            part = texts[first : first + AT_ONCE]
            context, pooled = run(self.towers, part)
            for at, text in enumerate(part):
                self._kept[text] = (context[at].cpu(), None if pooled is None else pooled[at].cpu())


def run(towers: Sequence[CLIPText], texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """context (B, 77, D): the towers' layers before the last side by side; pooled (B, P) of the last one."""
    ids = [encode(text) for text in texts]
    made = []
    for tower in towers:
        rows = torch.tensor([padded(chunks(each, "cut")[0], tower.shape.pad_token) for each in ids])
        made.append(tower(rows.to(next(tower.parameters()).device)))
    return torch.cat([each.penultimate for each in made], dim=-1), made[-1].pooled
