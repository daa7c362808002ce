"""The header reader: what it accepts, and the sentence for everything else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ldm.checkpoint import safetensors
from ldm.checkpoint.safetensors import MAX_HEADER, Entry, read_header
from ldm.errors import FileError
from scripts.faults.malformed import GOOD, MALFORMED
from tests.checkpoint.builders import entry, raw


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path) -> None:
    content, message, code = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, message, code)


def refused(path: Path, message: str, code: str, **options: int) -> None:
    """The file is refused with this class and a sentence of one line."""
    with pytest.raises(FileError, match=message) as caught:
        read_header(path, **options)
    text = str(caught.value)
    assert caught.value.code == code and text.startswith(f"{path}: ") and "\n" not in text and len(text) < len(str(path)) + 300


@pytest.mark.parametrize("length", [None, 0x3C, 0x280, 0x380, 0x528, 0x4B50, 0x8B1F])
def test_every_truncation(tmp_path: Path, length: int | None) -> None:
    """Also where the length's bytes are those that other kinds of file begin with: a page, pickles, a zip, a gzip."""
    text, path = json.dumps(GOOD if length != 0x3C else {}).encode(), tmp_path / "m.safetensors"
    whole = raw(text.ljust(length or 0), bytes(range(1, 13)) if length != 0x3C else b"")
    for size in [*range(min(len(whole), 200 if length is None else 40)), *range(200, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:size])
        need = len(whole) if size >= len(whole) - 12 else int.from_bytes(whole[:8], "little") + 8 if size >= 8 else 10
        refused(path, f"has {size:,} of (at least )?{need:,} bytes" if size else "truncated: the file is empty", "E3003")


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "near.safetensors").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    absent = "no such file: the folder has near.safetensors"
    sentences = {".": "is a folder: .* in it, it has near.safetensors", "pipe": "is a pipe, not a regular file", "absent": absent}
    sentences |= {"a/b": "no such file: check the path", "loop": "cannot be opened", "a\0b": "cannot be opened"}
    for name, message in sentences.items():
        refused(tmp_path / name, message, "E3001")
    refused(Path("/dev/zero"), "is a device, not a regular file", "E3001")


def sparse(path: Path, length: int) -> Path:
    """A file that says it has a header of this length, and has it."""
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{}")
        file.truncate(length + 8)
    return path


def test_limit_of_the_header(tmp_path: Path) -> None:
    path = sparse(tmp_path / "m.safetensors", MAX_HEADER + 1)
    refused(path, r"header too large: 16,777,217 bytes, the limit is 16,777,216 \(--max-header\)", "E3005")
    refused(path, "header too large: 16,777,217 bytes, the limit is 1,000 ", "E3005", max_header=1000)
    refused(path, "not JSON at byte 10", "E3004", max_header=MAX_HEADER + 1)
    start = time.process_time()
    refused(sparse(path, 99_000_000), "header too large: 99,000,000 bytes, the limit is 16,777,216", "E3005")
    assert time.process_time() - start < 0.2
    for asked in (MAX_HEADER, 10**9):
        refused(sparse(path, 100_000_001), "100,000,001 bytes, the format allows 100,000,000, whatever", "E3005", max_header=asked)


def test_limit_of_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 1)
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({"a": GOOD["a"], "__metadata__": {"k": "v"}}, b"\0" * 8))
    assert len(read_header(path).tensors) == 1
    path.write_bytes(raw(GOOD, b"\0" * 12))
    refused(path, "header too large: 2 tensors, the limit is 1: .*--max-header", "E3005")
    assert len(read_header(path, max_header=MAX_HEADER + 1).tensors) == 2


