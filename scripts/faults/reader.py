"""Rows A1 to A6: headers cut, changed, blown up or not headers at all, and what the reader makes of them."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import safetensors

from ldm.checkpoint.safetensors import BITS, MAX_TENSORS, parse, read_header
from ldm.errors import FileError
from scripts.faults import Figure, mutants
from scripts.faults.malformed import GOOD, MALFORMED, OTHER_KINDS, Trap, literal
from tests.checkpoint.builders import entry, manifests, raw

ROOT = Path(__file__).parents[2]
ACCEPTED = 0.1  # share of the mutants that must be deep enough to be accepted
WATCHED = ("pickle.", "marshal.", "exec", "compile", "import", "code.", "function.", "subprocess.", "os.system", "os.exec", "ctypes.")

CHILD = """
import json, os, sys, time
from ldm.checkpoint.safetensors import read_header
from ldm.errors import FileError

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def once(path, cut=None):
    if cut is not None:
        os.truncate(path, cut)
    start = time.process_time()
    try:
        said, code = f"accepted: {len(read_header(path).tensors)}", ""
    except FileError as error:
        said, code = str(error).removeprefix(f"{path}: "), error.code
    return said, code, time.process_time() - start

job = json.load(sys.stdin)
events, watched = [], tuple(job["watched"])
if watched:
    sys.addaudithook(lambda event, words: events.append(event) if event.startswith(watched) else None)
once(job["tiny"])
before = peak()
results = [once(path, cut) for path, cut in job["files"]]
print(json.dumps({"results": results, "grown": (peak() - before) / 1024, "events": events, "pickle": "pickle" in sys.modules}))
"""  # each result: sentence, class, seconds of the processor (the machine may be busy)


def fresh(files: list[tuple[Path | str, int | None]], tiny: Path, watched: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a fresh process says of files, each cut to a size first if one is given, and the MB that it grew by."""
    job = json.dumps({"tiny": str(tiny), "files": [(str(path), cut) for path, cut in files], "watched": watched})
    done = subprocess.run([sys.executable, "-c", CHILD], input=job, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"the reading process ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ldm-faults-")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def a1(count: int | None = None) -> Figure:
    """Mutants, held against the reference; see mutants.py for the list of reviewed reasons."""
    start, before = time.perf_counter(), _spent()
    counts = mutants.by_class(mutants.examine_all(count or 1_000_000))
    total, took = sum(counts.values()), time.perf_counter() - start
    busy = _spent() - before
    share = {name: f"{100 * value / total:.1f} % {name}" for name, value in counts.items() if name not in mutants.BAD}
    bad = ", ".join(f"{counts[name]} {name}" for name in mutants.BAD)
    good = not any(counts[name] for name in mutants.BAD) and counts["accepted by both"] > ACCEPTED * total
    return Figure(
        "1,000,000 mutants in under 60 s on 2 cores; none crashes, reads beyond the end, is accepted by us alone, is read differently "
        "or is refused by us alone for a reason not reviewed",
        f"{total:,} mutants against safetensors {safetensors.__version__} in {took:.1f} s ({busy:.1f} s of processor time): "
        f"{bad}; {', '.join(share.values())}",
        good and (took < 60 if count is None else _soon(busy, 60, count)),
    )


