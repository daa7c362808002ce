"""What the rows of one process share: the device, its sizes, and models that are made once and let go when others come."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.models.shapes import Family, load_family
from scripts.bench import engines, measures

SMALL_SIDE = 32  # pixels, in the place of every size
SMALL_BATCH, SMALL_STEPS, SMALL_RUNS = 2, 2, 2


@dataclass
class Bench:
    device: torch.device
    small: bool
    runs: int | None = None
    until: float | None = None  # by the system's clock
    folder: Path = Path()  # for the files that it makes
    compiled: str = "max-autotune"
    _kept: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        if not self.small:
            return load_family("sdxl-base")
        from scripts.faults.tiny import tiny_family

        return tiny_family()

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def side(self, side: int) -> int:
        return SMALL_SIDE if self.small else side

    def batch(self, batch: int) -> int:
        return min(batch, SMALL_BATCH) if self.small else batch

    def steps(self, steps: int) -> int:
        return min(steps, SMALL_STEPS) if self.small else steps

    @property
    def count(self) -> int:
        """Alternating runs."""
        return self.runs or (SMALL_RUNS if self.small else 21 if self.on_gpu else 11)

    @property
    def warm(self) -> int:
        return 3 if self.on_gpu else 1

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, once. On the CPU only what begins with the same word is kept beside it."""
        if name not in self._kept:
            if not (self.on_gpu or self.small):
                self._kept = {each: made for each, made in self._kept.items() if each.partition(" ")[0] == name.partition(" ")[0]}
                gc.collect()
            self._kept[name] = make()
        return self._kept[name]

    def release(self) -> None:
        """Let everything go: other processes need the memory."""
        if not self.small:
            self._kept.clear()
            gc.collect()
            torch.cuda.empty_cache()

    def pipeline(self) -> Any:
        return self.kept("pipeline", lambda: engines.pipeline(self.family, self.device, self.dtype))

    def contest(self, calls: Mapping[str, measures.Call], gate: measures.Gate, tflop: float | None = None) -> dict[str, Any]:
        return measures.contest(calls, gate, runs=self.count, device=self.device, warm=self.warm, until=self.until, tflop=tflop)
