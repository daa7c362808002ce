"""The way to a GPU with a stand-in for its streams: no buffer is written while it travels, all has arrived when the reading ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.checkpoint import lanes, reading
from ldm.checkpoint.loading import fill
from ldm.errors import FileError
from tests.checkpoint.test_loading import part, values, write


class Gpu:
    """Work on its streams is done at once, and counts as done when somebody has waited for it."""

    def __init__(self) -> None:
        self.current: Stream | None = None
        self.travelling: dict[int, int] = {}  # number of a copy under way: the address that it is made from
        self.streams: list[Stream] = []
        self.pinned = self.copies = 0

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self.current = stream
        yield
        self.current = None


class Stream:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.under_way = gpu, list[int]()
        gpu.streams.append(self)

    def synchronize(self) -> None:
        for each in self.under_way:
            self.gpu.travelling.pop(each, None)


class Event:
    def __init__(self, blocking: bool) -> None:
        self.recorded: tuple[Stream, int] | None = None
        assert blocking

    def record(self, stream: Stream) -> None:
        self.recorded = stream, len(stream.under_way)

    def synchronize(self) -> None:
        if self.recorded is not None:
            stream, count = self.recorded
            for each in stream.under_way[:count]:
                stream.gpu.travelling.pop(each, None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """The modules' memory stands for a GPU's. One worker: its lane takes all pieces."""
    made, empty, copy, into = Gpu(), torch.empty, Tensor.copy_, reading._Source._fill

    def allocated(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made.pinned += pin_memory
        return empty(*shape, **options)

    def copied(to: Tensor, of: Tensor, non_blocking: bool = False) -> Tensor:
        if non_blocking:
            assert made.current is not None
            made.copies += 1
            made.travelling[made.copies] = of.data_ptr()
            made.current.under_way.append(made.copies)
        return copy(to, of)

    def filled(source: reading._Source, memory: Tensor, start: int) -> None:
        assert memory.data_ptr() not in made.travelling.values(), "written while it travels"
        into(source, memory, start)

    monkeypatch.setattr(torch, "empty", allocated)
    monkeypatch.setattr(Tensor, "copy_", copied)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(made))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    monkeypatch.setattr(reading, "WORKERS", 1)
    monkeypatch.setattr(reading, "PIECE", 64)
    monkeypatch.setattr(reading, "lane", lambda device, nbytes: lanes.CudaLane(nbytes, device))
    monkeypatch.setattr(reading._Source, "_fill", filled)
    monkeypatch.setattr(reading._Source, "_read_one", reading._Source._read_device)
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_buffers_take_turns(dtype: torch.dtype, gpu: Gpu, tmp_path: Path) -> None:
    state = values(torch.float16)
    target = part(dtype=dtype)
    fill(write(tmp_path / "m.safetensors", state), [target])
    assert all(torch.equal(tensor, state[f"net.{name}"].to(dtype)) for name, tensor in target.module.state_dict().items())
    assert gpu.pinned == 2 and gpu.copies == 10 and len(gpu.streams) == 1
    assert not gpu.travelling


def test_all_is_waited_for_after_an_error_too(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = write(tmp_path / "m.safetensors", values(torch.float16))
    read_into, calls = reading.read_into, iter(range(5))

    def breaking(*words: Any) -> int:
        if next(calls, None) is None:
            assert gpu.travelling
            raise OSError(5, "Input/output error")
        return read_into(*words)

    monkeypatch.setattr(reading, "read_into", breaking)
    with pytest.raises(FileError, match="cannot be read at byte"):
        fill(header, [part()])
    assert not gpu.travelling


def test_values_that_are_not_finite_are_found_there(gpu: Gpu, tmp_path: Path) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        state = values(torch.float16)
        state["net.conv.weight"][4, 0, 0, 1] = bad
        with pytest.raises(FileError, match=r"1 non-finite value in net.conv.weight \(first of 1 at index \[4, 0, 0, 1\]"):
            fill(write(tmp_path / "m.safetensors", state), [part()])