@pytest.mark.parametrize("mark", ["{", "[", '"', ","])
def test_limit_of_what_the_header_is_made_of(mark: str, tmp_path: Path) -> None:
    """Counted before the JSON is parsed, and lifted with the rest."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(json.dumps({"__metadata__": {"k": mark * 1_300_000}}).encode()))
    refused(path, rf"header too large: [\d,]+ of '\{mark}', the limit is [\d,]+ \(those of 100,000 tensors\): .*--max-header", "E3005")
    assert len(read_header(path, max_header=MAX_HEADER + 1).metadata["k"]) == 1_300_000
    path.write_bytes(raw(json.dumps({"__metadata__": {"k": mark * 90_000}}).encode()))
    assert len(read_header(path).metadata["k"]) == 90_000


def test_the_file_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pread = tmp_path / "m.safetensors", os.pread
    path.write_bytes(raw(GOOD, b"\0" * 12))
    monkeypatch.setattr(os, "pread", lambda descriptor, count, offset: pread(descriptor, min(count, 100), offset))
    refused(path, "ends at byte 100 since it was opened", "E3009")

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    refused(path, r"cannot be read at byte 0 \(Input/output error\): check the disk", "E3009")


def test_stamp(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(GOOD, b"\0" * 12))
    info = path.stat()
    assert read_header(path).stamp == (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def test_accepted(tmp_path: Path) -> None:
    """Any order, any alignment, empty tensors, scalars, spaces at the end; offsets come back as places in the file."""
    table = {
        "late": entry("F32", [2], 3, 11),
        "__metadata__": {"modelspec.title": "t"},
        "early": entry("U8", [3], 0, 3),
        "none": entry("F16", [0, 7], 11, 11),
        "scalar": entry("F16", [], 11, 13),
        "ключ 鍵": entry("I64", [1], 13, 21),
    }
    text = json.dumps(table, ensure_ascii=False).encode() + b"   "
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(text, bytes(21)))
    header = read_header(path)
    start = 8 + len(text)
    assert header.data_start == start and header.size == start + 21 and header.metadata == {"modelspec.title": "t"}
    assert header.tensors["late"] == Entry("F32", (2,), start + 3, start + 11)
    assert list(header.tensors) == ["late", "early", "none", "scalar", "ключ 鍵"]
    assert header.tensors["scalar"].shape == ()


def test_written_by_the_reference(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        f"t{i}": np.full((i, 2), i, dtype) for i, dtype in enumerate((np.float32, np.float16, np.int64, np.uint8, np.bool_))
    }
    save_file(arrays, tmp_path / "m.safetensors", metadata={"a": "b"})
    header = read_header(tmp_path / "m.safetensors")
    assert {name: entry.shape for name, entry in header.tensors.items()} == {name: array.shape for name, array in arrays.items()}
    content = (tmp_path / "m.safetensors").read_bytes()
    assert all(content[header.tensors[name].start : header.tensors[name].end] == array.tobytes() for name, array in arrays.items())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_never_more_lenient_than_the_reference(tmp_path: Path, data: st.DataObject) -> None:
    """Mutants of a small file: refused with a FileError, or accepted by the reference too."""
    content = bytearray(raw({**GOOD, "__metadata__": {"k": "v"}}, bytes(12)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.one_of(st.sampled_from(b'"{}[]:,0123456789-eF '), st.integers(0, 255)))
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except FileError:
        return
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        pytest.fail(f"accepted, but the reference says {error}: {bytes(content)!r}")


def test_size_and_speed_of_an_official_header(tmp_path: Path) -> None:
    names = {f"model.diffusion_model.input_blocks.8.1.transformer_blocks.{i}.attn2.to_out.0.weight": i for i in range(2515)}
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw({name: entry("F16", [1280, 0], 0, 0) for name in names}))

    def once() -> float:
        start = time.process_time()
        read_header(path)
        return time.process_time() - start

    assert min(once() for _ in range(5)) < 0.05


def test_no_torch() -> None:
    modules = ("safetensors", "families", "leftovers", "memory", "writer")
    imports = ", ".join(f"ldm.checkpoint.{name}" for name in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_pickle() -> None:
    """Neither imported nor reachable by a name; the reader's process is watched for what runs in scripts/faults/reader.py, row A6."""
    code = "import sys, ldm.checkpoint.safetensors; print({'pickle', '_pickle', 'shelve', 'torch', 'numpy', 'dill'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
