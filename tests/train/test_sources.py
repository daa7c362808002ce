"""Where pictures come from: every layout read, and every broken picture listed, counted and left out."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from ldm.errors import InputError
from ldm.train.datasets import read_dataset
from ldm.train.prepared import opened
from ldm.train.recipe import PicturesRecipe
from ldm.train.sources import Example, Found, collect


def picture(path: Path, colour: str = "red", size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def said(found: Found) -> list[tuple[str, str]]:
    return [(each.name, each.caption) for each in found.examples]


def test_a_folder_with_captions_beside(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("  a red thing\n")
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.jpg.txt").write_text("\ufeffanother", encoding="utf-8")
    picture(tmp_path / "deep" / "c.webp")
    (tmp_path / "notes.md").write_text("not a picture")
    found = collect(tmp_path)
    assert said(found) == [("a.jpg", "another"), ("b.png", "a red thing"), ("c.webp", "")]
    assert not found.skipped and len(found.notes) == 1 and "without a caption: 1 of 3 pictures" in found.notes[0]
    assert found.examples[1].open().rgb.getpixel((0, 0)) == (255, 0, 0)


def test_a_list(tmp_path: Path) -> None:
    picture(tmp_path / "one.png")
    outside = picture(tmp_path.parent / "outside.png")
    lines = [
        {"file_name": "one.png", "text": "first"},
        {"file_name": "absent.png", "text": "x"},
        {"file_name": "../outside.png", "text": "x"},
        {"file_name": str(outside), "text": "x"},
        {"file_name": "one.png", "text": 7},
        {"text": "x"},
        ["x"],
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n{broken\n")
    found = collect(tmp_path)
    assert said(found) == [("one.png", "first")]
    assert [line.split(":")[0] for line in found.skipped] == [f"metadata.jsonl line {n}" for n in (2, 3, 4, 5, 6, 7, 9)]
    assert said(collect(tmp_path / "metadata.jsonl")) == said(found)


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("e.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_a_shard(tmp_path: Path) -> None:
    png = picture(tmp_path / "x" / "x.png", "blue").read_bytes()
    files = {
        "s/0.1.png": png,
        "s/0.1.txt": b"a dot",
        "s/a.png": png,
        "s/a.txt": b"blue",
        "s/b.JPG": b"no picture",
        "s/b.json": json.dumps({"caption": "from json", "width": 3}).encode(),
        "s/c.txt": b"a caption alone",
        "s/d.png": png,
        "s/d.txt": b"\xff",
        "e.txt": b"of a link",
    }
    found = collect(shard(tmp_path / "0000.tar", files))
    assert said(found) == [("0000.tar:s/0.1.png", "a dot"), ("0000.tar:s/a.png", "blue"), ("0000.tar:s/b.JPG", "from json")]
    assert found.skipped[0] == "0000.tar:e.png: a link: put the picture itself in its place"
    assert len(found.skipped) == 2 and "s/d" in found.skipped[1] and "UTF-8" in found.skipped[1]
    assert found.examples[1].open().rgb.getpixel((3, 3)) == (0, 0, 255)
    with pytest.raises(InputError, match=r"0000\.tar:s/b\.JPG is not a PNG"):
        found.examples[2].open()


DATASET = """
[general]
shuffle_caption = true
caption_extension = ".cap"

[[datasets]]
resolution = [640, 360]
batch_size = 3
bucket_reso_steps = 32

  [[datasets.subsets]]
  image_dir = "one"
  num_repeats = 4
  keep_tokens = 2
  flip_aug = true

  [[datasets.subsets]]
  image_dir = "two"
  caption_extension = ".txt"
  class_tokens = "a dog"
  shuffle_caption = false
