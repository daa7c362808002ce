"""From numbers to pictures; `ldm.pictures` has their files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ldm.errors import NumericError

Levels = np.ndarray[Any, np.dtype[np.uint8]]  # (B, H, W, 3)


def to_pil(image: Any) -> list[Image.Image]:
    """The pictures of `image` (B, 3, H, W) in [-1, 1], a tensor on any device or an array.

    A value v becomes the byte nearest to 127.5 v + 127.5, a tie going to the even one; what lies outside [-1, 1] is clamped first.
    Raises NumericError for values that are not finite: they would be black without a word.
    """
    levels = _on_device(image) if getattr(image, "is_cuda", False) else _on_host(image)
    return [Image.fromarray(each) for each in levels]


def _on_host(image: Any) -> Levels:
    values = _array(image)
    if not np.isfinite(values).all():
        raise _error(int(np.count_nonzero(~np.isfinite(values))))
    levels = np.rint(np.clip(values, -1, 1) * 127.5 + 127.5).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))


def _on_device(image: Any) -> Levels:
    """The same of a tensor, bit for bit, where it is: a quarter of the bytes travel, and in the order of the file."""
    values = image.detach().float()
    finite = values.isfinite()
    if not finite.all():
        raise _error(int((~finite).sum()))
    levels = (values.clamp(-1, 1) * 127.5 + 127.5).round().byte()  # three operations, so none is fused; a tie goes to the even one
    made: Levels = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return made


def _error(count: int) -> NumericError:
    return NumericError(f"the picture has {count} values that are not finite: try --dtype float32")


def _array(image: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """float32 (B, 3, H, W) on the host; a bfloat16 tensor has no array of its own, so it is widened first."""
    return np.asarray(image.detach().float().cpu().numpy() if hasattr(image, "detach") else image, dtype=np.float32)
