"""Every row: what it measures, on which device, in which tier, and the seconds that it is expected to take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripts.bench import operations, pictures, processes, rows, shapes, training
from scripts.bench.bench import Bench

Run = Callable[[Bench], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    name: str
    what: str
    seconds: Mapping[str, int]  # by device: about what it takes with its gate and its weights; a device that is not there is not measured
    run: Run
    tier: str = "exact"
    asked: bool = False  # only where --compile asks for it on the CPU


def _gpu(name: str, what: str, seconds: int, run: Run, tier: str = "exact") -> Case:
    return Case(name, what, {"cuda": seconds}, run, tier)


def _picture(name: str, what: str, seconds: int, *shape: int, tier: str = "exact", **more: Any) -> Case:
    return _gpu(name, f"prompt to bytes, {what}", seconds, partial(_pictured, shape, more), tier)


def _pictured(shape: tuple[int, ...], more: Mapping[str, Any], bench: Bench) -> dict[str, Any]:
    return pictures.picture(bench, *shape, **more)


def _compiled(side: int, seconds: int) -> Case:
    """diffusers compiled, on the CPU."""
    what = f"guided step, {side}x{side}, diffusers compiled"
    return Case(f"step-{side}-compiled", what, {"cpu": seconds}, lambda bench: rows.step(bench, side, compiled=True), asked=True)


CEILINGS = [
    Case("product", "matrix product of 8192 in bfloat16, on the CPU 2048 in float32", {"cpu": 10, "cuda": 15}, processes.product),
    Case("copy", "copy on the device, bytes read and written", {"cpu": 10, "cuda": 5}, processes.copy),
]
STEPS = [
    Case("step-256", "guided step, 256x256", {"cpu": 240}, lambda bench: rows.step(bench, 256)),
    Case("step-256-int8", "guided step, 256x256", {"cpu": 300}, lambda bench: rows.step_int8(bench, 256), "int8"),
    _compiled(256, 900),
    Case("step-512", "guided step, 512x512", {"cpu": 720, "cuda": 30}, lambda bench: rows.step(bench, 512)),
    Case("step-512-int8", "guided step, 512x512", {"cpu": 900}, lambda bench: rows.step_int8(bench, 512), "int8"),
    _compiled(512, 1500),
    _gpu("step-1024", "guided step, 1024x1024", 30, lambda bench: rows.step(bench, 1024)),
    _gpu("step-1024-b4", "guided step, 1024x1024, batch 4", 40, lambda bench: rows.step(bench, 1024, 4)),
    _gpu("step-512-unguided", "step without guidance, 512x512", 20, lambda bench: rows.step(bench, 512, guided=False)),
]
DECODERS = [
    Case("vae-256", "VAE decode, 256x256", {"cpu": 120}, lambda bench: rows.decode(bench, 256)),
    Case("vae-512", "VAE decode, 512x512", {"cpu": 400, "cuda": 15}, lambda bench: rows.decode(bench, 512)),
    _gpu("vae-1024", "VAE decode, 1024x1024", 15, lambda bench: rows.decode(bench, 1024)),
]
PICTURES = [
    _picture("picture-1024-30", "1024x1024, 30 steps", 100, 1024, 30),
    _picture("picture-1024-20", "1024x1024, 20 steps", 70, 1024, 20),
    _picture("picture-1024-50", "1024x1024, 50 steps", 150, 1024, 50),
    _picture("picture-1024-30-zero", "1024x1024, 30 steps, no negative prompt", 90, 1024, 30, negative=None),
    _picture("picture-1024-30-b4", "1024x1024, 30 steps, batch 4", 280, 1024, 30, 4),
    _picture("picture-512-30", "512x512, 30 steps", 50, 512, 30),
    _picture("picture-512-4", "512x512, 4 steps, no guidance", 20, 512, 4, guided=False),
    _picture("picture-1024-4", "1024x1024, 4 steps, no guidance", 30, 1024, 4, guided=False),
    _gpu("parts-1024-30", "where a picture's time goes, 1024x1024, 30 steps", 40, lambda bench: pictures.parts(bench, 1024, 30)),
    _picture("picture-1024-30-fp8", "1024x1024, 30 steps", 60, 1024, 30, tier="fp8", speed="fp8"),
    _picture("picture-1024-20-b8-fp8", "1024x1024, 20 steps, batch 8", 200, 1024, 20, 8, tier="fp8", speed="fp8"),
    _picture("picture-1024-30-approx", "1024x1024, 30 steps", 60, 1024, 30, tier="approx", speed="approx"),
    _picture("picture-1024-30-compiled", "1024x1024, 30 steps, diffusers at its best", 480, 1024, 30, compiled=True),
    _picture("picture-1024-20-compiled", "1024x1024, 20 steps, diffusers at its best", 60, 1024, 20, compiled=True),
]
PROCESSES = [
    Case("load", "file in the page cache to ready, fresh process", {"cpu": 600, "cuda": 240}, processes.load),
    Case("box", "model in the box, 128x128, 20 steps, command to file", {"cpu": 60}, processes.box),
    _gpu("memory-6", "1024x1024 under --max-memory 6GiB", 90, partial(processes.memory, side=1024, limit=6)),
    _gpu("memory-4", "1024x1024 under --max-memory 4GiB", 120, partial(processes.memory, side=1024, limit=4)),
    Case("memory-8", "512x512 under --max-memory 8GiB", {"cpu": 300}, partial(processes.memory, side=512, limit=8)),
]
TRAINING = [
    Case(
        name,
        f"training step, SDXL's UNet at a quarter of its widths, {training.PIXELS}x{training.PIXELS}, batch {training.BATCH}, {kind}",
        {"cpu": 240, "cuda": 90},
        partial(training.train, precision=kind),
    )
    for name, kind in (("train", "float32"), ("train-bf16", "bfloat16"))
]
OPERATIONS = [_gpu(f"op-{name}", op.what, 40, partial(operations.measure, name=name)) for name, op in shapes.OPS.items()]
CASES = {case.name: case for case in [*CEILINGS, *STEPS, *DECODERS, *OPERATIONS, *PICTURES, *PROCESSES, *TRAINING]}


def of(device: str, *, small: bool, compiled: bool = True) -> list[str]:
    """The rows of a device, in their order; `small`: those of all devices."""
    return [name for name, case in CASES.items() if (small or device in case.seconds) and (compiled or small or not case.asked)]


def seconds(case: Case, device: str, *, small: bool) -> int:
    return 1 if small else case.seconds[device]
