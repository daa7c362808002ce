"""Hold the counted need of memory against the measured one: `python -m scripts.needs [CASE...]`.

Each case runs in a process of its own, weights zero, on the CPU; measured is the peak of its resident memory above what it was before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ldm.checkpoint.memory import size
from ldm.models.shapes import Family, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.runtime.need import Plan, need

CASES = (
    "vae-256-float32",
    "vae-512-float32",
    "vae-1024-float32",
    "vae-512-bfloat16",
    "narrow-512-float32",
    "narrow-1024-float32",
    "narrow-1024-bfloat16",
    "wide-1024-float32",
)
TOLERANCE = 0.25


@dataclass(frozen=True)
class Measure:
    """Bytes of one case."""

    case: str
    counted: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.counted / self.measured

    @property
    def good(self) -> bool:
        return abs(self.ratio - 1) <= TOLERANCE

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
    found = need(Plan(family(part), int(side), int(side), 2, dtype, dtype))
    return found.vae if part == "vae" else found.unet


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
    run = _stage(part, int(side) // 8, getattr(torch, kind))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _stage(part: str, side: int, dtype: torch.dtype) -> Callable[[], object]:
    shape = family(part)
    if part == "vae":
        vae = VAE(shape.vae).to(dtype)
        return lambda: vae.decode(torch.zeros(1, 4, side, side, dtype=dtype)).float()
    unet = UNet(shape.unet).to(dtype)
    context, vector = torch.zeros(2, 77, shape.unet.context_dim, dtype=dtype), torch.zeros(2, shape.unet.vector_dim, dtype=dtype)
    return lambda: unet(torch.zeros(2, 4, side, side, dtype=dtype), unet.prepare(context, vector, [0.0]), 0)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--here", metavar="CASE", help="measure in this process and print the bytes")
    options = parser.parse_args(arguments)
    if options.here:
        print(here(options.here))
        return 0
    good = True
    for case in options.cases:
        found = measure(case)
        print(found, flush=True)
        good = good and found.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