"""


def test_a_dataset_of_sd_scripts(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "a.cap").write_text("sks, girl, red")
    picture(tmp_path / "two" / "b.png")
    (tmp_path / "set.toml").write_text(DATASET)
    found = read_dataset(tmp_path / "set.toml")
    one, two = found.examples
    assert (one.caption, one.repeats, one.keep) == ("sks, girl, red", 4, 2)
    assert (two.caption, two.repeats, two.keep) == ("a dog", 1, None)
    assert found.hints == {"size": 480, "batch": 3, "step": 32}
    assert [note for note in found.notes if "left out" in note] == ["set.toml: flip_aug: left out"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dri = 'one'", "unknown key 'image_dri'.*image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "a subset without image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'absent'", "no such folder"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'one'\nnum_repeats = 'x'", "num_repeats 'x' is not acceptable"),
        ("datasets = 3", "lists of tables"),
        ("general = 3", "is not a table"),
        ("", "no pictures"),
        ("= 3", "not TOML"),
    ],
)
def test_a_dataset_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "set.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path / "set.toml")


def test_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    messages = {
        "absent": "no such file or folder: give a folder",
        "absent.tar": "no such file",
        "x.zip": "no pictures to train on: give a folder",
    }
    none = r"no pictures in it \(PNG, JPEG, WebP, AVIF\): give a"
    for name, message in {**messages, "empty": f"{none} folder that has some$", "empty.jsonl": f"{none} file that"}.items():
        with pytest.raises(InputError, match=f"{name}: {message}"):
            collect(tmp_path / name)
    (tmp_path / "y.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InputError, match="cannot be read"):
        collect(tmp_path / "y.tar")
    (tmp_path / "empty" / "y.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InputError, match=r"empty: none of 1 pictures can be used: y\.tar: cannot be read"):
        collect(tmp_path / "empty")


def test_broken_captions_are_listed(tmp_path: Path) -> None:
    for name, raw in {"a": b"\xff\xfe", "b": b"x\0y", "c": b"x" * 100_001, "d": b"fine"}.items():
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(raw)
    found = collect(tmp_path)
    assert said(found) == [("d.png", "fine")]
    assert [line.split(":")[0] for line in found.skipped] == ["a.png", "b.png", "c.png"]


def test_broken_pictures_raise_one_line_when_they_are_opened(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", size=(200, 200)).read_bytes()
    rng = random.Random(0)
    kinds = {
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"hello",
        "noise.webp": rng.randbytes(400),
        "bomb.png": whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:],
    }
    for name, raw in kinds.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InputError) as caught:
            Example(tmp_path / name, "", name).open()
        assert name in str(caught.value) and "\n" not in str(caught.value)
    Image.new("CMYK", (8, 8)).save(tmp_path / "print.jpg")
    assert Example(tmp_path / "print.jpg", "", "print.jpg").open().rgb.mode == "RGB"


def test_a_caption_of_a_shard_that_is_no_text_costs_one_example(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    path = shard(tmp_path / "x.tar", {"a.png": data.getvalue(), "a.json": b'{"caption": 7}', "b.png": data.getvalue(), "b.txt": b"whole"})
    found = collect(path)
    assert [caption for _, caption in said(found)] == ["whole"]
    assert found.skipped[1:] == ["x.tar:a: its caption is not text"]


def test_a_broken_shard_in_a_folder_is_a_line_of_the_list(tmp_path: Path) -> None:
    picture(tmp_path / "one.png")
    (tmp_path / "x.tar").write_bytes(b"no archive")
    found = collect(tmp_path)
    assert [name for name, _ in said(found)] == ["one.png"]
    assert len(found.skipped) == 1 and found.skipped[0].startswith("x.tar: cannot be read")
    (tmp_path / "set.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "."\n')
    assert len(read_dataset(tmp_path / "set.toml").examples) == 1


@pytest.mark.parametrize("value", ['"txt"', "5", '"./x"'])
def test_a_caption_extension_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    picture(tmp_path / "one.png")
    (tmp_path / "set.toml").write_text(f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "."\ncaption_extension = {value}\n')
    with pytest.raises(InputError, match="caption_extension"):
        read_dataset(tmp_path / "set.toml")


def test_a_picture_that_no_memory_could_hold_in_its_bucket_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "long.png", size=(4000, 1))
    picture(tmp_path / "plain.png")
    skipped: list[str] = []
    used = [at for at, _, _ in opened(collect(tmp_path).examples, PicturesRecipe(1024, 64), 1, skipped, Counter())]
    assert used == [1] and skipped == ["long.png is 4000x1: too long and thin for any bucket"]


def test_a_subset_of_no_repeats_is_left_out_as_sd_scripts_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / name / f"{name}.png")
    subset = '[[datasets.subsets]]\nimage_dir = "{}"\nnum_repeats = {}\n'
    (tmp_path / "set.toml").write_text("[[datasets]]\n" + subset.format("a", 0) + subset.format("b", 2))
    found = read_dataset(tmp_path / "set.toml")
    assert [(each.name, each.repeats) for each in found.examples] == [("b.png", 2)]
    assert "set.toml: num_repeats 0: a is left out" in found.notes


def test_folders_in_an_image_dir_are_subsets_of_their_own(tmp_path: Path) -> None:
    for name in ("a/one", "a/b/two"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "set.toml").write_text("[[datasets]]\n" + "".join(f'[[datasets.subsets]]\nimage_dir = "{name}"\n' for name in ("a", "a/b")))
    assert [each.name for each in read_dataset(tmp_path / "set.toml").examples] == ["one.png", "two.png"]


SUBSET = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'one'\n"


def test_the_metadata_of_sd_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "one.png")
    for name in ("a.png", "b.webp", "in/c.png", "D.PNG"):
        picture(tmp_path / "one" / name)
    picture(tmp_path / "outside.png")
    entries: dict[str, object] = {
        "a": {"caption": "a cat", "tags": "red, small", "train_resolution": [64, 64]},
        "b.webp": {"tags": "blue"},
        str(tmp_path / "one/in/c.png"): {"caption": "first\nsecond"},
        "absent": {"caption": "x"},
        "../outside.png": {"caption": "x"},
        str(tmp_path / "outside.png"): {"caption": "x"},
        "b": "no table",
        "": {"caption": "x"},
        ".": {"caption": "x"},
        "D": {"caption": "large"},
    }
    (tmp_path / "md.json").write_text(json.dumps(entries))
    (tmp_path / "set.toml").write_text(SUBSET + "metadata_file = 'md.json'")
    found = read_dataset(tmp_path / "set.toml")
    captions = {each.path.name: each.caption for each in found.examples}
    assert captions == {"a.png": "a cat, red, small", "b.webp": "blue", "c.png": "first", "D.PNG": "large"}
    assert len(found.skipped) == 6 and found.skipped[0] == "absent: is not there"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/set.toml").write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = '../one'\nmetadata_file = '../md.json'")
    assert len(read_dataset(tmp_path / "sub" / ".." / "sub" / "set.toml").examples) == 4
    monkeypatch.chdir(tmp_path)
    assert len(read_dataset(Path("set.toml")).examples) == 4
    for text, message in (("[]", "is not a table"), ("{", "no JSON of pictures")):
        (tmp_path / "md.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_dataset(tmp_path / "set.toml")


def test_a_list_names_pictures_of_the_image_dir(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}')
    (tmp_path / "set.toml").write_text(SUBSET + "metadata_file = 'list.jsonl'")
    (example,) = read_dataset(tmp_path / "set.toml").examples
    assert (example.path, example.caption) == (tmp_path / "one" / "a.png", "a cat")
    (tmp_path / "list.jsonl").unlink()
    with pytest.raises(InputError, match=r"list\.jsonl: no such file"):
        read_dataset(tmp_path / "set.toml")


def test_of_a_caption_sd_scripts_reads_the_first_line(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "a.txt").write_text("a cat \nand what nobody reads")
    (tmp_path / "set.toml").write_text(SUBSET)
    assert [each.caption for each in read_dataset(tmp_path / "set.toml").examples] == ["a cat"]
    assert [each.caption for each in collect(tmp_path / "one").examples] == ["a cat \nand what nobody reads"]
