"""From numbers to pictures; `ldm.pictures` has their files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ldm.errors import NumericError


def to_pil(image: Any) -> list[Image.Image]:
    """The pictures of `image` (B, 3, H, W) in [-1, 1], a tensor on any device or an array.

    A value v becomes the byte nearest to 127.5 v + 127.5, a tie going to the even one; what lies outside [-1, 1] is clamped first.
    Raises NumericError for values that are not finite: they would be black without a word.
    """
    values = _array(image)
    if not np.isfinite(values).all():
        raise NumericError(f"the picture has {np.count_nonzero(~np.isfinite(values))} values that are not finite: try --dtype float32")
    levels = np.rint(np.clip(values, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(each)) for each in levels.transpose(0, 2, 3, 1)]  # (B, H, W, 3)


def _array(image: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (B, 3, H, W) on the host; a bfloat16 tensor has no array of its own, so it is widened first."""
    return np.asarray(image.detach().float().cpu().numpy() if hasattr(image, "detach") else image, dtype=np.float32)
