"""From numbers to a picture file, and the texts of a picture file back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from ldm.errors import InputError, NumericError
from ldm.files import write_atomic


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


def save_png(picture: Image.Image, path: Path, texts: Mapping[str, str], *, overwrite: bool = False) -> Path:
    """Write a PNG whole or not at all, with text chunks (uncompressed: readers refuse large compressed ones).

    Raises FileExistsError where `path` exists and `overwrite` is false, and OSError from the disk.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)

    def write(file: BinaryIO) -> None:
        picture.save(file, format="PNG", pnginfo=chunks)

    return write_atomic(path, write, overwrite=overwrite)


def read_texts(path: Path) -> dict[str, str]:
    """The text chunks that stand before the pixels of a PNG; the pixels are not decoded. InputError where it is not a PNG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pixels stay packed
            with Image.open(path, formats=["PNG"]) as picture:
                return {key: str(text) for key, text in picture.info.items() if isinstance(key, str) and isinstance(text, str)}
    except FileNotFoundError:
        raise InputError(f"no picture at {path}: check the name") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path.name} is not a readable PNG ({str(error)[:80]}): give a picture file") from None
