"""The writer against the safetensors package, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ldm.checkpoint.loading import Part, fill
from ldm.checkpoint.safetensors import BITS, read_header
from ldm.checkpoint.writer import Item, content, head, ordered, save, tensor_items
from ldm.errors import FileError, InputError
from ldm.files import write_atomic
from tests.checkpoint.builders import manifests

STATE = {
    "b": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.arange(4, dtype=torch.float16),
    "c": torch.tensor(7, dtype=torch.int64),
    "bf": torch.arange(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "turned": torch.arange(6, dtype=torch.float32).view(2, 3).t(),
}


def test_the_same_bytes_as_the_reference(tmp_path: Path) -> None:
    metadata = {"modelspec.title": "é"}
    ours = save(tmp_path / "ours.safetensors", tensor_items(STATE), metadata)
    save_file({name: tensor.contiguous() for name, tensor in STATE.items()}, tmp_path / "theirs.safetensors", metadata=metadata)
    assert ours.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_read_back(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tensor_items(STATE), {"k": "v"})
    loaded = load_file(path)
    assert loaded.keys() == STATE.keys() and all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())
    header = read_header(path)
    assert header.metadata == {"k": "v"} and header.data_start % 8 == 0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"k": "v"}


def test_dtype_of_choice(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tensor_items(STATE, torch.float16))
    assert {name: entry.dtype for name, entry in read_header(path).tensors.items()} == {**dict.fromkeys(STATE, "F16"), "c": "I64"}


@pytest.mark.parametrize("pad", [1, 4, 8, 4096])
def test_padding(pad: int, tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tensor_items(STATE), pad=pad)
    header = read_header(path)
    assert header.data_start % pad == 0
    text = path.read_bytes()[8 : header.data_start]
    assert json.loads(text) and (pad > 1 or not text.endswith(b" "))


def test_data_is_asked_for_when_its_turn_comes(tmp_path: Path) -> None:
    order: list[str] = []

    def data(name: str) -> bytes:
        order.append(name)
        return bytes(4)

    save(tmp_path / "m.safetensors", [Item(name, "F32", (1,), lambda name=name: data(name)) for name in "cab"])  # type: ignore[misc]
    assert order == ["a", "b", "c"]


def size(tensors: dict[str, list[Any]], metadata: dict[str, str], pad: int) -> int:
    """Bytes of the file that `save` would write."""
    items = ordered(Item(name, dtype, tuple(shape), b"") for name, (dtype, *shape) in tensors.items())
    return len(head(items, metadata, pad)) + sum(math.prod(item.shape) * BITS[item.dtype] // 8 for item in items)


def test_sizes_of_published_files() -> None:
    """The header we write for a public file's tensors gives that file's published size to the byte, where its metadata is known."""
    files = {name: manifest for name, manifest in manifests().items() if manifest["published_size"]}
    ways = [(metadata, pad) for metadata in ({}, {"format": "pt"}) for pad in (8, 1)]
    equal = {name for name, each in files.items() if any(size(each["tensors"], *way) == each["published_size"] for way in ways)}
    assert {"sd_xl_base_0.9.safetensors", "sd_xl_refiner_0.9.safetensors", "sdxl_finetune_position_ids_i64.safetensors"} <= equal
    assert {"sdxl_vae.safetensors", "stable-diffusion-xl-base-1.0/unet/diffusion_pytorch_model.safetensors"} <= equal
    assert len(equal) == 35 and len(files) == 48


def test_refusals(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", tensor_items(STATE))
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        save(path, tensor_items(STATE))
    with pytest.raises(InputError, match="'a': given twice"):
        save(path, [Item("a", "F32", (1,), bytes(4))] * 2, overwrite=True)
    with pytest.raises(InputError, match=r"'a': 3 bytes do not hold F32 \(1,\)"):
        save(path, [Item("a", "F32", (1,), bytes(3))], overwrite=True)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["m.safetensors"]


def test_onto_the_file_that_is_read(tmp_path: Path) -> None:
    """A file saved over itself, tensor by tensor from a map of the old one, keeps its values."""
    path = save(tmp_path / "m.safetensors", tensor_items(STATE))
    mapped, entries = np.memmap(path, np.uint8, "r"), read_header(path).tensors
    items = [Item(name, entry.dtype, entry.shape, mapped[entry.start : entry.end].tobytes) for name, entry in entries.items()]
    save(path, items, overwrite=True)
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in load_file(path).items())


def test_a_file_saved_over_itself_while_it_is_loaded(tmp_path: Path) -> None:
    """Each load is wholly the old file or wholly the new one, or says that the file changed."""
    path, states = tmp_path / "m.safetensors", [{"x": torch.full((200_000,), value)} for value in (1.0, 2.0)]
    save(path, tensor_items(states[0]))
    stop, seen = threading.Event(), set[str]()

    def swap() -> None:
        while not stop.is_set():
            for state in reversed(states):
                save(path, tensor_items(state), overwrite=True)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(40):
            module = nn.Module()
            module.register_buffer("x", torch.empty(200_000, device="meta"))
            try:
                fill(read_header(path), [Part(module, "", torch.float32)])
                seen.add(str(module.state_dict()["x"].unique().tolist()))
            except FileError as error:
                seen.add(error.code)
    finally:
        stop.set()
        thread.join()
    assert seen <= {"[1.0]", "[2.0]", "E3009"}
    header = read_header(path)
    fill(header, [Part(module, "", torch.float32)])
    save(path, tensor_items(module.state_dict()), overwrite=True)
    assert torch.equal(load_file(path)["x"], module.state_dict()["x"])


def test_modelspec_hash_of_the_data(tmp_path: Path) -> None:
    metadata = {"modelspec.title": 'a "modelspec.hash_sha256":"0x' + "0" * 64, "format": "pt"}
    path = save(tmp_path / "m.safetensors", tensor_items(STATE), metadata, digest=True)
    header, raw = read_header(path), path.read_bytes()
    data = hashlib.sha256(raw[header.data_start :]).hexdigest()
    assert header.metadata == {**metadata, "modelspec.hash_sha256": f"0x{data}"}
    told = save(tmp_path / "told.safetensors", tensor_items(STATE), header.metadata)
    assert told.read_bytes() == raw


class Broken(io.BytesIO):
    """A file whose k-th write fails, by the disk or by an interrupt."""

    def __init__(self, file: Any, left: int, error: BaseException) -> None:
        self.file, self.left, self.error = file, left, error

    def write(self, data: Any) -> int:
        if not self.left:
            raise self.error
        self.left -= 1
        return int(self.file.write(data))

    def seek(self, *where: int) -> int:
        return int(self.file.seek(*where))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"])
@pytest.mark.parametrize("old", [False, True])
def test_a_failure_at_any_write_leaves_nothing(old: bool, error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    before = save(path, tensor_items(STATE)).read_bytes() if old else None
    write = content(tensor_items(STATE), {"k": "v"}, digest=True)
    failed = 0
    for k in range(20):
        try:
            write_atomic(path, lambda file, k=k: write(Broken(file, k, error)), overwrite=True)  # type: ignore[misc]
        except type(error):
            failed += 1
            assert [each.name for each in tmp_path.iterdir()] == ([path.name] if old else [])
            assert not old or path.read_bytes() == before
        else:
            break
    assert failed == 2 + sum(1 for tensor in STATE.values() if tensor.numel())  # the header, the tensors, the digest
    assert read_header(path).metadata["k"] == "v"


@pytest.mark.parametrize("name", ["fchmod", "fsync", "replace"])
def test_a_failure_after_the_writes_leaves_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.safetensors", tensor_items(STATE))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(os, name, fail)
        save(path, tensor_items({"a": torch.ones(1)}), overwrite=True)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_order_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes, then fsync, then the name, then fsync of the folder."""
    done: list[str] = []
    for name in ("fsync", "replace", "link"):
        real = getattr(os, name)

        def told(*words: Any, name: str = name, real: Any = real) -> Any:
            info = os.fstat(words[0]) if name == "fsync" else os.stat(words[0])
            done.append(f"{name} of {'the folder' if stat.S_ISDIR(info.st_mode) else f'{info.st_size} bytes'}")
            return real(*words)

        monkeypatch.setattr(os, name, told)
    size = save(tmp_path / "a.safetensors", tensor_items(STATE), digest=True).stat().st_size
    assert done == [f"fsync of {size} bytes", f"link of {size} bytes", "fsync of the folder"]
    done.clear()
    save(tmp_path / "a.safetensors", tensor_items(STATE), digest=True, overwrite=True)
    assert done == [f"fsync of {size} bytes", f"replace of {size} bytes", "fsync of the folder"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match="not a regular file"):
            write_atomic(path, lambda file: file.write(b"x"), overwrite=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]
