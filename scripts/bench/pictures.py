"""Rows from a prompt to pictures in bytes: the same weights, words, first latents, scheduler and steps on both sides."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldm import ops
from ldm.ops import fp8
from ldm.options import Job
from scripts.bench import ceilings, engines, measures
from scripts.bench.bench import Bench
from scripts.bench.rows import TWICE, Row

SEED, CFG = 11, 5.0
GATE_STEPS = 4  # of the latents that are judged
RUN = 1e-4  # relative error of float32 latents after those steps, beside other people's
REDUCED = 0.3  # of the other tiers: noise has 1.4; the figure is published


@dataclass(frozen=True)
class Task:
    """What is asked of both engines."""

    side: int
    steps: int
    batch: int
    guided: bool
    negative: str | None

    def job(self, speed: str = "exact", steps: int | None = None) -> Job:
        """By the rules of diffusers, so that its scheduler does the same."""
        words = (engines.PROMPT, self.negative if self.guided else None)
        asked = Job(*words, self.side, self.side, steps or self.steps, CFG if self.guided else 1.0, "euler", "normal")
        return replace(asked, seed=SEED, batch=self.batch, profile="diffusers", speed=speed)

    def latents(self, bench: Bench) -> Tensor:
        """What ours draws for the seeds of the batch."""
        latent = (1, bench.family.vae.z_channels, self.side // bench.family.downscale, self.side // bench.family.downscale)
        return torch.cat([torch.randn(latent, generator=torch.Generator().manual_seed(SEED + k)) for k in range(self.batch)])

    def ours(self, pipe: Any, speed: str = "exact") -> Callable[[], Any]:
        job = self.job(speed)
        return lambda: pipe.run(job).images

    def theirs(self, bench: Bench, pipe: Any, steps: int | None = None, kind: str = "pil") -> Callable[[], Any]:
        latents = self.latents(bench).to(bench.device, bench.dtype)
        words = {"prompt": [engines.PROMPT] * self.batch, "negative_prompt": self.negative and [self.negative] * self.batch}
        asked = {"num_inference_steps": steps or self.steps, "guidance_scale": CFG if self.guided else 1.0}
        return lambda: pipe(**words, **asked, height=self.side, width=self.side, latents=latents, output_type=kind).images


def task(bench: Bench, side: int, steps: int, batch: int = 1, *, guided: bool = True, negative: str | None = engines.NEGATIVE) -> Task:
    return Task(bench.side(side), bench.steps(steps), bench.batch(batch), guided, negative)


@torch.no_grad()
def picture(bench: Bench, side: int, steps: int, batch: int = 1, *, speed: str = "exact", compiled: bool = False, **more: Any) -> Row:
    """`speed`: a tier of ours, with its exact tier beside it. `compiled`: diffusers at its best instead of as it comes."""
    if speed == "fp8" and not fp8.supported(bench.device):
        return {"state": "not measured", "why": "8-bit floats need a GPU of compute capability 8.9"}
    if compiled and not engines.has_diffusers():
        return {"state": "not measured", "why": engines.ABSENT}
    asked, pipe = task(bench, side, steps, batch, **more), bench.pipeline()
    calls: dict[str, measures.Call] = {"ldm": asked.ours(pipe)}
    extra: Row = {}
    if speed != "exact":
        calls = {f"ldm {speed}": asked.ours(pipe, speed), **calls}
    elif engines.has_diffusers():
        theirs = best(bench) if compiled else bench.kept("pipeline of diffusers", lambda: engines.their_pipeline(pipe))
        calls["diffusers compiled" if compiled else "diffusers"] = asked.theirs(bench, theirs)
        extra = {"compile_seconds": measures.timed(list(calls.values())[-1], bench.device)} if compiled else {}
    tflop = ceilings.picture(bench.family, asked.side, asked.steps, guided=asked.guided, batch=asked.batch)
    return bench.contest(calls, latents_gate(bench, asked, speed), tflop) | {"pictures": asked.batch} | extra


def best(bench: Bench) -> Any:
    """Weights of its own: it changes their layout."""
    return bench.kept(
        "pipeline of diffusers, compiled",
        lambda: engines.quickest(engines.their_pipeline(bench.pipeline()), bench.compiled, small=bench.small),
    )


def latents_gate(bench: Bench, asked: Task, speed: str) -> measures.Gate:
    """The latents of a few steps, of every side beside float32."""
    steps, side = min(GATE_STEPS, asked.steps), f"ldm {speed}" if speed != "exact" else "ldm"
    pipe, outputs = bench.pipeline(), {}
    outputs[side] = pipe.run(asked.job(speed, steps)).latents
    with ops.reference():
        outputs["plain path"] = pipe.run(asked.job("exact", steps)).latents
    if engines.has_diffusers():
        theirs = bench.kept("pipeline of diffusers", lambda: engines.their_pipeline(pipe))
        outputs["diffusers"] = asked.theirs(bench, theirs, steps, "latent")()
    if bench.dtype == torch.float32:
        judge, limit = outputs.pop("diffusers", outputs["plain path"]), RUN if speed == "exact" else REDUCED
        return measures.gate(outputs, judge, f"diffusers or the plain path, float32, latents of {steps} steps", {side: limit})
    with ops.reference():
        judge = wide(bench).run(asked.job("exact", steps)).latents
    found = measures.gate(outputs, judge, f"plain path, float32, latents of {steps} steps", {})
    return replace(found, limits={side: TWICE * found.errors["plain path"] if speed == "exact" else REDUCED})


def wide(bench: Bench) -> Any:
    """The same weights in float32."""
    return bench.kept("pipeline in float32", lambda: engines.pipeline(bench.family, bench.device, bench.dtype).to(dtype="float32"))


@torch.no_grad()
def parts(bench: Bench, side: int, steps: int) -> Row:
    """Where the time of one picture of ours goes: the words, the steps, the decoder, and the PNG file, which no row includes."""
    asked, pipe = task(bench, side, steps), bench.pipeline()
    seen: dict[str, list[float]] = {name: [] for name in ("words and steps", "decoder", "PNG")}
    pipe.run(asked.job())
    for _ in range(bench.count):
        marks = [time.perf_counter()]
        made = pipe.run(asked.job(), partial(_mark, marks, bench))
        marks = [marks[0], marks[-1], time.perf_counter()]
        made.images[0].save(io.BytesIO(), "PNG")
        marks.append(time.perf_counter())
        for name, seconds in zip(seen, (after - before for before, after in pairwise(marks)), strict=True):
            seen[name].append(seconds)
    return {"state": "measured", "sides": measures.sides(seen)}


def _mark(marks: list[float], bench: Bench, step: Any) -> bool:
    """The end of a step, once the device is through with it: only this row waits for it."""
    measures.settle(bench.device)
    marks.append(time.perf_counter())
    return True
