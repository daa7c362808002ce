"""Nothing of a source is lost without a word: damaged shards, names with dots, lists in folders, formats that are not read, alpha."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.errors import InputError
from ldm.train.datasets import read_dataset
from ldm.train.prepared import opened, prepare, tell
from ldm.train.recipe import PicturesRecipe
from ldm.train.sources import collect
from tests.train.test_sources import picture, said

TEN = PicturesRecipe(64, 16)


def png(colour: str = "red") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(made, "PNG")
    return made.getvalue()


def sized(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, io.BytesIO(content)


def packed(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> list[tarfile.TarInfo]:
    """Write a shard; its members as they lie in it."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            archive.addfile(*sized(name, content))
    with tarfile.open(path) as archive:
        return archive.getmembers()


def pairs(path: Path, count: int = 4) -> list[tarfile.TarInfo]:
    return packed(path, [(f"{k}.{kind}", png() if kind == "png" else b"cap %d" % k) for k in range(count) for kind in ("png", "txt")])


def damaged(at: int) -> str:
    return f"x.tar: damaged, or another archive begins, at byte {at}: what follows is left out"


def test_a_damaged_header_is_said_with_all_that_follows(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    at = pairs(path)[4].offset
    whole = path.read_bytes()
    for end in (at, at + 512):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x7F]) + b"\0" * (end - at) + whole[max(at + 1, end) :])
        found = collect(path)
        assert said(found) == [("x.tar:0.png", "cap 0"), ("x.tar:1.png", "cap 1")]
        assert found.skipped == [damaged(at)]
    path.write_bytes(whole[:at] + b"\0" * 512 + whole[at + 512 :])  # zeros: tarfile takes them for the end
    assert collect(path).skipped == [damaged(at)]
    path.write_bytes(whole.rstrip(b"\0") + b"\0" * 512)  # an end that is shorter, or absent, is none
    assert len(said(collect(path))) == 4 and not collect(path).skipped


def test_of_a_shard_that_is_cut_what_is_whole_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    members = pairs(path)
    whole, last = path.read_bytes(), members[-1].offset_data + 512
    for length in range(0, last + 1024, 64):
        path.write_bytes(whole[:length])
        there = [member.name for member in members if member.offset_data + member.size <= length]
        if not there:
            with pytest.raises(InputError, match="cannot be read"):
                collect(path)
            continue
        found = collect(path)
        assert said(found) == [(f"x.tar:{name}", f"cap {name[0]}" if f"{name[0]}.txt" in there else "") for name in there if "png" in name]
        end = min(next((m.offset for m in members if m.name not in there), last), length)
        between = (length == end and length % 512 == 0) or (len(there) == len(members) and length >= last)  # that is an end like any other
        assert found.skipped == ([] if between else [damaged(end)])


