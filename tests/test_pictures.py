"""Picture files: what is written comes back exactly, others read it too, and nothing is left where it fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm import opening, pictures
from ldm.errors import InputError
from ldm.metadata import a1111, exif, native, xmp
from ldm.pictures import Marks, sidecar_of
from scripts.faults.picturefiles import AVIF, chunk, file, scene
from tests.metadata.test_native import RECORD

ENDINGS = [ending for ending in pictures.FORMATS if AVIF or ending != ".avif"]
EXIFTOOL = shutil.which("exiftool")
needs_exiftool = pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed: apt-get install libimage-exiftool-perl")
PICTURE, SMALL = scene(24, 16), scene(4, 4)
MARKS = Marks("é 🍎\nNegative prompt: ü\nSteps: 2, Seed: 8, Size: 24x16", '{"schema": 1, "text": "<a & b>"}')


@pytest.mark.parametrize("ending", ENDINGS)
def test_marks_come_back(tmp_path: Path, ending: str) -> None:
    saved = pictures.save(PICTURE, tmp_path / f"a{ending}", MARKS)
    found = pictures.read(saved.path)
    assert found.texts == {"parameters": MARKS.parameters, "ldm": MARKS.record}
    assert (found.source, found.tool) == (xmp.TRAINED, MARKS.tool)
    assert (found.format, found.size, found.animated, found.notes) == (pictures.FORMATS[ending], (24, 16), False, ())
    assert saved.sha256 == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    assert saved.sidecar is None and saved.notes == ()
    assert [each.name for each in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_pixels_come_back(tmp_path: Path, ending: str) -> None:
    quality = 100 if ending == ".webp" else None
    pixels = opening.open_picture(pictures.save(PICTURE, tmp_path / f"a{ending}", MARKS, quality=quality).path).rgb
    difference = np.abs(np.asarray(pixels, int) - np.asarray(PICTURE, int)).max()
    assert difference == 0 if ending in (".png", ".webp") else difference < 16


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_the_origin_is_said(tmp_path: Path, ending: str) -> None:
    found = pictures.read(pictures.save(PICTURE, tmp_path / f"a{ending}", Marks(source=xmp.COMPOSITE)).path)
    assert (found.texts, found.source) == ({}, xmp.COMPOSITE)


@pytest.mark.parametrize("ending", ENDINGS)
def test_without_marks_there_are_only_pixels(tmp_path: Path, ending: str) -> None:
    picture = PICTURE.copy()
    picture.info = {
        "comment": b"secret",
        "icc_profile": b"secret",
        "exif": b"Exif\0\0secret",
        "xmp": b"secret",
        "dpi": (77, 77),
        "Author": "secret",
    }
    content = pictures.save(picture, tmp_path / f"a{ending}", None).path.read_bytes()
    found = pictures.read(tmp_path / f"a{ending}")
    assert (found.texts, found.source, found.tool) == ({}, None, None)
    assert b"secret" not in content and b"ldm" not in content and b"Exif" not in content.replace(b"Exif\0\0\0\0", b"")
    assert picture.info["comment"] == b"secret"


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.mark.parametrize("ending", ENDINGS)
@given(prompt=TEXT, negative=TEXT)
@example("\ufeff\ufffe\x01\x7f\x85\u2028\r\n\t ", "]]>&amp;<!--")
@example("\u6100\u6200\u6300", "")  # in the other byte order it would be ASCII
@settings(max_examples=40)
def test_any_prompt_comes_back(ending: str, prompt: str, negative: str) -> None:
    record = replace(RECORD, job=replace(RECORD.job, prompt=prompt, negative=negative))
    marks = Marks(a1111.write(a1111.from_record(record)), native.write(record))
    with tempfile.TemporaryDirectory() as folder:
        found = pictures.read(pictures.save(SMALL, Path(folder, f"a{ending}"), marks).path)
    assert found.texts["parameters"] == marks.parameters
    assert native.read(found.texts["ldm"]) == record


@pytest.mark.parametrize("ending", ENDINGS)
def test_long_prompts_come_back(tmp_path: Path, ending: str) -> None:
    scalars = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
    for number, start in enumerate(range(0, len(scalars), 400_000)):
        record = replace(RECORD, job=replace(RECORD.job, prompt=scalars[start : start + 400_000]))
        marks = Marks(scalars[start : start + 400_000], native.write(record))
        found = pictures.read(pictures.save(PICTURE, tmp_path / f"{number}{ending}", marks).path)
        assert found.texts == marks.texts()
        assert native.read(found.texts["ldm"]) == record


def jpeg(folder: Path, parameters: str, record: str) -> pictures.Saved:
    saved = pictures.save(PICTURE, folder / "a.jpg", Marks(parameters, record), overwrite=True)
    assert pictures.read(saved.path).texts == {"parameters": parameters, "ldm": record}
    return saved


def test_a_jpeg_holds_thirty_thousand_characters_and_a_sidecar_the_rest(tmp_path: Path) -> None:
    assert jpeg(tmp_path, "狐" * 30_000, '"x"').sidecar is None
    most = (exif.JPEG_LIMIT - len(exif.write(""))) // 2
    assert jpeg(tmp_path, "a" * most, '"x"').sidecar is None
    room = xmp.JPEG_LIMIT - len(xmp.write(xmp.Packet(xmp.TRAINED, Marks().tool, "")))
    assert jpeg(tmp_path, "a", "x" * room).sidecar is None
    assert not (tmp_path / "a.jpg.json").exists()
    for parameters, record, said in (
        ("a" * (most + 1), '"x"', f"parameters of {most + 1} characters"),
        ("a", "x" * (room + 1), f"a record of {room + 1} characters"),
        ("a" * (most + 1), "x" * (room - 60), f"parameters of {most + 1} characters and a record of {room - 60} characters"),
        ("a" * 90_000, "&" * 20_000, "parameters of 90000 characters and a record of 20000 characters"),
    ):
        saved = jpeg(tmp_path, parameters, record)
        assert saved.sidecar == tmp_path / "a.jpg.json" == sidecar_of(saved.path)
        assert saved.notes == (f"a.jpg: a JPEG cannot hold {said}: a.jpg.json beside it does, keep both",)
        assert pictures.read(saved.path).source == xmp.TRAINED


def test_a_sidecar_that_is_gone_changed_or_another_pictures_is_told(tmp_path: Path) -> None:
    saved = pictures.save(PICTURE, tmp_path / "a.jpg", Marks("a" * 40_000, '"x"'))
    assert saved.sidecar
    content = saved.sidecar.read_bytes()
    saved.sidecar.write_bytes(content.replace(b"aaa", b"bbb", 1))
    found = pictures.read(saved.path)
    assert found.texts == {"ldm": '"x"'} and found.notes == ("a.jpg.json is not the one that was written with the picture",)
    saved.sidecar.unlink()
    assert pictures.read(saved.path).notes == ("a.jpg.json, which holds the picture's texts, is not beside it",)
    for rubbish in (b"", b"[]", b"[" * 100_000, b'{"texts": 1}', b"\xff"):
        pictures.save(PICTURE, tmp_path / "a.jpg", Marks("a" * 40_000, '"x"'), overwrite=True)
        packet = xmp.Packet(xmp.TRAINED, sidecar=hashlib.sha256(rubbish).hexdigest())
        (tmp_path / "b.jpg").write_bytes(file(PICTURE, "JPEG", xmp=xmp.write(packet)))
        (tmp_path / "b.jpg.json").write_bytes(rubbish)
        assert pictures.read(tmp_path / "b.jpg").notes == ("b.jpg.json is damaged",)


@pytest.mark.parametrize("written", range(4))
def test_a_crash_while_a_picture_is_replaced_leaves_one_with_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """As if the process had gone after so many files: what would tidy up behind it does not run either."""
    old, new = Marks("a" * 40_000, '"old"'), Marks("b" * 40_000, '"new"')
    path = pictures.save(PICTURE, tmp_path / "a.jpg", old).path
    done = []

    def crash(real: Any, counted: bool) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            if len(done) == written:
                raise KeyboardInterrupt
            result = real(*args, **keywords)
            done.extend([1] if counted else [])
            return result

        return call

    monkeypatch.setattr(pictures, "write_atomic", crash(pictures.write_atomic, True))
    monkeypatch.setattr(Path, "unlink", crash(Path.unlink, False))
    with pytest.raises(KeyboardInterrupt):
        pictures.save(PICTURE, path, new, overwrite=True)
    monkeypatch.undo()
    found = pictures.read(path)
    assert (found.texts, found.notes) == ((new if written > 1 else old).texts(), ())
    pictures.save(PICTURE, path, old, overwrite=True)
    assert pictures.read(path).texts == old.texts()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jpg", "a.jpg.json"]


def test_a_name_that_is_taken_is_kept_with_its_sidecar(tmp_path: Path) -> None:
    long = Marks("a" * 40_000, '"x"')
    (tmp_path / "a.jpg").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        pictures.save(PICTURE, tmp_path / "a.jpg", long)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"a.jpg": b"old"}
    (tmp_path / "b.jpg.json").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        pictures.save(PICTURE, tmp_path / "b.jpg", long)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jpg", "b.jpg.json"]
    pictures.save(PICTURE, tmp_path / "a.jpg", long, overwrite=True)
    assert pictures.read(tmp_path / "a.jpg").texts == long.texts()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.gif", {}, "written as .png, .jpg, .jpeg, .webp, .avif"),
        ("a", {}, "choose one of these endings"),
        ("a.png", {"quality": 90}, "no meaning for PNG"),
        ("a.jpg", {"quality": 0}, "outside 1 to 100"),
        ("a.webp", {"quality": 101}, "outside 1 to 100"),
        ("a.png", {"marks": Marks("a\0b")}, "NUL at character 2"),
        ("a.jpg", {"marks": Marks("ab\udcff")}, "half a surrogate pair at character 3"),
        ("a.webp", {"marks": Marks("a", "é")}, "printable ASCII"),
        ("a.jpg", {"picture": Image.new("RGBA", (8, 8))}, "no JPEG"),
        ("a.webp", {"picture": Image.new("RGB", (16_384, 1))}, "16384x1 is more than WEBP holds"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, name: str, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pictures.save(**{"picture": PICTURE, "path": tmp_path / name, "marks": MARKS, **options})
    assert list(tmp_path.iterdir()) == []


@needs_exiftool
@pytest.mark.parametrize("ending", ENDINGS)
def test_exiftool_reads_it(tmp_path: Path, ending: str) -> None:
    path = pictures.save(PICTURE, tmp_path / f"a{ending}", MARKS).path
    asked = [str(EXIFTOOL), "-json", "-G1", "-charset", "utf8", "-validate", "-error", "-all", str(path)]
    said = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)[0]
    assert said["XMP-iptcExt:DigitalSourceType"] == xmp.TRAINED
    assert said["XMP-xmp:CreatorTool"] == MARKS.tool
    assert said["PNG:Parameters" if ending == ".png" else "ExifIFD:UserComment"] == MARKS.parameters
    assert said["PNG:Ldm" if ending == ".png" else "XMP-ldm:Record"] == MARKS.record
    assert "ExifTool:Error" not in said
    assert said["ExifTool:Validate"] == "OK" or ending in (".jpg", ".jpeg")  # there it misses tags that only cameras write


@pytest.mark.parametrize("ending", ENDINGS)
def test_pillow_reads_it(tmp_path: Path, ending: str) -> None:
    with Image.open(pictures.save(PICTURE, tmp_path / f"a{ending}", MARKS).path) as picture:
        if ending == ".png":
            assert picture.info["parameters"] == MARKS.parameters and picture.info["ldm"] == MARKS.record
        else:
            comment = picture.getexif().get_ifd(0x8769)[0x9286]
            assert comment == b"UNICODE\0" + str(MARKS.parameters).encode("utf-16-be")
        assert b"trainedAlgorithmicMedia" in (picture.info["xmp"] if ending != ".png" else picture.info["XML:com.adobe.xmp"].encode())


def test_texts_after_the_pixels_and_damaged_ones(tmp_path: Path) -> None:
    plain = file(PICTURE, "PNG")
    path = tmp_path / "a.png"
    good, bad = chunk(b"tEXt", b"prompt\0late"), bytearray(chunk(b"tEXt", b"x\0y"))
    bad[-1] ^= 1
    path.write_bytes(plain[:33] + bad + plain[33:-12] + good + chunk(b"iTXt", b"x\0\0") + chunk(b"tEXt", b"prompt\0later") + plain[-12:])
    found = pictures.read(path)
    assert found.texts == {"prompt": "later"}
    assert [note.split(":")[0] for note in found.notes] == [
        "a tEXt chunk is damaged",
        "a iTXt chunk is damaged",
        "the text 'prompt' stands twice",
    ]
    path.write_bytes(plain[:33] + chunk(b"tEXt", b"a\0b") + plain[33:40])
    assert pictures.read(path).texts == {"a": "b"} and "cut short" in pictures.read(path).notes[0]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no picture at"):
        pictures.read(path)
    with pytest.raises(InputError, match=r"not a regular file|cannot be opened"):
        pictures.read(tmp_path)
    for content, said in (
        (b"", "empty"),
        (b"GIF89a" + bytes(50), "a GIF"),
        (b"8BPS" + bytes(50), "Photoshop"),
        (b"hello" * 9, "no known format"),
    ):
        path.write_bytes(content)
        for call in (pictures.read, opening.open_picture):
            with pytest.raises(InputError, match=f"not a PNG, JPEG, WebP or AVIF picture .*{said}"):
                call(path)
    for kind in ("TIFF", "BMP", "GIF", "ICO", "PPM"):
        path.write_bytes(file(PICTURE, kind))
        with pytest.raises(InputError, match="not a PNG, JPEG"):
            opening.open_picture(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="not a regular file"):
        opening.open_picture(tmp_path / "a.png")


def test_a_packed_text_that_swells_is_not_unpacked(tmp_path: Path) -> None:
    plain = file(PICTURE, "PNG")
    (tmp_path / "a.png").write_bytes(plain[:33] + chunk(b"zTXt", b"ldm\0\0" + zlib.compress(bytes(50_000_000))) + plain[33:])
    found = pictures.read(tmp_path / "a.png")
    assert found.texts == {} and "too long" in found.notes[0]


def test_the_command_need_not_load_torch() -> None:
    modules = "ldm.pictures, ldm.opening, ldm.watermark, ldm.metadata.foreign"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_blocks_without_a_file() -> None:
    assert xmp.read(xmp.write(xmp.Packet(xmp.TRAINED, "t", "r", "s"))) == xmp.Packet(xmp.TRAINED, "t", "r", "s")
    assert exif.read(exif.write("é 🍎")) == {"parameters": "é 🍎"}
