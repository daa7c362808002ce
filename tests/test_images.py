"""Pictures: the rounding rule, and files that are whole or absent."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import InputError, NumericError
from ldm.images import read_texts, save_png, to_pil


def test_every_byte_has_its_value_and_the_nearest_one_wins() -> None:
    levels = np.arange(256, dtype=np.float64)
    for shift in (-0.49, 0.0, 0.49):
        values = ((levels + shift) / 127.5 - 1).astype(np.float32)
        picture = to_pil(np.broadcast_to(values, (1, 3, 1, 256)))[0]
        assert np.array_equal(np.asarray(picture)[0, :, 0], levels)


def test_what_lies_outside_is_clamped() -> None:
    picture = to_pil(np.array([-9.0, -1.0, 0.0, 1.0, 9.0], np.float32).reshape(1, 1, 1, 5).repeat(3, axis=1))[0]
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 is a tie: it goes to the even byte


def test_tensors_of_every_dtype_give_what_the_array_gives() -> None:
    image = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        pictures = to_pil(image.to(dtype, copy=True).requires_grad_())
        wanted = to_pil(image.to(dtype).float().numpy())
        assert [each.size for each in pictures] == [(5, 4), (5, 4)]
        assert all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in zip(pictures, wanted, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_an_error(bad: float) -> None:
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, 1, 2, 3] = bad
    with pytest.raises(NumericError, match="1 values that are not finite"):
        to_pil(image)


def test_texts_come_back_and_pixels_too(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    texts = {"parameters": "é 🍎\nNegative prompt: ü", "ldm": "x" * 3_000_000}
    path = save_png(picture, tmp_path / "a.png", texts)
    assert read_texts(path) == texts
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))


def test_a_name_that_is_taken_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        save_png(Image.new("RGB", (8, 8)), path, {})
    assert path.read_bytes() == b"old"
    save_png(Image.new("RGB", (8, 8)), path, {}, overwrite=True)
    assert read_texts(path) == {}
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_a_failing_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", {"parameters": "\udcff"})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture at"):
        read_texts(tmp_path / "none.png")
    (tmp_path / "a.png").write_bytes(b"GIF89a" + b"\0" * 50)
    with pytest.raises(InputError, match="not a readable PNG"):
        read_texts(tmp_path / "a.png")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_hostile_files_are_refused_without_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels, text = _chunk(b"IDAT", b""), _chunk(b"zTXt", b"ldm\0\0" + zlib.compress(b"\0" * 50_000_000))
    for side, rest in ((2**30, pixels), (8, text)):
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0") + rest)
        with pytest.raises(InputError, match="not a readable PNG"):
            read_texts(path)


def test_every_cut_of_a_file_is_read_or_refused(tmp_path: Path) -> None:
    path = save_png(Image.new("RGB", (16, 16), "red"), tmp_path / "a.png", {"ldm": "{}"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert read_texts(path) in ({}, {"ldm": "{}"})
        except InputError:
            continue
