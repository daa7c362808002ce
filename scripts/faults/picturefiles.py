"""Picture files for the experiments: whole ones of every kind, bombs, damaged ones; and a process that opens the damaged ones.

python -m scripts.faults.picturefiles FIRST COUNT    # opens mutants FIRST to FIRST + COUNT - 1, prints what came of them as JSON
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, features

AVIF = bool(features.check("avif"))
Files = dict[str, bytes]


def file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of the kind."""
    made = io.BytesIO()
    picture.save(made, kind, **options)
    return made.getvalue()


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture that is the same at every call: gradients, so that formats which lose something stay near it."""
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)
    made = Image.fromarray(colours)
    if mode in ("RGBA", "LA", "PA"):
        made = made.convert(mode.replace("PA", "RGBA"))
        made.putalpha(Image.fromarray((x * 255 // width).astype(np.uint8)))
        return made
    return Image.fromarray((x * 65535 // width).astype(np.uint16)) if mode == "I;16" else made.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def whole(width: int = 24, height: int = 16) -> Files:
    """A file of every format in every mode that is opened."""
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb, rgba = scene(width, height), scene(width, height, "RGBA")
    palette = rgb.convert("P")
    made = {f"{mode}.png": file(scene(width, height, mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "I;16", "1")}
    made |= {
        "P.png": file(palette, "PNG"),
        "clear.png": file(palette, "PNG", transparency=palette.getpixel((0, 0))),
        "texts.png": _texts_png(rgb),
    }
    made |= {"apng.png": file(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)])}
    made |= {f"{mode}.jpg": file(scene(width, height, mode), "JPEG") for mode in ("RGB", "L", "CMYK")}
    made |= {"progressive.jpg": file(rgb, "JPEG", progressive=True), "turned.jpg": file(rgb, "JPEG", exif=turned.tobytes())}
    made |= {"RGB.webp": file(rgb, "WEBP"), "RGBA.webp": file(rgba, "WEBP"), "lossless.webp": file(rgb, "WEBP", lossless=True)}
    made |= {"film.webp": file(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)])}
    made |= {"turned.webp": file(rgb, "WEBP", exif=turned.tobytes(), xmp=b"<x/>")}
    if AVIF:
        made |= {"RGB.avif": file(rgb, "AVIF"), "RGBA.avif": file(rgba, "AVIF"), "turned.avif": file(rgb, "AVIF", exif=turned.tobytes())}
        made |= {"film.avif": file(rgb, "AVIF", save_all=True, append_images=[rgb.rotate(180)])}
    return made


def _texts_png(picture: Image.Image) -> bytes:
    plain = file(picture, "PNG")
    texts = (b"tEXt", b"a\0b"), (b"zTXt", b"c\0\0" + zlib.compress(b"d")), (b"iTXt", b"e\0\1\0\0\0" + zlib.compress(b"f"))
    return plain[:33] + b"".join(chunk(*each) for each in texts) + plain[33:]


def bombs() -> Files:
    """Small files that claim to be huge."""
    side = 20_000
    packed = zlib.compress(bytes(3 * side + 1) * 2000)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    made = {"bomb.png": head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")}
    jpeg = bytearray(file(scene(16, 16), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    made["bomb.jpg"] = bytes(jpeg)
    film = bytearray(file(scene(16, 16, "RGBA"), "WEBP", save_all=True, append_images=[scene(16, 16)]))
    at = film.index(b"VP8X")
    film[at + 12 : at + 18] = b"\xff\x3f\x00" * 2
    made["bomb.webp"] = bytes(film)
    still = bytearray(file(scene(16, 16), "WEBP"))
    at = still.index(b"\x9d\x01\x2a")
    still[at + 3 : at + 7] = struct.pack("<HH", 16_383, 16_383)
    made["still.webp"] = bytes(still)
    if AVIF:
        avif = bytearray(file(scene(16, 16), "AVIF"))
        at = avif.index(b"ispe")
        avif[at + 8 : at + 16] = struct.pack(">II", 12_000, 12_000)
        made["bomb.avif"] = bytes(avif)
    return made


def mutant(number: int, files: list[bytes]) -> bytes:
    """A damaged copy of one of the files; the same for the same number."""
    dice = random.Random(number)
    data = bytearray(files[number % len(files)])
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at = dice.randrange(len(data) + 1) if dice.random() < 0.5 else dice.randrange(min(len(data), 120) + 1)
        _damage(dice, data, at, files)
    return bytes(data)


def _damage(dice: random.Random, data: bytearray, at: int, files: list[bytes]) -> None:
    way, length = dice.randrange(7), dice.choice((1, 2, 4, 16, 64))
    if way == 0:
        data[at : at + 1] = bytes([dice.randrange(256)])
    elif way == 1:
        del data[at:]
    elif way == 2:
        data[at:at] = dice.randbytes(length)
    elif way == 3:
        del data[at : at + length]
    elif way == 4:
        data[at:at] = data[at : at + length] * dice.choice((1, 2, 50))
    elif way == 5:
        extreme = dice.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1))
        data[at : at + 4] = extreme.to_bytes(4, dice.choice(("big", "little")))
    else:
        other = dice.choice(files)
        data[at : at + length] = other[at : at + length]


def open_mutants(first: int, count: int) -> dict[str, Any]:
    """Open and read each mutant as the program would: how many were opened, how many refused, and the rest by their error."""
    from ldm import opening, pictures
    from ldm.errors import InputError

    largest = _watch_decoders()
    files = list(whole().values())
    told: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutant")
        for number in range(first, first + count):
            path.write_bytes(mutant(number, files))
            start = time.perf_counter()
            for name, call in (("opened", opening.open_picture), ("read", pictures.read)):
                try:
                    call(path)
                    told[name] += 1
                except InputError as error:
                    told["refused" if "\n" not in str(error) else "more than one line"] += 1
                except Exception as error:  # what is counted here
                    told[f"{name} {number}: {type(error).__name__}: {error}"] += 1
            slowest = max(slowest, time.perf_counter() - start)
    return {"told": told, "largest": largest[0], "slowest": slowest}


def _watch_decoders() -> list[int]:
    """The most pixels of any picture that Pillow decodes from now on, in a list of one."""
    largest, load = [0], ImageFile.ImageFile.load

    def watched(self: ImageFile.ImageFile) -> Any:
        largest[0] = max(largest[0], self.width * self.height)
        return load(self)

    ImageFile.ImageFile.load = watched  # type: ignore[method-assign]
    return largest


if __name__ == "__main__":
    print(json.dumps(open_mutants(int(sys.argv[1]), int(sys.argv[2]))))
