"""Rows A7, A8 and A9: bits that flip, weights that are not finite, files that change while they are read."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ldm.checkpoint.digests import sha256, verify
from ldm.checkpoint.loading import DTYPES, Part, fill
from ldm.checkpoint.safetensors import Header, read_header
from ldm.checkpoint.writer import save, tensor_items
from ldm.errors import FileError
from scripts.faults import Figure

OLD = 10**18  # ns: the time that files are given which are not to look just written
TARGETS = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((), (7,), (33, 65), (1000, 3), (700, 1031))  # ends of every kind for vectorised checks, and more than one piece


def part(state: dict[str, Tensor], dtype: torch.dtype) -> Part:
    """An empty module with a place for each tensor."""
    module = nn.Module()
    for name, value in state.items():
        module.register_buffer(name, torch.empty(value.shape, device="meta"))
    return Part(module, "", dtype)


def age(path: Path) -> Path:
    os.utime(path, ns=(OLD, OLD))
    return path


def put(path: Path, at: int, change: Callable[[bytes], bytes], size: int = 1) -> bytes:
    """Change bytes of a file, whose time is then the old one again; the bytes before."""
    with open(path, "r+b") as file:
        file.seek(at)
        before = file.read(size)
        file.seek(at)
        file.write(change(before))
    age(path)
    return before


# A7


def a7(count: int | None = None) -> Figure:
    """One random bit flips, size and time stay: of files whose whole digest, or that of their data, is known."""
    count = 10_000 if count is None else count
    draw = random.Random(7)
    with tempfile.TemporaryDirectory() as name, _environment("LDM_CACHE_DIR", name):
        headers = [_known_whole(Path(name)), _known_data(Path(name))]
        found = sum(_flipped_is_found(headers[i % 2], draw, headers[i % 2].data_start * (i % 2)) for i in range(count))
        whole = sum(verify(header) is not None for header in headers)  # all bits are back
        size = 10**9 if count >= 10_000 else 10**8
        wall, cpu = _cost(Path(name) / "big", size)
    reached = f"{found:,} of {count:,} flipped bits found; {wall:.2f} s/GB, {cpu:.2f} s/GB of the processor, over {size / 1e9:.1f} GB"
    good = found == count and whole == 2 and (count < 10_000 or cpu <= 3)
    return Figure("all found when a digest is known, at most 3 s/GB", reached, good)


def _known_whole(folder: Path) -> Header:
    path = save(folder / "whole.safetensors", tensor_items({"x": torch.randn(30, 30)}))
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256(path)}  {path.name}\n")
    return read_header(age(path))


def _known_data(folder: Path) -> Header:
    return read_header(age(save(folder / "data.safetensors", tensor_items({"x": torch.randn(30, 30)}), digest=True)))


def _flipped_is_found(header: Header, draw: random.Random, start: int) -> bool:
    """Flip a bit behind `start`, ask, and flip it back."""
    at, bit = draw.randrange(start, header.size), 1 << draw.randrange(8)
    before = put(header.path, at, lambda byte: bytes([byte[0] ^ bit]))
    try:
        return _refused(lambda: verify(header)) == "E3010"
    finally:
        put(header.path, at, lambda _: before)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({name: before} if before is not None else {})


def _cost(path: Path, size: int) -> tuple[float, float]:
    """Seconds for a GB, by the clock and of the processor: the best of three, over zeros that take no room on the disk."""
    path.touch()
    os.truncate(path, size)
    taken = []
    for _ in range(3):
        start = time.perf_counter(), time.process_time()
        sha256(path)
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return min(wall for wall, _ in taken) * 1e9 / size, min(cpu for _, cpu in taken) * 1e9 / size


def _refused(call: Callable[[], object]) -> str:
    try:
        call()
    except FileError as error:
        return error.code
    return ""


# A8

FORMATS = {
    "F16": ("<H", 0x7C00, 0x3FF),
    "BF16": ("<H", 0x7F80, 0x7F),
    "F32": ("<I", 0x7F800000, 2**23 - 1),
    "F64": ("<Q", 0x7FF << 52, 2**52 - 1),
}  # how struct names the bits, the exponent's, the largest payload


def a8(count: int | None = None) -> Figure:
    """One Inf, -Inf or NaN of any payload at a random place of a random tensor, in all dtypes and conversions; then finite extremes."""
    count = 4_000 if count is None else count
    draw = random.Random(8)
    with tempfile.TemporaryDirectory() as name:
        files = [_Weights(Path(name) / f"{kind}.safetensors", kind) for kind in (*DTYPES, "mixed")]
        found = sum(files[i % len(files)].injected_is_named(draw, TARGETS[i // len(files) % len(TARGETS)]) for i in range(count))
        alarms, narrow, loads, beyond = _extremes(Path(name) / "extremes.safetensors")
    reached = f"{found:,} of {count:,} found and named with their place; {alarms} false alarms in {loads} loads of finite extremes; "
    reached += f"{narrow} of {beyond} values beyond the chosen dtype found"
    return Figure("all found and named, no false alarm", reached, found == count and not alarms and narrow == beyond)


class _Weights:
    """A file of finite weights in one dtype, or in all."""

    def __init__(self, path: Path, kind: str) -> None:
        kinds = list(DTYPES.values()) if kind == "mixed" else [DTYPES[kind]]
        torch.manual_seed(0)
        self.state = {f"t{i}": torch.randn(shape).to(kinds[i % len(kinds)]) for i, shape in enumerate(SHAPES)}
        self.path = age(save(path, tensor_items(self.state)))
        self.header = read_header(path)

    def injected_is_named(self, draw: random.Random, dtype: torch.dtype) -> bool:
        """Put one in, load, take it out again."""
        name = draw.choice(list(self.state))
        entry = self.header.tensors[name]
        code, exponent, mantissa = FORMATS[entry.dtype]
        at = draw.randrange(self.state[name].numel())
        payload = draw.choice((0, 0, 1, mantissa, draw.randint(1, mantissa)))  # 0: Inf
        bits = exponent | payload | draw.choice((0, 1 << (8 * struct.calcsize(code) - 1)))
        start, size = entry.start + at * struct.calcsize(code), struct.calcsize(code)
        before = put(self.path, start, lambda _: struct.pack(code, bits), size)
        try:
            fill(self.header, [part(self.state, dtype)])
        except FileError as error:
            place = [int(i) for i in torch.unravel_index(torch.tensor(at), entry.shape)] if entry.shape else []
            said = f"1 non-finite value in {name} (first of 1 at index {place}): the file is damaged"
            return error.code == "E3008" and said in str(error)
        finally:
            put(self.path, start, lambda _: before, size)
        return False


@dataclass
class _Tally:
    alarms: int = 0
    narrow: int = 0
    loads: int = 0
    beyond: int = 0


def _extremes(path: Path) -> tuple[int, int, int, int]:
    """(false alarms, overflows found, loads that must succeed, loads that must not): the ends of each dtype into each."""
    tally = _Tally()
    for kind, dtype in ((kind, dtype) for kind in DTYPES.values() for dtype in TARGETS):
        for value in _ends(kind):
            state = {"x": torch.full((5_000,), value, dtype=torch.float64).to(kind)}
            header = read_header(age(save(path, tensor_items(state), overwrite=True)))
            code = _refused(lambda header=header, state=state, dtype=dtype: fill(header, [part(state, dtype)]))
            if torch.isfinite(state["x"].to(dtype)).all():
                tally.loads, tally.alarms = tally.loads + 1, tally.alarms + (code != "")
            else:
                tally.beyond, tally.narrow = tally.beyond + 1, tally.narrow + (code == "E3008")
    return tally.alarms, tally.narrow, tally.loads, tally.beyond


def _ends(kind: torch.dtype) -> list[float]:
    """Finite values: the ends of the dtype and of the narrower ones, subnormals, zero, what overflows when squared or summed."""
    info = torch.finfo(kind)
    found = [info.max, info.tiny, info.smallest_normal * info.eps, 0.0, 65504.0, 65519.0, 65520.0, 1e20, 1e38, 3.395e38, 3.397e38]
    return [sign * value for value in found if value <= info.max for sign in (1, -1)]


# A9


def a9(count: int | None = None) -> Figure:
    """A file is changed by another thread at a random moment from the reading of its header on; then everything that it holds."""
    count = 1_000 if count is None else count
    race = _Race(random.Random(9))
    with tempfile.TemporaryDirectory() as name:
        for i in range(count):
            race.run(Path(name) / f"{i % 16}.safetensors", list(CHANGES.values())[i % len(CHANGES)], fresh=i % 2 == 0)
    outcomes = ", ".join(f"{number:,} {what}" for what, number in sorted(race.outcomes.items()))
    good = race.outcomes.keys() <= {"unharmed", "refused as changed"} and len(race.outcomes) == 2
    return Figure("each unharmed, or refused as changed while it was read", f"{count:,} races in this process: {outcomes}", good)


def _cut(path: Path, other: bytes) -> None:
    os.truncate(path, len(other) // 3)


def _overwrite(path: Path, other: bytes) -> None:
    """In place, in pieces as `cp` does it."""
    with open(path, "r+b", buffering=0) as file:
        for start in range(0, len(other), 2**17):
            file.write(other[start : start + 2**17])


def _replace(path: Path, other: bytes) -> None:
    path.with_suffix(".new").write_bytes(other)
    os.replace(path.with_suffix(".new"), path)


def _append(path: Path, other: bytes) -> None:
    with open(path, "ab") as file:
        file.write(other[:100])


CHANGES: dict[str, Callable[[Path, bytes], None]] = {
    "cut": _cut,
    "overwritten": _overwrite,
    "replaced": _replace,
    "longer": _append,
    "one byte": lambda path, other: _overwrite(path, other[:-1]),
}


@dataclass
class _Race:
    """Loads of the same weights from files that change; `took` are the seconds of those that were unharmed."""

    draw: random.Random
    took: list[float] = field(default_factory=lambda: [0.005])
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.state = {f"t{i}": torch.randn(300, 401) for i in range(4)}
        self.other = {name: value + 1 for name, value in self.state.items()}
        with tempfile.TemporaryDirectory() as name:
            self.first, self.second = (
                save(Path(name) / f"{i}.safetensors", tensor_items(state)).read_bytes() for i, state in enumerate((self.state, self.other))
            )

    def run(self, path: Path, change: Callable[[Path, bytes], None], *, fresh: bool) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(self.first)
        if not fresh:
            age(path)
        delay, started, target = self.draw.uniform(0, 1.5) * median(self.took[-50:]), threading.Event(), part(self.state, torch.float32)
        thread = threading.Thread(target=lambda: (started.wait(), time.sleep(delay), change(path, self.second)))
        thread.start()
        header = read_header(path)
        started.set()
        self.outcomes[self._outcome(header, target, thread, path)] += 1

    def _outcome(self, header: Header, target: Part, thread: threading.Thread, path: Path) -> str:
        start = time.perf_counter()
        try:
            fill(header, [target])
        except FileError as error:
            return "refused as changed" if error.code == "E3009" else error.code
        finally:
            took = time.perf_counter() - start
            thread.join()
        self.took.append(took)
        _overwrite(path, bytes(len(self.first)))
        os.truncate(path, 0)
        held = target.module.state_dict()
        return "unharmed" if all(torch.equal(held[name], value) for name, value in self.state.items()) else "with changed weights"
