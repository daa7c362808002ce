"""SDXL's 48 bits: read back by us and by the stock decoder, and the cost in decibels."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ldm import watermark
from ldm.errors import InputError
from scripts.faults.picturefiles import scene


def noise(side: int, grain: int = 1) -> Image.Image:
    """Colours by chance, in spots of `grain` pixels, without hard edges."""
    coarse = np.random.default_rng(3).integers(0, 256, (side // grain, side // grain, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def half(side: int) -> Image.Image:
    """A thing before a white ground."""
    made = Image.new("RGB", (side, side), "white")
    made.paste(noise(side // 2, 8), (side // 4, side // 4))
    return made


PICTURES: dict[str, Callable[[int], Image.Image]] = {
    "gradient": lambda side: scene(side, side),
    "noise": noise,
    "clouds": lambda side: noise(side, 16),
    "half white": half,
}
FLAT = ["white", "black", "red", "lime", "yellow", "cyan", "grey", "#14c85a", "#010203"]


def decibels(one: Image.Image, two: Image.Image) -> float:
    return float(10 * np.log10(255**2 / np.mean((np.asarray(one, float) - np.asarray(two, float)) ** 2)))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("side", [256, 512, 520])
def test_every_bit_comes_back_and_nobody_sees_it(name: str, side: int) -> None:
    picture = PICTURES[name](side)
    marked = watermark.embed(picture)
    assert marked.size == picture.size and marked.mode == "RGB"
    assert watermark.read(marked) == watermark.BITS
    assert watermark.read(picture) <= watermark.LIKELY
    assert decibels(picture, marked) > (36 if name == "half white" else 40)


@pytest.mark.parametrize("colour", FLAT)
def test_a_flat_picture_keeps_it(colour: str) -> None:
    picture = Image.new("RGB", (256, 256), colour)
    marked = watermark.embed(picture)
    assert watermark.read(marked) >= 46
    assert decibels(picture, marked) > 35


@pytest.mark.parametrize("colour", ["blue", "magenta"])
def test_where_blue_has_no_room_the_picture_stays_whole(colour: str) -> None:
    picture = Image.new("RGB", (256, 256), colour)
    assert decibels(picture, watermark.embed(picture)) > 40  # no mark can be there, and no harm is done


def test_it_survives_a_good_jpeg() -> None:
    file = io.BytesIO()
    watermark.embed(noise(512, 16)).save(file, "JPEG", quality=95, subsampling=0)
    assert watermark.read(Image.open(file)) >= 46


def test_luma_and_the_other_colour_stay() -> None:
    picture = noise(256, 16).point(lambda value: 64 + value // 2)  # far from the ends of the range
    one, two = (np.asarray(each.convert("YCbCr"), int) for each in (picture, watermark.embed(picture)))
    assert abs(one[..., 0] - two[..., 0]).max() <= 1 and abs(one[..., 2] - two[..., 2]).max() <= 1
    assert abs(one[..., 1] - two[..., 1]).max() > 5


def test_what_is_too_small_is_refused_with_a_word() -> None:
    small = Image.new("RGB", (255, 512))
    with pytest.raises(InputError, match="255x512 is too small"):
        watermark.embed(small)
    assert watermark.read(small) == 0


def test_the_bits_are_those_of_the_reference() -> None:
    assert "".join(str(int(bit)) for bit in watermark._bits()) == "101100111110110010010000011110111011000110011110"


@pytest.mark.parametrize("side", [512, 1024])
def test_the_stock_decoder_reads_ours_and_we_read_the_stock_encoder(side: int) -> None:
    """The package `invisible-watermark`, with opencv and PyWavelets, which no part of ldm needs."""
    stock = pytest.importorskip("imwatermark", reason="invisible-watermark is not installed: pip install invisible-watermark")
    bits = [int(bit) for bit in watermark._bits()]
    for picture in (noise(side, 16), scene(side, side)):
        marked = watermark.embed(picture)
        found = stock.WatermarkDecoder("bits", 48).decode(np.asarray(marked)[..., ::-1], "dwtDct")
        assert sum(int(one) == two for one, two in zip(found, bits, strict=True)) >= 46
    encoder = stock.WatermarkEncoder()
    encoder.set_watermark("bits", bits)
    theirs = encoder.encode(np.asarray(noise(side, 16))[..., ::-1], "dwtDct")
    assert watermark.read(Image.fromarray(np.ascontiguousarray(theirs[..., ::-1]))) >= 46
    assert decibels(noise(side, 16), watermark.embed(noise(side, 16))) > decibels(noise(side, 16), Image.fromarray(theirs[..., ::-1]))
