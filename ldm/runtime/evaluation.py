"""The UNet with its second try: row by row, where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ldm.diffusion.prediction import Prediction
from ldm.runtime import retry

if TYPE_CHECKING:
    from ldm.models.unet import UNet
    from ldm.text.conditioning import Conditioning

ATTEMPT = partial(retry.once_more, "UNet", path="trying again, one row at a time")


def prediction(unet: UNet, rows: Conditioning, count: int, ts: Sequence[float]) -> Prediction:
    """The prediction for `count` pictures a row of conditioning, steps `ts` prepared. Raises MemoryNeedError, as its calls do."""

    def prepared() -> Prediction:
        made = Prediction(unet, rows.context, rows.vector, count=count, attempt=ATTEMPT)
        made.prepare(ts)
        return made

    return retry.once_more("UNet", prepared, prepared)
