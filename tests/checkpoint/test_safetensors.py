"""The header reader: what it accepts, and the sentence for everything else."""

from __future__ import annotations

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
from ldm.checkpoint.safetensors import Entry, read_header
from ldm.errors import InputError
from tests.checkpoint.builders import entry, raw

GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [1, 2], 8, 12)}
ONE = entry("F32", [2], 0, 8)


def field(**changes: object) -> dict[str, object]:
    return {"a": {**ONE, **changes}}


MALFORMED = {
    # other things than safetensors
    "empty": (b"", "is empty"),
    "few bytes": (b"\x08\0\0", "3 bytes are too few"),
    "zeros": (b"\0" * 600, "begins with zeros"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:31e35c80fc\nsize 6938078334\n", "a git-lfs pointer"),
    "html": (b"<!DOCTYPE html><html><body>401</body></html>", "an HTML or XML page"),
    "html after space": (b"\xef\xbb\xbf\n  <html></html>", "an HTML or XML page"),
    "zip": (b"PK\x03\x04" + b"\x14\0" * 50, "pickles can run code"),
    "pickle": (b"\x80\x02}q\0X\n\0\0\0state_dictq\x01", "pickles can run code"),
    "pickle 5": (b"\x80\x05\x95" + b"\x11" * 60, "pickles can run code"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\x01" * 40, "a GGUF file"),
    "text": (b"hello, this is a text file of no importance", "not a safetensors file"),
    # the header's length
    "header cut": (raw(GOOD, b"\0" * 12)[:40], "truncated: has 40 of at least"),
    "length 0": (raw(b"{}", length=0) + b"\0" * 9, "not a safetensors file"),
    "length 1": (raw(b"{", b"}" * 9, length=1), "not a safetensors"),
    "length 2^63": (raw(b"{}", b"\0" * 9, length=2**63), "truncated"),
    # JSON
    "leading space": (raw(b" {}"), "must begin with '{'"),
    "bom": (raw(b"\xef\xbb\xbf{}"), "must begin with '{'"),
    "list": (raw(b"[]"), "must begin with '{'"),
    "not json": (raw(b"{nope}"), "not JSON"),
    "cut json": (raw(b'{"a": {"dtype": "F32"'), "not JSON"),
    "two objects": (raw(b"{}{}"), "not JSON"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not UTF-8 at byte 10"),
    "deep": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply|not JSON"),
    "duplicate tensor": (raw(b'{"a":%s,"a":%s}' % (json.dumps(ONE).encode(), json.dumps(ONE).encode()), b"\0" * 8), "duplicate name 'a'"),
    "duplicate field": (raw(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8), "duplicate name 'dtype'"),
    "duplicate metadata": (raw(b'{"__metadata__":{"k":"1","k":"2"}}'), "duplicate name 'k'"),
    # metadata
    "metadata list": (raw({"__metadata__": []}), "__metadata__ does not map"),
    "metadata number": (raw({"__metadata__": {"a": 1}}), "__metadata__ does not map"),
    "metadata null": (raw({"__metadata__": {"a": None}}), "__metadata__ does not map"),
    # fields
    "not an object": (raw({"a": 1}), "fields are not"),
    "field missing": (raw({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "fields are not"),
    "field unknown": (raw(field(extra=1), b"\0" * 8), "fields are not"),
    "dtype unknown": (raw(field(dtype="F33"), b"\0" * 8), "unknown dtype 'F33'"),
    "dtype lower": (raw(field(dtype="f32"), b"\0" * 8), "unknown dtype"),
    "dtype number": (raw(field(dtype=32), b"\0" * 8), "unknown dtype"),
    "dtype list": (raw(field(dtype=[]), b"\0" * 8), "unknown dtype"),
    "shape number": (raw(field(shape=2), b"\0" * 8), "shape is not a list"),
    "shape text": (raw(field(shape=["2"]), b"\0" * 8), "shape is not a list"),
    "shape bool": (raw(field(shape=[True, 2]), b"\0" * 8), "shape is not a list"),
    "shape float": (raw(field(shape=[2.0]), b"\0" * 8), "2.0 in the header is not an integer"),
    "shape exponent": (raw(b'{"a":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}', b"\0" * 8), "2e0 in the header is not an integer"),
    "shape nan": (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', b"\0" * 8), "NaN in the header is not an integer"),
    "shape -0": (raw(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', b"\0" * 8), "-0 in the header"),
    "shape negative": (raw(field(shape=[-1, -2]), b"\0" * 8), "-1 in the header"),
    "shape huge": (raw(field(shape=[2**50, 0], data_offsets=[0, 0])), "up to 2.48"),
    "number huge": (raw(field(shape=[10**30, 0], data_offsets=[0, 0])), "1000000000"),
    "rank 9": (raw(field(shape=[1] * 8 + [2]), b"\0" * 8), "at most 8 integers"),
    "offsets one": (raw(field(data_offsets=[8]), b"\0" * 8), "two integers"),
    "offsets three": (raw(field(data_offsets=[0, 8, 8]), b"\0" * 8), "two integers"),
    "offsets null": (raw(field(data_offsets=None), b"\0" * 8), "two integers"),
    "offsets reversed": (raw(field(data_offsets=[8, 0]), b"\0" * 8), "-8 bytes do not hold"),
    "size": (raw(field(data_offsets=[0, 4]), b"\0" * 4), "4 bytes do not hold F32 .2,."),
    "part of a byte": (raw(field(dtype="F4", shape=[3], data_offsets=[0, 1]), b"\0"), "1 bytes do not hold F4"),
    # names
    "name empty": (raw({"": ONE}, b"\0" * 8), "without a name"),
    "name control": (raw({"a\0b": ONE}, b"\0" * 8), "control characters"),
    "name newline": (raw({"a\nb": ONE}, b"\0" * 8), "control characters"),
    "name long": (raw({"a" * 513: ONE}, b"\0" * 8), "at most 512 bytes"),
    "name surrogate": (raw(b'{"\\ud800":%s}' % json.dumps(ONE).encode(), b"\0" * 8), "not Unicode text"),
    # the data section
    "data cut": (raw(GOOD, b"\0" * 11), r"truncated: has [\d,]+ of [\d,]+ bytes: download it again"),
    "trailing": (raw(GOOD, b"\0" * 13), "1 bytes after the last tensor"),
    "bytes without tensors": (raw(b"{}", b"\0"), "1 bytes after the last tensor"),
    "hole": (raw({"a": ONE, "b": entry("F32", [2], 12, 20)}, b"\0" * 20), "'b': a hole of 4 bytes"),
    "hole first": (raw({"a": entry("F32", [2], 4, 12)}, b"\0" * 12), "'a': a hole of 4 bytes"),
    "overlap": (raw({"a": ONE, "b": entry("F32", [2], 4, 12)}, b"\0" * 12), "'b': an overlap of 4 bytes"),
    "same place": (raw({"a": ONE, "b": ONE}, b"\0" * 8), "'b': an overlap of 8 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, tmp_path: Path) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_header(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < len(str(path)) + 300


def test_every_truncation(tmp_path: Path) -> None:
    whole, path = raw(GOOD, bytes(range(1, 13))), tmp_path / "m.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"truncated|is empty"):
            read_header(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "near.safetensors").write_bytes(b"")
    absent = "no such file: the folder has near.safetensors"
    for name, message in {".": "is a folder", "pipe": "is not a regular file", "absent": absent}.items():
        with pytest.raises(InputError, match=message):
            read_header(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        read_header("/dev/zero")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:  # sparse
        file.write((99_000_000).to_bytes(8, "little") + b"{")
        file.truncate(100_000_000)
    start = time.perf_counter()
    with pytest.raises(InputError, match="header too large: 99,000,000 bytes, the limit is 16,777,216"):
        read_header(path)
    assert time.perf_counter() - start < 0.2
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 1)
    path.write_bytes(raw(GOOD, b"\0" * 12))
    with pytest.raises(InputError, match="2 tensors, the limit is 1"):
        read_header(path)


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


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_never_more_lenient_than_the_reference(tmp_path: Path, data: st.DataObject) -> None:
    """Mutants of a small file: refused with an InputError, or accepted by the reference too."""
    content = bytearray(raw({**GOOD, "__metadata__": {"k": "v"}}, bytes(12)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.one_of(st.sampled_from(b'"{}[]:,0123456789-eF '), st.integers(0, 255)))
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except InputError:
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
