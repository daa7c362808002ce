"""Single operations at the shapes of SDXL: every implementation that can be named, judged beside float32, with TFLOP/s and GB/s.

An operation is one entry of OPS. Its `names` are those that ldm.ops.choice decides between, each run through the public function; beside
them stand the libraries' own. `python -m scripts.bench --tune` keeps the fastest of the names that are right.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.measure import relative_error
from ldm.ops import choice
from scripts.bench import measures
from scripts.bench.bench import Bench

Make = Callable[..., Tensor]  # of a shape: drawn, in the dtype and on the device of the run
Work = tuple[float, float]  # operations, and the fewest bytes of a bfloat16 run
EXACT, TWICE, REDUCED = 1e-5, 2.0, 0.1
FLUSH = 2**28  # bytes that are written between two calls, so that none finds its inputs in the cache


@dataclass(frozen=True)
class Op:
    what: str
    shapes: Mapping[str, Sequence[int]]
    small: Sequence[int]  # dimensions for the run on the CPU
    inputs: Callable[[Sequence[int], Make], tuple[Tensor, ...]]
    plain: Callable[..., Tensor]  # the specification in plain torch: what it gives in float32 is the judge
    work: Callable[[Sequence[int]], Work]
    public: Callable[..., Tensor] | None  # of ldm.ops, where it has one
    libraries: Mapping[str, Callable[..., Tensor]]  # beside it
    name: str | None = None  # in the tables of ldm.ops.choice
    names: Callable[..., Sequence[str]] = lambda *inputs: ()  # that it decides between
    key: Callable[..., str] | None = None  # the shape as it asks for it, where that is not the words of `shapes`
    limit: float | None = None  # of a reduced tier


def measure(bench: Bench, name: str) -> dict[str, Any]:
    """A row with a table: for every shape every candidate's median, its rates and its error."""
    from scripts.bench.shapes import OPS

    op = OPS[name]
    shapes = {"small": op.small} if bench.small else op.shapes
    lines = [line for words, dims in shapes.items() for line in _shape(bench, op, words, dims)]
    right = [line for line in lines if line.get("met")]
    return {"state": "measured", "table": lines} if right else {"state": "void", "why": "nothing is right", "table": lines}


def _shape(bench: Bench, op: Op, words: str, dims: Sequence[int]) -> Iterator[dict[str, Any]]:
    generator = torch.Generator(bench.device).manual_seed(7)

    def make(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, device=bench.device) * scale).to(bench.dtype)

    inputs = op.inputs(dims, make)
    judge = op.plain(*(each.float() for each in inputs))
    calls = {name: _bound(call, inputs) for name, call in candidates(op, inputs).items()}
    key = op.key(*inputs) if op.key else words
    errors, failed = _errors(calls, judge)
    limit = op.limit or (EXACT if bench.dtype == torch.float32 else TWICE * errors.get("plain", 0.0))
    seconds = rounds({name: call for name, call in calls.items() if name in errors and errors[name] <= limit}, bench)
    flops, nbytes = op.work(dims)
    for name in calls:
        line = {"shape": words, "key": key, "name": name, "error": errors.get(name), "met": name in seconds}
        if name in seconds:
            line |= {"us": seconds[name] * 1e6, "tflops": flops / seconds[name] / 1e12, "gbps": nbytes / seconds[name] / 1e9}
        yield line | ({"why": failed[name]} if name in failed else {})


def candidates(op: Op, inputs: Sequence[Tensor]) -> dict[str, Callable[..., Tensor]]:
    """Plain torch, the libraries, the public function as it decides, and as each of the names makes it decide."""
    made: dict[str, Callable[..., Tensor]] = {"plain": op.plain, **op.libraries} | ({"ldm": op.public} if op.public else {})
    return made | {f"ldm {each}": _named(op, each) for each in op.names(*inputs)}


def _named(op: Op, name: str) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        with choice.using(**{str(op.name): name}):
            return op.public(*inputs) if op.public else op.plain(*inputs)

    return call


def _bound(call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[[], Tensor]:
    return lambda: call(*inputs)


def _errors(calls: Mapping[str, Callable[[], Tensor]], judge: Tensor) -> tuple[dict[str, float], dict[str, str]]:
    """Of each call, or why there is none: what one GPU has, another has not."""
    errors, failed = {}, {}
    for name, call in calls.items():
        try:
            out: Any = call()
            errors[name] = relative_error((out.dequantise() if hasattr(out, "dequantise") else out).float(), judge.float())
        except Exception as error:
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return errors, failed


def rounds(calls: Mapping[str, Callable[[], Tensor]], bench: Bench) -> dict[str, float]:
    """Median seconds of each, in turn; on a GPU between events, behind a write that empties the cache and hides the launch."""
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(bench.warm + (3 if bench.small else 25)):
        for name, call in calls.items():
            seconds = _between_events(call) if bench.on_gpu else measures.timed(call, bench.device)
            if turn >= bench.warm:
                seen[name].append(seconds)
    return {name: statistics.median(values) for name, values in seen.items()}


def _between_events(call: Callable[[], Tensor]) -> float:
    torch.empty(FLUSH, dtype=torch.uint8, device="cuda").zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
