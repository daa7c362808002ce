"""Digests against sha256sum's and hashlib's, their sources, and a cache that can be lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import digests
from ldm.checkpoint.digests import autov2, autov3, cached_sha256, known, published, sha256, verify
from ldm.checkpoint.safetensors import Header, read_header
from ldm.checkpoint.writer import save, tensor_items
from ldm.errors import FileError
from ldm.resources import weights
from tests.checkpoint.builders import manifests

STATE = {"a": torch.arange(700, dtype=torch.float32), "b": torch.ones(3, dtype=torch.float16)}
BOX = weights() / "ldm-emoji.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "digests.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(tmp_path / "m.safetensors", tensor_items(STATE), {"k": "v"})


def flip(path: Path, at: int) -> Header:
    """One bit of the file, its size and date as before."""
    before = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(before, before))
    return read_header(path)


def differs(header: Header, source: str) -> str:
    with pytest.raises(FileError, match="sha256 differs from ") as caught:
        verify(header)
    assert caught.value.code == "E3010" and f"{header.path}: sha256 differs from {source}: has " in str(caught.value)
    return str(caught.value)


def test_hashes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PIECE", 100)
    content, seen = file.read_bytes(), list[int]()
    whole = hashlib.sha256(content).hexdigest()
    assert sha256(file, progress=seen.append) == whole and sum(seen) == len(content) and len(seen) > 5
    data = hashlib.sha256(content[read_header(file).data_start :]).hexdigest()
    assert autov2(whole) == whole[:10] and autov3(read_header(file)) == data[:12]
    with pytest.raises(FileError, match="cannot be read"):
        sha256(file.parent)


def test_other_metadata_leave_autov3_as_it_is(file: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.safetensors", tensor_items(STATE), {"title": "longer than before"})
    assert autov3(read_header(other)) == autov3(read_header(file))


def test_nothing_known(file: Path) -> None:
    assert known(read_header(file)) == [] and verify(read_header(file)) is None


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
@pytest.mark.parametrize("name", ["m.safetensors.sha256", "m.sha256"])
@pytest.mark.parametrize("binary", ["--text", "--binary"])
def test_a_file_of_sha256sum_beside(name: str, binary: str, file: Path) -> None:
    (file.parent / "z.safetensors").write_bytes(b"another file in the list")
    command = ["sha256sum", binary, "z.safetensors", "m.safetensors"]
    (file.parent / name).write_bytes(subprocess.run(command, cwd=file.parent, check=True, stdout=subprocess.PIPE).stdout)
    assert verify(read_header(file)) == name
    assert "the file is damaged, download it again" in differs(flip(file, file.stat().st_size - 1), name)


def test_digests_alone_and_texts_that_say_nothing(file: Path) -> None:
    short, full = file.with_suffix(".sha256"), file.with_name("m.safetensors.sha256")
    short.write_text("0" * 64 + "\n")  # of which file it is, is not said: m.ckpt has the same stem
    assert verify(read_header(file)) is None
    short.write_text(f"{'0' * 64}  m.ckpt\n")
    assert verify(read_header(file)) is None
    full.write_bytes(b"\xff\xfe not a digest\n" + b"0" * 63)
    assert verify(read_header(file)) is None
    full.write_text(sha256(file).upper() + "\n")
    assert verify(read_header(file)) == full.name
    full.write_text("0" * 64)
    differs(read_header(file), full.name)


def test_modelspec_hash(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tensor_items(STATE), {"modelspec.title": "t"}, digest=True)
    assert verify(read_header(path)) == "modelspec.hash_sha256 in its metadata"
    assert "unless a tool changed it" in differs(flip(path, path.stat().st_size - 1), "modelspec.hash_sha256 in its metadata")
    for odd in ("", "0x12", "unknown"):
        assert known(read_header(save(path, tensor_items(STATE), {"modelspec.hash_sha256": odd}, overwrite=True))) == []


def test_the_whole_files_digest_comes_before_modelspecs(tmp_path: Path) -> None:
    """A converted file whose metadata are those of the file that it was made from."""
    path = save(tmp_path / "m.safetensors", tensor_items(STATE), {"modelspec.hash_sha256": "0x" + "1" * 64})
    path.with_name("m.safetensors.sha256").write_text(sha256(path))
    assert verify(read_header(path)) == "m.safetensors.sha256"


def test_published_files(tmp_path: Path) -> None:
    """By name and size together: the box as it is shipped, damaged, under another name; the table against the manifests."""
    assert verify(read_header(BOX)) == "the one published for ldm-emoji.safetensors"
    path = Path(shutil.copy(BOX, tmp_path))
    differs(flip(path, 20_000_000), "the one published for ldm-emoji.safetensors")
    assert [each.scope for each in known(read_header(path.rename(tmp_path / "mine.safetensors")))] == ["data"]
    names = {(each["name"], each["size"]) for each in published()}
    assert len(names) == len(published()) == 14
    digests_known = {each["published_sha256"] for each in manifests().values()}
    assert {each["sha256"] for each in published() if each["name"] != BOX.name} <= digests_known
    text = (weights() / "README.md").read_text(encoding="utf-8")
    listed = [each for each in published() if f"`{each['sha256']}`" in text and f"{each['size']:,}" in text]
    assert len(listed) == 7


def test_a_pipe_in_place_of_a_list_or_of_the_cache_is_not_waited_for(file: Path, cache: Path) -> None:
    cache.parent.mkdir()
    for pipe in (file.with_name("m.safetensors.sha256"), file.with_suffix(".sha256"), cache):
        os.mkfifo(pipe)
    assert verify(read_header(file)) is None and cached_sha256(read_header(file)) == sha256(file)


def test_a_file_that_changes_meanwhile(file: Path) -> None:
    file.with_name("m.safetensors.sha256").write_text(sha256(file))
    header = read_header(file)
    with pytest.raises(FileError, match="changed while it was being read") as caught:
        verify(header, lambda _: os.truncate(file, 100))
    assert caught.value.code == "E3009"
    file.unlink()
    with pytest.raises(FileError, match="changed while it was being read"):
        verify(header)


def test_the_cache_names_and_verify_reads(file: Path, cache: Path) -> None:
    header, seen = read_header(file), list[int]()
    first = cached_sha256(header, seen.append)
    assert cached_sha256(header, seen.append) == first == sha256(file) and sum(seen) == header.size
    file.with_name("m.safetensors.sha256").write_text(first)
    rotten = flip(file, header.size - 1)
    assert rotten.stamp == header.stamp and cached_sha256(rotten) == first  # the date is the old one
    differs(rotten, "m.safetensors.sha256")
    os.utime(file, ns=(0, header.stamp[-1] + 1))  # one tick of the clock may hold all of this test
    assert cached_sha256(read_header(file)) == sha256(file) != first
    assert len(json.loads(cache.read_text())) == 2


def test_a_cache_that_is_damaged_full_or_cannot_be(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, right = read_header(file), sha256(file)
    key = ":".join(map(str, header.stamp))
    cache.parent.mkdir()
    for damaged in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, json.dumps({key: "zz"}).encode(), json.dumps({key: 3}).encode()):
        cache.write_bytes(damaged)
        assert cached_sha256(header) == right
        assert json.loads(cache.read_text())[key] == right
    monkeypatch.setattr(digests, "KEPT", 3)
    cache.write_text(json.dumps({str(i): "0" * 64 for i in range(5)}))
    cached_sha256(header)
    assert list(json.loads(cache.read_text())) == ["3", "4", key]
    for nowhere in (file / "below a file", Path("/dev/null")):
        monkeypatch.setenv("LDM_CACHE_DIR", str(nowhere))
        assert cached_sha256(header) == right


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert digests.cache_file() == tmp_path / "cache" / "digests.json"
    monkeypatch.delenv("LDM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert digests.cache_file() == Path("/x/ldm/digests.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert digests.cache_file() == Path("/h/.cache/ldm/digests.json")
