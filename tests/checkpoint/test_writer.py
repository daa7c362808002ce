"""The writer against the safetensors package, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm.checkpoint.safetensors import BITS, read_header
from ldm.checkpoint.writer import Item, head, ordered, save, tensor_items
from ldm.errors import InputError
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
