"""The UNet with its second try, row by row, where memory runs out; and with the words of each call, where they change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ldm.diffusion.prediction import Prediction
from ldm.runtime import graph, retry

if TYPE_CHECKING:
    from ldm.models.unet import UNet
    from ldm.text.conditioning import Conditioning
    from ldm.text.course import Scenes

ATTEMPT = partial(retry.once_more, "UNet", path="trying again, one row at a time")
KEPT = 4  # scenes whose text stays prepared: what alternates comes again


def prediction(
    unet: UNet, rows: Conditioning, count: int, ts: Sequence[float], kind: type[Prediction] = Prediction
) -> Prediction:
    """The prediction for `count` pictures a row of conditioning, steps `ts` prepared. Raises MemoryNeedError, as its calls do."""

    def prepared() -> Prediction:
        made = kind(unet, rows.context, rows.vector, count=count, attempt=ATTEMPT, forward=graph.forward(unet))
        made.prepare(ts)
        return made

    return retry.once_more("UNet", prepared, prepared)


class Directed:
    """`predict(x, t)` of one run: each call with the conditioning of its scene. `ts` are the calls' own, as far as they are known."""

    def __init__(self, unet: UNet, scenes: Scenes, ts: Sequence[float], kind: type[Prediction] = Prediction) -> None:
        self._unet, self._scenes, self._ts, self._kind = unet, scenes, ts, kind
        self._call = 0
        self._made: dict[int, Prediction] = {}
        self._of_all: Directed | None = None
        self._picked: Sequence[int] = ()

    def __call__(self, x: Tensor, t: float) -> Tensor:
        place = self._scene(self._call)
        self._call += 1
        return self._prediction(place)(x, t)

    def rows(self, picked: Sequence[int]) -> Directed:
        """A run of some of the rows alone, by number."""
        alone = Directed(self._unet, self._scenes, self._ts, self._kind)
        alone._of_all, alone._picked = self, picked
        return alone

    def _scene(self, call: int) -> int:
        return self._scenes.at[min(call, len(self._scenes.at) - 1)]

    def _prediction(self, place: int) -> Prediction:
        made = self._made.pop(place, None) or self._prepared(place)
        while len(self._made) >= KEPT:
            del self._made[next(iter(self._made))]  # the one not used for longest
        self._made[place] = made
        return made

    def _prepared(self, place: int) -> Prediction:
        if self._of_all is not None:
            return self._of_all._prediction(place).rows(self._picked)
        ts = [t for call, t in enumerate(self._ts) if self._scene(call) == place]
        return prediction(self._unet, self._scenes.rows[place], self._scenes.pictures, ts, self._kind)
