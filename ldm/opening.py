"""A stranger's picture, opened without trust: its headers are looked at, then it is refused or decoded."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ldm.errors import InputError
from ldm.metadata import containers

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 40_000_000
MAX_FILE = 512 * 2**20  # bytes of a picture file that is opened


@dataclass(frozen=True)
class Opened:
    """A decoded picture, upright; `alpha` (L) is None where every pixel is opaque. The notes are for the user."""

    rgb: Image.Image
    alpha: Image.Image | None
    format: str
    notes: tuple[str, ...] = ()

    def on_white(self) -> Opened:
        """Without the colours under what is transparent, which nobody was meant to see."""
        if self.alpha is None:
            return self
        from PIL import Image

        rgb = Image.composite(self.rgb, Image.new("RGB", self.rgb.size, "white"), self.alpha)
        return replace(self, rgb=rgb, alpha=None, notes=(*self.notes, "what is transparent becomes white"))


@contextmanager
def stranger(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. InputError where it is absent, no regular file, or too large."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")  # a pipe must not block
    except FileNotFoundError:
        raise InputError(f"no picture at {path}: check the name") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be opened ({getattr(error, 'strerror', None) or error}): give a picture file") from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path.name} is not a regular file: give a picture file")
        if status.st_size > MAX_FILE:
            raise InputError(f"{path.name} has {status.st_size >> 20} MiB: pictures of up to {MAX_FILE >> 20} MiB are opened")
        yield file


def look(file: BinaryIO, name: str) -> containers.Container:
    """The headers of an open file; InputError where it is no picture of the four formats."""
    try:
        return containers.find(file)
    except ValueError as error:
        raise InputError(f"{name} is not a PNG, JPEG, WebP or AVIF picture ({error}): convert it first") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): check the disk") from None


def check_codec(name: str, kind: str) -> None:
    """InputError where this machine's Pillow cannot read and write the format; only AVIF can be absent."""
    if kind != "AVIF":
        return
    from PIL import features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an older Pillow does not know the word
        if not features.check("avif"):
            raise InputError(f"{name}: this Pillow was built without AVIF: install pillow 11.3 or newer, or take another format")


def open_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """Decode a PNG, JPEG, WebP or AVIF into RGB and alpha, upright by its EXIF; of an animation the first frame.

    Raises InputError, before any pixel is decoded, for more than `max_pixels` and for other formats; and for files that are cut or damaged.
    """
    with stranger(path) as file:
        return read_picture(file, path.name, max_pixels=max_pixels)


def read_picture(file: BinaryIO, name: str, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """The same of an open file that can be read anywhere; `name` is what errors call it."""
    header = look(file, name)
    _check_pixels(name, header.size, max_pixels)
    check_codec(name, header.format)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(file, header, name, max_pixels)
    except InputError:
        raise
    except Exception as error:  # whatever a decoder raises over a stranger's bytes, it is the file that is at fault
        raise InputError(f"{name} is a damaged {header.format} ({str(error)[:80]}): give a whole file") from None


def _check_pixels(name: str, size: tuple[int, int], limit: int) -> None:
    width, height = size
    if width * height > limit:
        raise InputError(
            f"{name}: {width}x{height} is {width * height / 1e6:.1f} million pixels, the limit is {limit / 1e6:g}: make it smaller"
        )


def _decode(file: BinaryIO, header: containers.Container, name: str, limit: int) -> Opened:
    from PIL import Image

    picture: Image.Image = Image.open(file, formats=[header.format])
    _check_pixels(name, picture.size, limit)
    notes = _notes(header, picture)
    picture.load()
    picture = _plain(picture)
    alpha = picture.getchannel("A") if "A" in picture.getbands() else None
    if alpha is not None and alpha.getextrema() == (255, 255):
        alpha = None
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    rgb.info = {}
    return Opened(rgb, alpha, header.format, tuple(notes))


def _notes(header: containers.Container, picture: Image.Image) -> list[str]:
    frames = getattr(picture, "n_frames", 1)
    profile = picture.info.get("icc_profile") or b"sRGB"
    common = b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
    said = [
        (frames > 1 or header.animated, f"it has {max(frames, 2)} frames: the first is taken"),
        (header.bits == 16, "16 bits a channel become 8"),
        (picture.mode == "CMYK", "CMYK becomes RGB without its colour profile"),
        (picture.mode != "CMYK" and not common, "its colour profile is not applied"),
    ]
    return [note for holds, note in said if holds]


def _plain(picture: Image.Image) -> Image.Image:
    """An upright picture of 8 bits: RGB, RGBA or L."""
    from PIL import Image

    turn = _turn(picture)
    if picture.mode.startswith("I"):
        picture = _bytes(picture)
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA" if picture.mode == "PA" or "transparency" in picture.info else "RGB")
    elif picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGBA" if "A" in picture.getbands() else "RGB")
    elif turn is None:
        return picture.copy() if type(picture) is not Image.Image else picture  # without the decoder's own memory
    return picture if turn is None else picture.transpose(turn)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright, by its EXIF; a damaged EXIF turns nothing."""
    from PIL import Image

    to = Image.Transpose
    turns = (to.FLIP_LEFT_RIGHT, to.ROTATE_180, to.FLIP_TOP_BOTTOM, to.TRANSPOSE, to.ROTATE_270, to.TRANSVERSE, to.ROTATE_90)
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # Pillow reads a stranger's EXIF here; what it raises has no list
        return None
    return turns[orientation - 2] if isinstance(orientation, int) and 2 <= orientation <= 8 else None


def _bytes(picture: Image.Image) -> Image.Image:
    """The high bytes of 16-bit grey, as the decoder takes them of 16-bit colour."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