def test_a_size_below_zero_is_damage(tmp_path: Path) -> None:
    """tarfile of Python 3.11 goes round in such a shard for ever."""
    path = tmp_path / "x.tar"
    at = pairs(path)[1].offset
    header = bytearray(tarfile.TarInfo("0.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + ((1 << 88) - at - 512).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + header + whole[at + 512 :])
    found = collect(path)
    assert said(found) == [("x.tar:0.png", "")] and found.skipped == [damaged(at)]


def test_pictures_of_a_shard_are_examples_or_lines(tmp_path: Path) -> None:
    text = b"said"
    files = [
        *(("IMG_2020.01.02.png", png("blue")), ("IMG_2020.01.02.txt", text), ("IMG_2020.01.03.png", png())),
        *(("k.image.png", png()), ("k.mask.png", png()), ("k.json", b'{"caption": "of k"}')),
        *(("m.png", png()), ("m.seg.png", png()), ("m.txt", b"of m")),
        *(("n.jpg", b""), ("n.png", png()), ("n.txt", b"of n")),
        *(("twice.png", png()), ("twice.txt", b"1"), ("twice.png", png("blue")), ("twice.txt", b"2")),
        *(("v.GIF", b"GIF89a"), ("./w.png", png()), ("w.txt", b"of w"), ("readme.md", b"")),
    ]
    packed(tmp_path / "x.tar", files)
    found = collect(tmp_path / "x.tar")
    captions = {"IMG_2020.01.02": "said", "IMG_2020.01.03": "", "k.image": "of k", "m": "of m", "n": "of n", "twice": "2", "./w": "of w"}
    assert said(found) == [(f"x.tar:{name}.png", caption) for name, caption in captions.items()]
    assert found.skipped == [
        "x.tar:twice.png: it is there more than once: the last is taken",
        "x.tar:v.GIF: .gif is not read: convert it to PNG, JPEG, WebP or AVIF",
        "x.tar:k.mask.png: another picture of k is taken",
        "x.tar:m.seg.png: another picture of m is taken",
        "x.tar:n.jpg: another picture of n is taken",
    ]
    pictures = {each.name: each.open().rgb.getpixel((3, 3)) for each in found.examples}
    assert pictures["x.tar:twice.png"] == pictures["x.tar:IMG_2020.01.02.png"] == (0, 0, 255) and pictures["x.tar:n.png"] == (255, 0, 0)


def test_links_of_a_shard_are_named(tmp_path: Path) -> None:
    pairs(tmp_path / "x.tar", 1)
    links = {"a.png": (tarfile.LNKTYPE, "0.png"), "b.JPG": (tarfile.SYMTYPE, "0.png"), "c.txt": (tarfile.SYMTYPE, "0.txt")}
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        for name, (kind, to) in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, to
            archive.addfile(member)
        archive.addfile(*sized("c.png", png()))
    found = collect(tmp_path / "x.tar")
    assert said(found) == [("x.tar:0.png", "cap 0")]
    assert found.skipped == [
        "x.tar:a.png: a link: put the picture itself in its place",
        "x.tar:b.JPG: a link: put the picture itself in its place",
        "x.tar:c: its caption c.txt is a link: put the text itself in its place",
    ]


def test_of_archives_in_one_file_the_first_is_read(tmp_path: Path) -> None:
    end = pairs(tmp_path / "x.tar", 1)[-1].offset_data + 512
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes() * 2)
    found = collect(tmp_path / "x.tar")
    assert said(found) == [("x.tar:0.png", "cap 0")]
    assert found.skipped == [damaged(end)]


def test_a_sparse_caption_that_is_cut_costs_its_picture_alone(tmp_path: Path) -> None:
    """Of GNU's old sparse files tarfile knows the length only when it reads them."""
    packed(tmp_path / "x.tar", [("0.png", png()), ("0.txt", b"cap 0"), ("1.png", png())])
    header = bytearray(sized("1.txt", b"")[0].tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    for at, number in ((124, 5000), (386, 0), (398, 5000), (483, 5000)):  # of bytes here; the offset and the length of the part; the whole
        header[at : at + 12] = b"%011o\0" % number
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole.rstrip(b"\0") + b"\0" * (-len(whole.rstrip(b"\0")) % 512) + header + b"cut")
    found = collect(tmp_path / "x.tar")
    assert said(found) == [("x.tar:0.png", "cap 0")] and found.skipped[0] == "x.tar:1: unexpected end of data"


def test_the_json_of_a_shard_has_a_limit_of_its_own(tmp_path: Path) -> None:
    files = {}
    for name, padding in {"a": 200_000, "b": 10_000_000}.items():
        files |= {f"{name}.png": png(), f"{name}.json": json.dumps({"caption": "j", "embedding": "y" * padding}).encode()}
    packed(tmp_path / "x.tar", files)
    found = collect(tmp_path / "x.tar")
    assert said(found) == [("x.tar:a.png", "j")]
    assert found.skipped == ["x.tar:b: its .json is longer than 10,000,000 bytes: give the caption as .txt"]


def test_a_list_in_a_folder_speaks_for_what_lies_below_it(tmp_path: Path) -> None:
    for name in ("plain/a.png", "train/1.png", "train/in/2.png", "train/3.png", "train/4.png", "train/in/5.webp", "train/listed.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "plain" / "a.txt").write_text("beside")
    lines = [{"file_name": "./1.png", "text": "one"}, {"file_name": "in/2.png", "text": "two"}, {"file_name": "4.png", "text": 4}]
    lines += [{"file_name": "listed.gif"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = collect(tmp_path)
    assert said(found) == [("a.png", "beside"), ("1.png", "one"), ("in/2.png", "two")]
    assert [line.split(":")[0] for line in found.skipped] == ["train/metadata.jsonl line 3", "train/metadata.jsonl line 4"]
    assert found.notes == [f"{tmp_path}: left out: 2 pictures that no metadata.jsonl names"]
    assert said(collect(tmp_path / "train")) == said(found)[1:]
    (tmp_path / "train" / "metadata.jsonl").write_text("")
    with pytest.raises(InputError, match=r"no pictures in it .*; .*left out: 5 pictures that no metadata.jsonl names"):
        collect(tmp_path / "train")


def test_formats_that_are_not_read_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "shut").mkdir()
    for name in ("b.gif", "c.GIF", "in/d.gif", "in/e.bmp", "f.jfif", "g.tiff", "h.md"):
        (tmp_path / name).touch()
    scan = os.scandir

    def shut(path: Any) -> Any:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", shut)
    found = collect(tmp_path)
    assert said(found) == [("a.png", "")]
    assert found.notes[-1] == f"{tmp_path}: left out: 1 .bmp, 3 .gif, 1 .jfif, 1 .tiff: convert them to PNG, JPEG, WebP or AVIF"
    assert found.skipped == [f"{tmp_path / 'shut'}: cannot be read (Permission denied)"]
    with pytest.raises(InputError, match=r"shut: none of 1 pictures can be used: .*Permission denied"):
        collect(tmp_path / "shut")


def test_a_subset_without_pictures_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "bare").mkdir()
    (tmp_path / "none.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text("[]")
    subsets = ['image_dir = "one"', 'image_dir = "bare"', 'metadata_file = "none.jsonl"', 'metadata_file = "bad.jsonl"']
    (tmp_path / "set.toml").write_text("[[datasets]]\n" + "".join(f"[[datasets.subsets]]\n{each}\n" for each in subsets))
    found = read_dataset(tmp_path / "set.toml")
    assert said(found) == [("a.png", "")] and found.skipped == ["bad.jsonl line 1: no object with a file_name"]
    assert found.notes[1:] == ["set.toml: no pictures in bare", "set.toml: no pictures in none.jsonl"]


def test_what_is_transparent_becomes_white_and_what_is_changed_is_counted(tmp_path: Path) -> None:
    Image.new("RGBA", (24, 16), (0, 0, 255, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (24, 16), (0, 0, 255, 128)).save(tmp_path / "half.webp", lossless=True, exact=True)
    Image.new("CMYK", (24, 16)).save(tmp_path / "print.jpg")
    Image.new("I;16", (24, 16)).save(tmp_path / "grey.png")
    for name, count in (("x.png", 2), ("y.png", 3)):
        frames = [Image.new("RGB", (24, 16), (k, 0, 0)) for k in range(count)]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    (tmp_path / "broken.png").touch()
    packed(tmp_path / "z.tar", {"in.png": (tmp_path / "clear.png").read_bytes()})
    found, skipped, notes, lines = collect(tmp_path), list[str](), Counter[str](), list[str]()
    pixels = {found.examples[at].name: made.getpixel((3, 3)) for at, made, _ in opened(found.examples, TEN, 1, skipped, notes)}
    assert pixels["clear.png"] == pixels["z.tar:in.png"] == (255, 255, 255) and pixels["half.webp"] == (127, 127, 255)
    tell(found, skipped, notes, len(pixels), lines.append)
    for kind in ("3 of 7 pictures: what is transparent becomes white", "2 of 7 pictures: it has several frames: the first is taken"):
        assert lines.count(kind) == 1
    for kind in ("CMYK becomes RGB without its colour profile", "16 bits a channel become 8"):
        assert lines.count(f"1 of 7 pictures: {kind}") == 1
    assert len(skipped) == 1 and not found.examples[1].open().on_white().notes[1:]


def test_where_no_picture_can_be_used_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    monkeypatch.setattr("ldm.train.prepared._latent", lambda *_: torch.zeros(4, 2, 3))
    vae: Any = SimpleNamespace(state_dict=dict, shape=SimpleNamespace(scale=1.0))
    lines: list[str] = []

    def made() -> object:
        return prepare(tmp_path / "run", collect(tmp_path / "in"), vae, TEN, 1, lines.append)

    with pytest.raises(InputError, match=r"none of 1 pictures can be used: a\.png"):
        made()
    assert not (tmp_path / "run").exists()
    Image.new("RGBA", (24, 16)).save(tmp_path / "in" / "b.png")
    for _ in range(2):  # of what is kept it is said again
        lines.clear()
        made()
        assert "1 of 1 pictures: what is transparent becomes white" in lines and "1 of 2 pictures are left out:" in lines
    assert (tmp_path / "run" / "latents.json").is_file()
