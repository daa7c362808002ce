"""How a time is taken: alternating calls, medians and tenths, each side against itself, and nothing timed that is not right first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.measure import relative_error

Call = Callable[[], Any]
FEWEST = 3  # runs a side: with fewer there is nothing to compare a side with itself by


@dataclass(frozen=True)
class Spread:
    """Seconds of one side."""

    median: float
    p10: float
    p90: float
    itself: float  # the median of its even runs over that of its odd ones
    runs: int


@dataclass(frozen=True)
class Gate:
    """Relative errors beside a reference, and how large they may be; what has no limit is published alone."""

    reference: str  # what they are errors against
    errors: Mapping[str, float]
    limits: Mapping[str, float]

    @property
    def met(self) -> bool:
        return all(self.errors[side] <= limit for side, limit in self.limits.items())  # NaN is not

    def plain(self) -> dict[str, Any]:
        return {"reference": self.reference, "errors": dict(self.errors), "limits": dict(self.limits), "met": self.met}


def spread(seconds: Sequence[float]) -> Spread:
    """Percentiles between the samples, linearly."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 9
    return Spread(statistics.median(seconds), tenths[0], tenths[-1], itself(seconds), len(seconds))


def itself(seconds: Sequence[float]) -> float:
    """A side against itself, which is the noise: a difference that is inside it is no result."""
    return statistics.median(seconds[::2]) / statistics.median(seconds[1::2] or seconds)


def gate(outputs: Mapping[str, Tensor], reference: Tensor, what: str, limits: Mapping[str, float]) -> Gate:
    """The errors of all `outputs`, each beside the same reference."""
    return Gate(what, {side: relative_error(out.float().cpu(), reference.float().cpu()) for side, out in outputs.items()}, limits)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Call, device: torch.device) -> float:
    """Seconds by the clock from an idle device to an idle device."""
    settle(device)
    start = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - start


def alternating(
    calls: Mapping[str, Call], runs: int, *, device: torch.device, warm: int = 1, until: float | None = None
) -> dict[str, list[float]]:
    """`runs` times one call of each side in turn. Past `until`, by the system's clock, it ends after `FEWEST`."""
    for _ in range(warm):
        for call in calls.values():
            call()
    seen: dict[str, list[float]] = {side: [] for side in calls}
    for done in range(runs):
        if done >= FEWEST and until is not None and time.time() > until:
            break
        for side, call in calls.items():
            seen[side].append(timed(call, device))
    return seen


def sides(seen: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """What a row keeps of its sides."""
    return {side: {**asdict(spread(seconds)), "samples": [round(each, 7) for each in seconds]} for side, seconds in seen.items()}


def contest(
    calls: Mapping[str, Call],
    judged: Gate,
    *,
    runs: int,
    device: torch.device,
    warm: int = 1,
    until: float | None = None,
    tflop: float | None = None,
) -> dict[str, Any]:
    """A row: timed only where the gate is met."""
    row: dict[str, Any] = {"gate": judged.plain(), "tflop": tflop}
    if not judged.met:
        return row | {"state": "void", "why": "the gate is not met"}
    return row | {"state": "measured", "sides": sides(alternating(calls, runs, device=device, warm=warm, until=until))}