def _spent() -> float:
    """Seconds of processor time of the processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _soon(seconds: float, goal: float, count: int | None) -> bool:
    """Of the processor: within the goal; at a reduced count, which any machine may run beside other work, within ten times that."""
    return seconds <= goal * (1 if count is None else 10)


def official() -> tuple[bytes, int]:
    """The header of sd_xl_base_1.0 with its length, and the size of the file."""
    table, at = {}, 0
    for name, (dtype, *shape) in manifests()["sd_xl_base_1.0.safetensors"]["tensors"].items():
        size = BITS[dtype] // 8
        for dim in shape:
            size *= dim
        table[name] = entry(dtype, shape, at, at + size)
        at += size
    head = raw(json.dumps(table, separators=(",", ":")).encode())
    return head, len(head) + at


def cuts(head: int, size: int, count: int) -> list[int]:
    """Sizes to cut a file to, the largest first: the borders, and at random up to `count`, half of them in the header."""
    draw = Random(0).randrange
    sizes = {0, 1, 7, 8, 9, head - 1, head, head + 1, size - 1, *(2**n for n in range(3, 33))}
    while len(sizes) < count:
        sizes.add(draw(head) if len(sizes) % 2 else draw(head, size))
    return sorted((each for each in sizes if each < size), reverse=True)


def a2(count: int | None = None) -> Figure:
    """Every cut of a small file, and `count` cuts of a sparse file with the layout of sd_xl_base_1.0."""
    head, size = official()
    small = raw(GOOD, bytes(12))
    with scratch() as folder:
        tiny = written(Path(folder) / "tiny", b"tiny, no file of weights")
        whole = written(Path(folder) / "small.safetensors", small)
        big = written(Path(folder) / "big.safetensors", head)
        os.truncate(big, size)
        assert len(read_header(big).tensors) == 2515 and len(read_header(whole).tensors) == 2
        places = cuts(len(head), size, count or 2000)
        found = fresh([(whole, cut) for cut in range(len(small) - 1, -1, -1)], tiny)["results"]
        big_found = fresh([(big, cut) for cut in places], tiny)
    wrong = [cut for cut, result in zip(range(len(small) - 1, -1, -1), found, strict=True) if not _is_cut(result, cut, small)]
    wrong += [cut for cut, result in zip(places, big_found["results"], strict=True) if not _is_cut(result, cut, head, size)]
    times = [seconds for cut, (_, _, seconds) in zip(places, big_found["results"], strict=True) if cut >= len(head)]
    slowest, typical = max(times), sorted(times)[len(times) // 2]
    return Figure(
        'all refused as "truncated: has X of Y bytes", each in <= 50 ms, <= 64 MB of memory',
        f"{len(found)} cuts of {len(small)} bytes and {len(places):,} of {size / 1e9:.1f} GB: {len(wrong)} not refused as cut"
        f"{f' ({wrong[:5]})' if wrong else ''}; with a whole header {1000 * typical:.0f} ms, at most "
        f"{1000 * slowest:.0f} ms, of processor time; "
        f"{big_found['grown']:.0f} MB",
        not wrong and _soon(slowest, 0.05, count) and big_found["grown"] <= 64,
    )


def _is_cut(result: list[Any], cut: int, head: bytes, size: int | None = None) -> bool:
    """The sentence has both sizes: the true need once the header is whole, before that the header's end."""
    length = 8 + int.from_bytes(head[:8], "little")
    need = f"{size or len(head):,}" if cut >= length else f"at least {length if cut >= 8 else 10:,}"
    wanted = f"truncated: has {cut:,} of {need} bytes: download it again" if cut else "truncated: the file is empty: download it again"
    return result[:2] == [wanted, "E3003"]


def a3(count: int | None = None) -> Figure:
    """Every case of the table of malformed files."""
    cases = list(MALFORMED.items())[: count or None]
    wrong = [name for name, (content, sentence, code) in cases if not _as_written(content, sentence, code)]
    return Figure(
        "at least 60 cases, each refused with its sentence and its class",
        f"{len(cases) - len(wrong)} of {len(cases)}{f', not {wrong[:5]}' if wrong else ''}",
        not wrong and (count is not None or len(cases) >= 60),
    )


def _as_written(content: bytes, sentence: str, code: str) -> bool:
    try:
        parse(Path("file"), lambda size, offset: content[offset : offset + size], len(content), (0, 0, 0, 0))
    except FileError as error:
        return error.code == code and bool(re.search(sentence, str(error))) and "\n" not in str(error)
    return False


