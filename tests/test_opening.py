"""A stranger's picture: every kind is opened as it should look, what is too large is refused undecoded, and what is cut is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from ldm.errors import InputError
from ldm.opening import MAX_PIXELS, open_picture
from ldm.pictures import check
from scripts.faults.picturefiles import AVIF, bombs, file, scene, whole

FILES = whole()
LOSSLESS = [name for name in FILES if name.endswith(".png") or name == "lossless.webp"]


def opened(folder: Path, content: bytes, **options: int) -> object:
    path = folder / "picture"
    path.write_bytes(content)
    return open_picture(path, **options)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_is_opened(tmp_path: Path, name: str) -> None:
    found = opened(tmp_path, FILES[name])
    turned = name.startswith("turned")
    assert found.rgb.mode == "RGB" and found.rgb.size == ((16, 24) if turned else (24, 16))
    assert found.rgb.info == {}
    clear = name.startswith(("RGBA", "LA", "clear"))
    assert (found.alpha is not None) == clear
    assert not clear or (found.alpha.mode, found.alpha.size) == ("L", found.rgb.size)
    assert any("frames: the first is taken" in note for note in found.notes) == name.startswith(("apng", "film"))
    if name.split(".", maxsplit=1)[0] in ("RGB", "progressive", "lossless", "texts", "apng", "film"):
        assert np.abs(np.asarray(found.rgb, int) - np.asarray(scene(24, 16), int)).mean() < (0.01 if name in LOSSLESS else 6)


def test_modes_keep_their_colours(tmp_path: Path) -> None:
    grey = opened(tmp_path, FILES["I;16.png"])
    assert np.array_equal(np.asarray(grey.rgb)[..., 1], np.asarray(scene(24, 16, "I;16")) >> 8)
    assert grey.notes == ("16 bits a channel become 8",)
    cmyk = opened(tmp_path, FILES["CMYK.jpg"])
    assert np.abs(np.asarray(cmyk.rgb, int) - np.asarray(scene(24, 16), int)).mean() < 12
    assert cmyk.notes == ("CMYK becomes RGB without its colour profile",)
    clear = opened(tmp_path, FILES["RGBA.png"])
    assert np.array_equal(np.asarray(clear.rgb), np.asarray(scene(24, 16)))
    assert np.array_equal(np.asarray(clear.alpha), np.asarray(scene(24, 16, "RGBA").getchannel("A")))


def test_an_opaque_alpha_is_none(tmp_path: Path) -> None:
    assert opened(tmp_path, file(Image.new("RGBA", (8, 8), "red"), "PNG")).alpha is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", *(["AVIF"] if AVIF else [])])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_stands_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """Each orientation is undone by its definition: which side row 0 and column 0 of the stored picture show."""
    stored = np.asarray(scene(24, 16))
    ways = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }
    tags = Image.Exif()
    tags[0x0112] = orientation
    found = opened(tmp_path, file(Image.fromarray(stored), kind, exif=tags.tobytes()))
    assert np.abs(np.asarray(found.rgb, int) - ways[orientation]).mean() < 6


def test_a_colour_profile_is_told(tmp_path: Path) -> None:
    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert opened(tmp_path, file(scene(8, 8), "PNG", icc_profile=usual)).notes == ()
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert opened(tmp_path, file(scene(8, 8), "PNG", icc_profile=other)).notes == ("its colour profile is not applied",)


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was given to the decoder"))
    with pytest.raises(InputError, match=r"[0-9]+x[0-9]+ is [0-9.]+ million pixels, the limit is 40: make it smaller"):
        opened(tmp_path, bombs()[name])


def test_the_limit_is_where_it_is_said(tmp_path: Path) -> None:
    content = file(scene(24, 16), "PNG")
    assert opened(tmp_path, content, max_pixels=24 * 16).rgb.size == (24, 16)
    with pytest.raises(InputError, match="million pixels"):
        opened(tmp_path, content, max_pixels=24 * 16 - 1)
    assert MAX_PIXELS == 40_000_000


@pytest.mark.parametrize(
    "name", ["RGB.png", "RGB.jpg", "progressive.jpg", "RGB.webp", "lossless.webp", "RGBA.webp", *(["RGB.avif"] if AVIF else [])]
)
def test_a_file_that_is_cut_is_refused(tmp_path: Path, name: str) -> None:
    """Or it gives the whole picture, where only what stands behind the pixels is missing."""
    content = FILES[name]
    pixels = np.asarray(opened(tmp_path, content).rgb)
    refused = 0
    for length in range(len(content)):
        try:
            assert np.array_equal(np.asarray(opened(tmp_path, content[:length]).rgb), pixels), length
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.8 * len(content)


def test_a_pillow_without_avif_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: None)
    box = b"\0\0\0\x14ftypavif\0\0\0\0avif" + b"\0\0\0\x30meta\0\0\0\0"
    sizes = b"\0\0\0\x24iprp\0\0\0\x1cipco\0\0\0\x14ispe\0\0\0\0\0\0\0\x08\0\0\0\x08"
    with pytest.raises(InputError, match="Pillow was built without AVIF"):
        opened(tmp_path, box + sizes)
    with pytest.raises(InputError, match="Pillow was built without AVIF"):
        check(tmp_path / "a.avif")
    assert check(tmp_path / "a.webp") == "WEBP"


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as huge:
        huge.truncate(600 * 2**20)
    with pytest.raises(InputError, match="600 MiB"):
        open_picture(tmp_path / "a.png")
