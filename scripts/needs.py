"""Hold the counted need of memory against the measured one: `python -m scripts.needs [CASE...]`.

Each case runs in a process of its own, weights zero, on the CPU; measured is the peak of its resident memory above what it was before.

    python -m scripts.needs --run FILE --size 512 --max-memory 8GiB

holds what `ldm sample --plan` says of a whole run, stage by stage, against the resident memory of the process that makes it; without FILE
it is the model in the box.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.memory import size
from ldm.models.shapes import Family, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.runtime import heap, tiles
from ldm.runtime.need import Plan, bands, need

CASES = (
    "vae-256-float32",
    "vae-512-float32",
    "vae-1024-float32",
    "vae-512-bfloat16",
    "bands-512-float32",
    "bands-1024-float32",
    "narrow-512-float32",
    "narrow-1024-float32",
    "narrow-1024-bfloat16",
    "wide-1024-float32",
)
TOLERANCE = 0.25
PROMPT = "a red apple on a blue background"
CLOSE = 0.10  # of the stages of a whole run


@dataclass(frozen=True)
class Measure:
    """Bytes of one case."""

    case: str
    counted: int
    measured: int
    tolerance: float = TOLERANCE

    @property
    def ratio(self) -> float:
        return self.counted / self.measured

    @property
    def good(self) -> bool:
        return abs(self.ratio - 1) <= self.tolerance

    def __str__(self) -> str:
        return f"{self.case:<24}counted {size(self.counted):>8}  measured {size(self.measured):>8}  ratio {self.ratio:.2f}"


def family(part: str) -> Family:
    """SDXL base; "wide": with one transformer block where it has more, which changes the weights, not the peak; "narrow": half as wide."""
    found = load_family("sdxl-base")
    width = {"narrow": 160}.get(part, found.unet.model_channels)
    return replace(found, unet=replace(found.unet, model_channels=width, transformer_depth=(0, 1, 1), middle_depth=1))


def counted(case: str) -> int:
    """By `need`."""
    part, side, kind = case.split("-")
    dtype = getattr(torch, kind)
    plan = Plan(family(part), int(side), int(side), 2, dtype, dtype)
    if part == "bands":
        return bands(plan).total
    found = need(plan)
    return found.parts[2].total if part == "vae" else found.unet


def measure(case: str) -> Measure:
    """The case in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.needs", "--here", case], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    return Measure(case, counted(case), int(done.stdout))


@torch.no_grad()
def here(case: str) -> int:
    """The peak of this process above what it holds with the weights in memory."""
    part, side, kind = case.split("-")
    heap.settle(heap.TIGHT)  # as a load under a limit does: what is kept of freed memory is otherwise up to chance
    run = _stage(part, int(side) // 8, getattr(torch, kind))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _stage(part: str, side: int, dtype: torch.dtype) -> Callable[[], object]:
    shape = family(part)
    if part in ("vae", "bands"):
        vae = VAE(shape.vae).to(dtype)
        decode = vae.decode if part == "vae" else partial(tiles.decode, vae)
        return lambda: decode(torch.zeros(1, 4, side, side, dtype=dtype)).float()
    unet = UNet(shape.unet).to(dtype)
    context, vector = torch.zeros(2, 77, shape.unet.context_dim, dtype=dtype), torch.zeros(2, shape.unet.vector_dim, dtype=dtype)
    return lambda: unet(torch.zeros(2, 4, side, side, dtype=dtype), unet.prepare(context, vector, [0.0]), 0)


def whole(file: str | None, side: int, max_memory: str | None = None, steps: int = 2) -> list[Measure]:
    """The stages of a run in a fresh process, and what another says of it before."""
    peaks = json.loads(_run("scripts.needs", "--stages", json.dumps([file, side, max_memory, steps])))
    return [Measure(each["name"], each["ram"], peaks[each["name"]], CLOSE) for each in planned(file, side, max_memory)["stages"]]


def planned(file: str | None, side: int, max_memory: str | None = None) -> Any:
    """What the command says of a run."""
    words = ["-p", PROMPT, "-W", str(side), "-H", str(side), "--device", "cpu", "-q", "--plan", "--format", "json"]
    return json.loads(_run("ldm", "sample", *words, *(("-m", file) if file else ()), *(("--max-memory", max_memory) if max_memory else ())))


def _run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    return done.stdout


def stages(file: str | None, side: int, max_memory: str | None, steps: int) -> dict[str, int]:
    """The peak of this process in each stage of a run."""
    from ldm.options import Job
    from ldm.pipeline import Pipeline, load
    from ldm.runtime import autoencoding, telling

    job = Job(PROMPT, width=side, height=side, steps=steps, seed=1)
    peaks: dict[str, int] = {}

    def seen(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **keywords: Any) -> Any:
            Path("/proc/self/clear_refs").write_text("5")
            result = run(*args, **keywords)
            result = list(result) if name == "vae" else result  # which comes picture by picture
            peaks[name] = _status("VmHWM")
            return result

        return watched

    telling.Teller.both = seen("text", telling.Teller.both)  # type: ignore[method-assign]
    Pipeline.sample = seen("unet", Pipeline.sample)  # type: ignore[method-assign]
    autoencoding.pictures = seen("vae", autoencoding.pictures)
    made = seen("load", load)(file, device="cpu", max_memory=max_memory, jobs=[job])
    made.run(job)
    return peaks


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--here", metavar="CASE", help="measure in this process and print the bytes")
    parser.add_argument("--run", nargs="?", const="", metavar="FILE", help="the stages of a whole run")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="of its picture")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="of it")
    parser.add_argument("--max-memory", metavar="SIZE", help="its limit")
    parser.add_argument("--stages", metavar="JSON", help="make a run in this process and print its bytes")
    options = parser.parse_args(arguments)
    if options.here:
        print(here(options.here))
    elif options.stages:
        print(json.dumps(stages(*json.loads(options.stages))))
    elif options.run is not None:
        return _show(whole(options.run or None, options.size, options.max_memory, options.steps))
    else:
        return _show(measure(case) for case in options.cases)
    return 0


def _show(measures: Iterable[Measure]) -> int:
    good = True
    for found in measures:
        print(found, flush=True)
        good = good and found.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