def repeated(before: bytes, part: bytes, after: bytes, size: int) -> bytes:
    """A header of about `size` bytes, with its length, made of one part over and over."""
    return raw(before + part * ((size - len(before) - len(after)) // len(part)) + after)


def tensors(count: int) -> bytes:
    return raw(b"{%s}" % b",".join(b'"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)))


def pairs(count: int) -> bytes:
    return raw(b'{"__metadata__":{%s}}' % b",".join(b'"%d":"v"' % i for i in range(count)))


def bombs() -> Iterator[tuple[str, bytes, str]]:
    """(name, file, what its sentence says) of headers that cost a reader much; one at a time, they are large."""
    million = 2**20
    yield "1,700,000 tensors", tensors(1_700_000), r"header too large: [\d,]+ bytes, the limit is 16,777,216 \(--max-header\)"
    yield "99 MB of []", repeated(b'{"a":[', b"[],", b"0]}", 99_000_000), r"header too large: [\d,]+ bytes, the limit is 16,777,216"
    yield "depth 100,000", repeated(b'{"a":', b"[", b"", 100_000), "nested too deeply|not JSON"
    yield "depth 5,000,000", repeated(b'{"a":', b"[", b"", 5_000_000), r"of '\[', the limit is"
    yield "150,000 tensors in 9 MB", tensors(150_000), "--max-header"
    yield "250,000 tensors in 16 MB", tensors(250_000), "--max-header"
    yield "16 MB of []", repeated(b'{"a":[', b"[],", b"0]}", 16 * million), "--max-header"
    yield "16 MB of {}", repeated(b'{"a":[', b"{},", b"0]}", 16 * million), "--max-header"
    yield "16 MB of numbers", repeated(b'{"a":[', b"1,", b"0]}", 16 * million), "--max-header"
    yield '16 MB of ""', repeated(b'{"a":[', b'"",', b"0]}", 16 * million), "--max-header"
    yield "1,000,000 keys of metadata", pairs(1_000_000), "--max-header"
    yield "16 MB of one string", repeated(b'{"a":"', b"1", b'"}', 16 * million), "tensor 'a': is '1111"
    yield "16 MB of spaces", repeated(b"{", b" ", b"", 16 * million), "not JSON"
    yield "a number of 16 MB", repeated(b'{"a":', b"1", b"}", 16 * million), "tensor 'a': is 11111"


def a4(count: int | None = None) -> Figure:
    """Header bombs, the first `count` of them; beside them what the largest headers within the limits cost."""
    results: dict[str, tuple[float, float]] = {}
    wrong: list[str] = []
    for name, content, sentence in islice(bombs(), count):
        results[name], said = cost(content)
        wrong += [] if re.search(sentence, said) else [f"{name}: {said[:80]}"]
    slowest, largest = (max(results, key=lambda name: results[name][i]) for i in (0, 1))
    within = "" if count else f"; within the limits: {_within_the_limits()}"
    return Figure(
        "each refused in <= 0.2 s with <= 50 MB of memory",
        f"{len(results) - len(wrong)} of {len(results)} refused as they are{f', not {wrong[:3]}' if wrong else ''}; slowest: {slowest}, "
        f"{results[slowest][0]:.3f} s of processor time; largest: {largest}, {results[largest][1]:.0f} MB{within}",
        not wrong and _soon(results[slowest][0], 0.2, count) and results[largest][1] <= 50,
    )


def _within_the_limits() -> str:
    wide = repeated('{"__metadata__":{"k":"\U0001f600'.encode(), b"1", b'"}}', 2**24)
    costs = {f"{MAX_TENSORS:,} tensors": cost(tensors(MAX_TENSORS))[0], "16 MB of text with one wide letter": cost(wide)[0]}
    return ", ".join(f"{name} {seconds:.2f} s and {grown:.0f} MB" for name, (seconds, grown) in costs.items())


def cost(content: bytes) -> tuple[tuple[float, float], str]:
    """(seconds of the processor, MB) that a fresh process takes for a file, and what it says."""
    with scratch() as folder:
        tiny, path = written(Path(folder) / "tiny", b"tiny, no file of weights"), written(Path(folder) / "bomb", content)
        found = fresh([(path, None)], tiny)
    said, _, seconds = found["results"][0]
    return (seconds, found["grown"]), said


def odd() -> dict[str, tuple[bytes, bool]]:
    """Files with odd shapes and places: (content, whether it is a good file)."""
    three = {"a": entry("U8", [3], 0, 3), "b": entry("F32", [2], 3, 11), "c": entry("F64", [1], 11, 19), "d": entry("F16", [3], 19, 25)}
    empty = {"none": entry("F32", [0], 0, 0), "some": entry("F32", [2], 0, 8), "also": entry("F16", [4, 0, 2], 8, 8)}
    scalar = {"x": entry("F32", [], 0, 4), "y": entry("I64", [], 4, 12), "z": entry("F32", [1, 1, 1], 12, 16)}
    data = bytes(range(0, 75, 3))
    return {
        "misaligned": (raw(three, data), True),
        **{f"header of {8 + n} spaces": (raw(json.dumps(three).encode() + b" " * n, data), True) for n in range(9)},
        "no values": (raw(empty, data[:8]), True),
        "no values alone": (raw({"a": entry("F32", [0, 2**40], 0, 0)}), True),
        "rank 0": (raw(scalar, data[:16]), True),
        "rank 8": (raw({"a": entry("U8", [1, 5, 1, 1, 1, 5, 1, 1], 0, 25)}, data), True),
        "no tensors": (raw(b"{}"), True),
        **{f"[{dim}, 0]": (raw({"a": entry("F32", [dim, 0], 0, 0)}), False) for dim in (2**63 - 1, 2**63, 2**64, 2**48 + 1, 10**40)},
        **{f"[{dim}]": (raw({"a": entry("U8", [dim], 0, 25)}, data), False) for dim in (2**31, 2**48, 2**63 - 1)},
        "[2^48, 2^48, 0]": (raw({"a": entry("F32", [2**48, 2**48, 0], 0, 0)}), False),
        "[2^32, 2^32] wraps to 0": (raw({"a": entry("F32", [2**32, 2**32], 0, 0)}), False),
        "[2^33] * 2 wraps": (raw({"a": entry("F32", [2**33, 2**33, 2**33], 0, 0)}), False),
        "100,000 dimensions": (raw({"a": entry("U8", [1] * 100_000, 0, 1)}, b"\1"), False),
        "100,000 dimensions, huge": (raw({"a": entry("U8", [2**47] * 100_000, 0, 1)}, b"\1"), False),
        "offsets at 2^63": (raw({"a": entry("U8", [8], 2**63 - 8, 2**63)}, data), False),
        "offsets at 2^64": (raw({"a": entry("U8", [25], 2**64, 2**64 + 25)}, data), False),
        "negative dimension": (literal("shape", "[-2]"), False),
    }


def a5(count: int | None = None) -> Figure:
    """Odd dimensions, ranks and places: refused, or the tensors that the bytes say, loaded by the engine's own reads."""
    cases = list(odd().items())[: count or None]
    start, wrong, loaded = time.process_time(), [], 0
    with scratch() as folder:
        for name, (content, good) in cases:
            values = _loaded(written(Path(folder) / "odd.safetensors", content))
            right = values is None if not good else values is not None and values == _reference(content)
            wrong += [] if right else [name]
            loaded += values is not None
    took = time.process_time() - start
    return Figure(
        "each refused or loaded right, none hangs",
        f"{len(cases) - len(wrong)} of {len(cases)}{f', not {wrong[:5]}' if wrong else ''}; {loaded} loaded right, "
        f"{took:.1f} s of processor time in all",
        not wrong and took < 30,
    )


def _loaded(path: Path) -> dict[str, tuple[str, list[int], bytes]] | None:
    """(dtype, shape, bytes) of each tensor in memory of our own; None: refused."""
    import torch

    from ldm.checkpoint.reading import Copy, read

    try:
        header = read_header(path)
    except FileError:
        return None
    targets = {name: torch.empty(entry.end - entry.start, dtype=torch.uint8) for name, entry in header.tensors.items()}
    read(header, [Copy(name, header.tensors[name].start, torch.uint8, target) for name, target in targets.items()])
    return {name: (*_form(header.tensors[name]), target.numpy().tobytes()) for name, target in targets.items()}


def _form(found: Any) -> tuple[str, list[int]]:
    return found.dtype, list(found.shape)


def _reference(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {name: (each["dtype"], list(each["shape"]), bytes(each["data"])) for name, each in safetensors.deserialize(content)}


def others(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """Other things than safetensors: (path, what the sentence says, its class); the zips and pickles are real ones with a trap inside."""
    import torch

    found = {}
    for number, (name, (content, sentence)) in enumerate(OTHER_KINDS.items()):
        found[name] = (written(folder / f"{number}.safetensors", content), sentence, "E3002")
    for name, zipped in (("torch.save", True), ("old torch.save", False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": {"weight": torch.ones(4)}, "trap": Trap()}, buffer, _use_new_zipfile_serialization=zipped)
        sentence = "a PyTorch file" if zipped else "a Python pickle"
        found[name] = (written(folder / f"{zipped}.ckpt", buffer.getvalue()), f"{sentence} .*pickles can run code", "E3002")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    return found | {
        "empty": (written(folder / "empty", b""), "the file is empty", "E3003"),
        "zeros": (written(folder / "zeros", bytes(100_000)), "begins with zeros: the download did not finish", "E3003"),
        "folder": (folder / "folder", "is a folder", "E3001"),
        "pipe": (folder / "pipe", "is a pipe", "E3001"),
        **{name: (Path(name), "is a device", "E3001") for name in ("/dev/zero", "/dev/null", "/dev/urandom")},
        "absent": (folder / "absent", "no such file", "E3001"),
    }


def a6(count: int | None = None) -> Figure:
    """Files of other kinds, named for what they are by a process that is watched for anything that runs."""
    with scratch() as folder:
        cases = list(others(Path(folder)).items())[-(count or 0) :]
        tiny = written(Path(folder) / "tiny", b"tiny, no file of weights")
        found = fresh([(path, None) for _, (path, _, _) in cases], tiny, WATCHED)
    wrong = [
        name
        for (name, (_, sentence, wanted)), (said, code, _) in zip(cases, found["results"], strict=True)
        if not re.search(sentence, said) or code != wanted
    ]
    slowest = max(seconds for _, _, seconds in found["results"])
    return Figure(
        "at least 11 kinds, each named; nothing of them is run",
        f"{len(cases) - len(wrong)} of {len(cases)}{f', not {wrong[:5]}' if wrong else ''}; "
        f"slowest {1000 * slowest:.0f} ms of processor time; "
        f"{len(found['events'])} events of {', '.join(WATCHED[:5])} and the like; pickle imported: {found['pickle']}",
        not wrong and not found["events"] and not found["pickle"] and slowest < 1 and (count is not None or len(cases) >= 11),
    )
