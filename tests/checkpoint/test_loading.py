"""Strict filling: bit-equal values, exact messages, weights that outlive their file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldm.checkpoint import finite, loading, memory, reading, safetensors
from ldm.checkpoint.families import recognise
from ldm.checkpoint.loading import Part, fill, tensor_bytes
from ldm.checkpoint.safetensors import TICK, Header, read_header
from ldm.checkpoint.writer import Item, save, tensor_items
from ldm.errors import FileError, MemoryNeedError
from ldm.models.unet import Attention, CrossAttention
from ldm.ops.linear import side_by_side
from scripts import synthetic
from tests.checkpoint.builders import raw


class Net(nn.Module):
    """A few tensors of all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.GroupNorm(1, 5)
        self.scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", torch.zeros(7))


NAMES = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "scale", "count")


def part(prefix: str = "net.", dtype: torch.dtype = torch.float32) -> Part:
    with torch.device("meta"):
        return Part(Net(), prefix, dtype)


def values(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"net.{name}": torch.randn(tensor.shape).to(dtype) for name, tensor in Net().state_dict().items()}


def write(path: Path, state: dict[str, torch.Tensor]) -> Header:
    return read_header(save(path, tensor_items(state), overwrite=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", ["F16", "BF16", "F32", "F64", "mixed"])
def test_values_are_those_of_the_reference(stored: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = values()
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    chosen = [kinds[stored]] if stored != "mixed" else list(kinds.values())
    state = {name: tensor.to(chosen[i % len(chosen)]) for i, (name, tensor) in enumerate(state.items())}
    header = write(tmp_path / "m.safetensors", state)
    target = part(dtype=dtype)
    fill(header, [target])
    reference = load_file(tmp_path / "m.safetensors")
    for name, tensor in target.module.state_dict().items():
        assert tensor.dtype == dtype and torch.equal(tensor, reference[f"net.{name}"].to(dtype)), name
    assert not target.module.training and not any(parameter.requires_grad for parameter in target.module.parameters())


def test_one_allocation_a_module(tmp_path: Path) -> None:
    target = part()
    fill(write(tmp_path / "m.safetensors", values()), [target])
    tensors = list(target.module.state_dict().values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert all(tensor.is_contiguous() for tensor in tensors)


@pytest.mark.parametrize("shift", range(8))
def test_any_order_and_alignment(shift: int, tmp_path: Path) -> None:
    """Written by hand: the data begins anywhere, the tensors lie in the reverse order, a text in between."""
    state = values()
    blobs = {"pad": np.zeros(shift + 1, np.uint8).tobytes(), **{name: tensor.numpy().tobytes() for name, tensor in reversed(state.items())}}
    table, at = {}, 0
    for name, blob in blobs.items():
        shape, kind = (list(state[name].shape), "F32") if name in state else ([len(blob)], "U8")
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(blob)]}
        at += len(blob)
    (tmp_path / "m.safetensors").write_bytes(raw(table, b"".join(blobs.values())))
    target = part()
    fill(read_header(tmp_path / "m.safetensors"), [target], elsewhere=["pad"])
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in target.module.state_dict().items())


def test_kernels_are_turned_in_their_place() -> None:
    flat = torch.randn(7 + 5 * 3 * 9 + 5 * 3)
    kernel, point = flat[7 : 7 + 135].view(5, 3, 3, 3), flat[142:].view(5, 3, 1, 1)
    state, before = {"a": kernel, "b": point}, [kernel.clone(), point.clone()]
    loading.last_channels(state)
    assert [torch.equal(new, old) for new, old in zip(state.values(), before, strict=True)] == [True, True]
    assert state["a"].is_contiguous(memory_format=torch.channels_last) and not state["a"].is_contiguous()
    assert [new.data_ptr() for new in state.values()] == [kernel.data_ptr(), point.data_ptr()]


def test_weights_that_are_multiplied_together_are_neighbours(tmp_path: Path) -> None:
    """Files have to_out between to_k and to_q."""
    family = synthetic.tiny("sdxl-base")
    unet = synthetic.parts(family)[-1]
    items = [Item(name, "F32", shape, synthetic.values(name, shape, "F32").tobytes()) for name, shape in synthetic.file_shapes(unet)]
    fill(read_header(save(tmp_path / "m.safetensors", sorted(items, key=lambda item: item.name))), [unet])
    attentions = [module for module in unet.module.modules() if isinstance(module, Attention)]
    for each in attentions:
        layers = [each.to_q, each.to_k, each.to_v][isinstance(each, CrossAttention) :]
        whole = side_by_side(layers)
        assert whole is not None and torch.equal(whole, torch.cat([layer.weight for layer in layers]))
    assert len(attentions) == 140


def test_thirds_and_transposed_projection(tmp_path: Path) -> None:
    """A tower in OpenCLIP's names, with each spelling of text_projection that is met."""
    family = synthetic.tiny("sdxl-refiner")
    wanted: dict[str, torch.Tensor] = {}
    for spelling in ("", ".weight", ".weight.weight"):
        tower = next(each for each in synthetic.parts(family) if each.sources)
        items = []
        for name, shape in synthetic.file_shapes(tower):
            array = synthetic.values(name, shape, "F32").reshape(shape)
            odd = name.endswith("text_projection")
            items.append(Item(name + spelling * odd, "F32", shape, np.ascontiguousarray(array.T if odd and spelling else array).tobytes()))
        header = read_header(save(tmp_path / "m.safetensors", items, overwrite=True))
        fill(header, [tower])
        state = tower.module.state_dict()
        wanted = wanted or state
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
        assert tensor_bytes(header, [tower]) == header.size - header.data_start
    stacked = load_file(tmp_path / "m.safetensors")[f"{family.towers[0].prefix}transformer.resblocks.3.attn.in_proj_weight"]
    names = [f"text_model.encoder.layers.3.self_attn.{each}_proj.weight" for each in "qkv"]
    assert torch.equal(torch.cat([wanted[name] for name in names]), stacked)


@contextmanager
def refused(*parts: str, code: str = "E3007") -> Iterator[None]:
    with pytest.raises(FileError) as caught:
        yield
    text = str(caught.value)
    assert caught.value.code == code, text
    assert all(each in text for each in parts), text
    assert "\n" not in text


def test_missing_unknown_misshapen(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    state = values()
    with refused(f"{path}: the tensors do not fit the model (1 missing): missing: net.conv.weight (5, 3, 3, 3): use a file"):
        fill(write(path, {name: tensor for name, tensor in state.items() if name != "net.conv.weight"}), [part()])
    with refused("(1 unknown): unknown: net.extra (2,)"):
        fill(write(path, {**state, "net.extra": torch.zeros(2)}), [part()])
    with refused("(1 unknown): unknown: other (2,)"):
        fill(write(path, {**state, "other": torch.zeros(2)}), [part()])
    with refused("(1 of another shape): of another shape: net.conv.bias is (6,), not (5,)"):
        fill(write(path, {**state, "net.conv.bias": torch.zeros(6)}), [part()])
    with refused("net.scale is (1,), not ()"):
        fill(write(path, {**state, "net.scale": torch.zeros(1)}), [part()])
    with refused("(1 of a dtype that is not read)", "net.conv.bias is I64, not F16, BF16, F32, F64"):
        fill(write(path, {**state, "net.conv.bias": torch.zeros(5, dtype=torch.int64)}), [part()])
    with refused("(6 missing, 8 unknown)", "missing: net.count (7,)", "; and 9 more: use"):
        fill(write(path, {f"a.{i}": torch.zeros(1) for i in range(8)}), [part()])


def test_nothing_is_assigned_when_anything_is_wrong(tmp_path: Path) -> None:
    target = part()
    state = values()
    del state["net.count"]
    with refused("missing: net.count (7,)"):
        fill(write(tmp_path / "m.safetensors", state), [target])
    assert all(tensor.is_meta for tensor in target.module.state_dict().values())


def test_elsewhere_and_leftovers(tmp_path: Path) -> None:
    leftovers = {"model_ema.decay": torch.tensor(0.5), "v_pred": torch.zeros(0), "betas": torch.zeros(1000)}
    header = write(tmp_path / "m.safetensors", {**values(), **leftovers, "vae.x": torch.zeros(3)})
    fill(header, [part()], elsewhere=["vae."])
    with refused("unknown: vae.x (3,)"):
        fill(header, [part()])


def test_progress_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "TASK", 64)
    monkeypatch.setattr(reading, "PIECE", 32)
    header = write(tmp_path / "m.safetensors", values(torch.float16))
    seen: list[int] = []
    fill(header, [part()], progress=seen.append)
    assert sum(seen) == tensor_bytes(header, [part()]) == header.size - header.data_start and len(seen) > 5


@pytest.mark.parametrize("piece", [8, 24, 1000])
def test_small_pieces(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PIECE", piece)
    monkeypatch.setattr(reading, "TASK", 3 * piece)
    monkeypatch.setattr(reading, "HUGE", 1)
    state = values(torch.bfloat16)
    target = part()
    fill(write(tmp_path / "m.safetensors", state), [target])
    assert all(torch.equal(tensor, state[f"net.{name}"].float()) for name, tensor in target.module.state_dict().items())


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "overwritten": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_outlive_their_file(change: str, tmp_path: Path) -> None:
    path, target = tmp_path / "m.safetensors", part()
    state = values()
    fill(write(path, state), [target])
    CHANGES[change](path)
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in target.module.state_dict().items())


@pytest.mark.parametrize("change", ["cut", "emptied", "overwritten"])
def test_change_before_and_during_reading(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    header = write(path, values())
    os.utime(path, ns=(1, 1))
    header = read_header(path)
    CHANGES[change](path)
    with refused(f"{path}: the file changed while it was being read", code="E3009"):
        fill(header, [part()])
    header, read = write(path, values()), os.preadv
    os.utime(path, ns=(1, 1))
    header = read_header(path)

    def late(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        monkeypatch.setattr(os, "preadv", read)
        CHANGES[change](path)
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", late)
    with refused(f"{path}: the file changed while it was being read", code="E3009"):
        fill(header, [part()])


def test_short_reads_and_disk_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = values()
    header = write(tmp_path / "m.safetensors", state)
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, offset: read(descriptor, [buffers[0][:3]], offset))
    target = part()
    fill(header, [target])
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in target.module.state_dict().items())

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with refused("cannot be read at byte", "Input/output error", code="E3009"):
        fill(header, [part()])


def test_a_system_without_reads_at_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows is: threads seek and read in turn."""
    seek, threads = os.lseek, set()

    def slow(descriptor: int, offset: int, how: int) -> int:
        place = seek(descriptor, offset, how)
        threads.add(threading.get_ident())
        time.sleep(0.001)  # a thread that did not wait would read here
        return place

    state = values()
    path = save(tmp_path / "m.safetensors", tensor_items(state))
    for name in ("preadv", "pread", "fchmod"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(os, "lseek", slow)
    monkeypatch.setattr(reading, "PIECE", 64)
    monkeypatch.setattr(reading, "TASK", 64)
    target = part()
    fill(read_header(path), [target])
    assert all(torch.equal(tensor, state[f"net.{name}"]) for name, tensor in target.module.state_dict().items())
    assert len(threads) > 2
    save(path, tensor_items(state), overwrite=True)


@pytest.mark.parametrize("pause", [0, 2])
def test_rewritten_within_one_tick_of_the_clock(pause: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the header was read, same size, same date, as clocks of 4 or 10 ms have it, however late the load comes."""
    path = tmp_path / "m.safetensors"
    swapped = values()
    swapped["net.norm.weight"], swapped["net.norm.bias"] = swapped["net.norm.bias"], swapped["net.norm.weight"]
    save(path, tensor_items(swapped))
    other = path.read_bytes().replace(b"norm.bias", b"norm.BIAS")
    write(path, values())
    now = path.stat().st_mtime_ns
    slept = clock(monkeypatch, now + TICK // 2)
    header = read_header(path)
    path.write_bytes(other)
    os.utime(path, ns=(now, now))
    clock(monkeypatch, now + TICK // 2 + pause * TICK)
    with refused("the file changed while it was being read", code="E3009"):
        fill(header, [part()])
    assert not slept


def test_a_file_just_written_is_read_after_the_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is short, and only where the header was read within a tick of the file's last change."""
    path = tmp_path / "m.safetensors"
    write(path, values())
    written = path.stat().st_mtime_ns
    for age, wait in ((0, TICK), (TICK - 1000, 1000), (TICK, None), (-TICK, None)):
        slept = clock(monkeypatch, written + age)
        with reading._Source(read_header(path)) as source:
            source.settle()
        assert slept == ([] if wait is None else [wait / 1e9])


def clock(monkeypatch: pytest.MonkeyPatch, now: int) -> list[float]:
    """The reader's clock stands at `now` (ns); what it sleeps is noted."""
    slept: list[float] = []
    still = SimpleNamespace(time_ns=lambda: now, sleep=slept.append)
    monkeypatch.setattr(reading, "time", still)
    monkeypatch.setattr(safetensors, "time", still)
    return slept


PAIRS = [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float16)]


@pytest.mark.parametrize(("stored", "dtype"), PAIRS)
def test_values_that_are_not_finite(stored: torch.dtype, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named as the file names them, counted over pieces, with the place of the first."""
    monkeypatch.setattr(reading, "PIECE", 64)
    state = values(stored)
    state["net.conv.weight"][1, 2, 0, 1] = -torch.inf
    state["net.conv.weight"][4, 2, 2, 2] = torch.nan
    state["net.count"][6] = torch.nan
    path = tmp_path / "m.safetensors"
    what = "net.conv.weight (first of 2 at index [1, 2, 0, 1]), net.count (first of 1 at index [6])"
    said = f"{path}: weights contain 3 non-finite values in {what}: the file is damaged, download it again"
    with refused(said, code="E3008"):
        fill(write(path, state), [part(dtype=dtype)])


@pytest.mark.parametrize(("dtype", "value", "remedy"), [("float16", 65520.0, "bfloat16 or float32"), ("bfloat16", 3.4e38, "float32")])
def test_values_beyond_the_dtype(dtype: str, value: float, remedy: str, tmp_path: Path) -> None:
    state = {name: tensor.fill_(value) for name, tensor in values().items()}
    header = write(tmp_path / "m.safetensors", state)
    narrow = f"because {dtype} is too narrow: use --dtype {remedy}"
    with refused("weights contain 158 non-finite", " and 1 more, because", narrow, code="E3008"):
        fill(header, [part(dtype=getattr(torch, dtype))])
    target = part()
    fill(header, [target])  # large squares and sums are no alarm
    assert torch.equal(target.module.state_dict()["count"], state["net.count"])


def test_the_third_of_a_stacked_tensor_is_named_as_it_stands(tmp_path: Path) -> None:
    family = synthetic.tiny("sdxl-refiner")
    tower = next(each for each in synthetic.parts(family) if each.sources)
    state = {name: torch.ones(shape) for name, shape in synthetic.file_shapes(tower)}
    name = f"{family.towers[0].prefix}transformer.resblocks.3.attn.in_proj_weight"
    rows = state[name].shape[0]
    state[name][rows - 1, 5] = torch.nan
    with refused(f"1 non-finite value in {name} (first of 1 at index [{rows - 1}, 5])", code="E3008"):
        fill(write(tmp_path / "m.safetensors", state), [tower])


def test_flags_that_stay_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's way of reading, here on the CPU: one flag a piece, looked at when all are read, and only the bad pieces counted."""
    monkeypatch.setattr(reading._Source, "_read_one", reading._Source._read_device)
    monkeypatch.setattr(reading, "PIECE", 64)
    counted: list[str] = []
    monkeypatch.setattr(reading, "count", lambda name, *words: counted.append(name) or finite.count(name, *words))
    state = values(torch.float16)
    fill(write(tmp_path / "m.safetensors", state), [part()])
    assert counted == []
    state["net.conv.weight"][4, 0, 0, 1] = torch.nan
    with refused("1 non-finite value in net.conv.weight (first of 1 at index [4, 0, 0, 1])", code="E3008"):
        fill(write(tmp_path / "m.safetensors", state), [part()])
    assert counted == ["net.conv.weight"]


@pytest.mark.gpu
def test_on_a_device_too(tmp_path: Path) -> None:
    state = values()
    state["net.count"][2] = torch.inf
    with refused("1 non-finite value in net.count (first of 1 at index [2])", code="E3008"):
        fill(write(tmp_path / "m.safetensors", state), [part()], device="cuda")
    state["net.count"][2] = 1e5
    with refused("because float16 is too narrow", code="E3008"):
        fill(write(tmp_path / "m.safetensors", state), [part(dtype=torch.float16)], device="cuda")


def test_threads_are_as_before(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    fill(write(tmp_path / "m.safetensors", values()), [part()])
    assert torch.get_num_threads() == before


def test_memory_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = write(tmp_path / "m.safetensors", values())
    monkeypatch.setattr(loading, "free_memory", lambda *_: memory.RESERVE)
    with pytest.raises(MemoryNeedError, match=r"needs .* of memory and .* are free"):
        fill(header, [part()])


RESAVES: list[dict[str, Any]] = [
    {},
    {"dtype": "mixed"},
    {"dtype": "BF16", "position_ids": None, "logit_scale": False},
    {"position_ids": "I64", "header_bytes": 402_436},
]


@pytest.mark.parametrize("options", RESAVES)
def test_whole_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    """Every re-save of the base layout loads, each tensor bit-equal to the reference's reader."""
    family = synthetic.tiny()
    header = read_header(synthetic.write(tmp_path / "m.safetensors", family, **options))
    assert recognise(header) == family
    parts = synthetic.parts(family)
    fill(header, parts)
    reference = load_file(header.path)
    for each in parts:
        for name, tensor in each.module.state_dict().items():
            file_name, third = each.source(name)
            whole = reference[file_name].float()
            assert torch.equal(tensor, whole if third is None else whole.chunk(3)[third]), file_name


def test_another_vae(tmp_path: Path) -> None:
    family = synthetic.tiny()
    header = read_header(synthetic.write_vae(tmp_path / "vae.safetensors", family))
    vae = replace(next(each for each in synthetic.parts(family) if each.prefix == "first_stage_model."), prefix="")
    fill(header, [vae])
    assert torch.equal(vae.module.state_dict()["decoder.conv_in.bias"], load_file(header.path)["decoder.conv_in.bias"])
