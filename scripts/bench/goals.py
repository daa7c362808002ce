"""The numbers to reach: what must hold where it can be measured, what is aimed at, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

H200 = "nvidia-h200"
NOT = "not measured"
Rows = Mapping[str, Mapping[str, Any]]
Figure = Callable[[Rows], float]  # KeyError where the row has not been measured


@dataclass(frozen=True)
class Goal:
    what: str
    figure: Figure
    gate: float
    stretch: float
    unit: str
    device: str = H200  # or "cpu"
    larger: bool = False  # is better

    def cells(self, records: Mapping[str, Any]) -> list[str]:
        measured = self.measured(records)
        said = NOT if measured is None else f"{self.shown(measured)}: {self.verdict(measured)}"
        return [self.what, self.shown(self.gate), self.shown(self.stretch), said]

    def measured(self, records: Mapping[str, Any]) -> float | None:
        """Of the first machine that has it."""
        for name, record in records.items():
            if name == self.device or record["machine"]["device"] == self.device:
                try:
                    return self.figure({row: each for row, each in record["rows"].items() if each["state"] == "measured"})
                except KeyError:
                    continue
        return None

    def shown(self, value: float) -> str:
        return f"{value:.3g} {self.unit}".strip()

    def verdict(self, value: float) -> str:
        for name, bar in (("stretch", self.stretch), ("gate", self.gate)):
            if (value >= bar) if self.larger else (value <= bar):
                return f"{name} met"
        return "gate missed"


def seconds(row: str, side: str = "ldm", times: float = 1) -> Figure:
    return lambda rows: rows[row]["sides"][side]["median"] * times


def ratio(row: str, over: str = "diffusers", side: str = "ldm") -> Figure:
    return lambda rows: rows[row]["sides"][side]["median"] / rows[row]["sides"][over]["median"]


def rate(row: str, side: str) -> Figure:
    """Pictures a second."""
    return lambda rows: rows[row]["pictures"] / rows[row]["sides"][side]["median"]


def attention(shape: str) -> Figure:
    """The rate of our own kernel over that of the best of torch's."""

    def found(rows: Rows) -> float:
        lines = [line for line in rows["op-attention"]["table"] if line["shape"] == shape and line["met"]]
        own = [line["tflops"] for line in lines if line["name"].startswith("ldm triton")]
        torchs = [line["tflops"] for line in lines if line["name"].isupper()]
        if not own or not torchs:
            raise KeyError(shape)
        return float(max(own) / max(torchs))

    return found


def limit(rows: Rows) -> float:
    """The smallest limit under which a picture stayed."""
    row = rows["memory-4"] if "memory-4" in rows else rows["memory-6"]
    return float(row["memory"]["limit"])


def of_load(key: str) -> Figure:
    return lambda rows: rows["load"]["gib"]["ldm"] * 2**30 / 1e9 if key == "gib" else rows["load"]["sides"]["ldm"]["median"]


GOALS = [
    Goal("H200: 1024x1024, 30 steps euler, guided, bfloat16, prompt to bytes", seconds("picture-1024-30"), 0.85, 0.66, "s"),
    Goal("the same, of diffusers at its best in the same run", ratio("picture-1024-30-compiled", "diffusers compiled"), 1.0, 0.75, ""),
    Goal("H200: the same, fp8 tier", seconds("picture-1024-30-fp8", "ldm fp8"), 0.70, 0.52, "s"),
    Goal("H200: 20 steps, batch 8, fp8 tier", rate("picture-1024-20-b8-fp8", "ldm fp8"), 2.2, 2.8, "pictures/s", larger=True),
    Goal("H200: 512x512, 4 steps, no guidance", seconds("picture-512-4", times=1e3), 60, 25, "ms"),
    Goal("H200: VAE decode, 1024x1024", seconds("vae-1024", times=1e3), 35, 20, "ms"),
    Goal("own attention, 2x20 heads, 1024 tokens, of torch's best", attention("self 1024 64"), 0.85, 1.05, "", larger=True),
    Goal("own attention, 2x10 heads, 4096 tokens, of torch's best", attention("self 4096 64"), 0.85, 1.05, "", larger=True),
    Goal("H200: load, page cache warm", of_load("seconds"), 3, 1.5, "s"),
    Goal("H200: peak memory of the host while loading", of_load("gib"), 2, 1.5, "GB"),
    Goal("SDXL at 1024x1024 on a card, under --max-memory", limit, 6, 4, "GiB"),
    Goal("CPU: guided step, 512x512, float32, of diffusers eager", ratio("step-512"), 0.95, 0.88, "", "cpu"),
    Goal("CPU: guided step, 256x256, float32, of diffusers eager", ratio("step-256"), 0.88, 0.75, "", "cpu"),
    Goal("CPU: guided step, 512x512, int8, of diffusers eager", ratio("step-512-int8", side="ldm int8"), 0.70, 0.50, "", "cpu"),
    Goal("CPU: training step, float32, of diffusers' UNet", ratio("train"), 1.05, 0.95, "", "cpu"),
    Goal("CPU: model in the box, 128x128, 20 steps, command to file", seconds("box"), 6, 3.5, "s", "cpu"),
]


def table(records: Mapping[str, Any]) -> str:
    from scripts.bench.page import markdown

    return markdown(("number", "gate", "stretch", "measured"), [goal.cells(records) for goal in GOALS])
