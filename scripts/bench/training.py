"""A training step of our UNet beside the same on diffusers': each side in a process of its own, in turn, for seconds and peak memory.

`python -m scripts.bench.training SIDE PRECISION DEVICE FILE [small]` is one side: it writes its first gradient to FILE, says "ready",
makes a step for every line that it reads, and at "end" says the GiB that it took.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm import ops
from ldm.files import make_folder
from ldm.models.shapes import Family, load_family
from ldm.train.optim import autocast, build_optimizer
from ldm.train.recipe import Optim, Precision
from scripts.bench import engines, measures
from scripts.bench.bench import Bench
from scripts.bench.checkpoint import peak_gib
from scripts.bench.rows import TWICE, Inputs, Row, T

ROOT = Path(__file__).parents[2]
SIDES = ("ldm", "diffusers", "diffusers channels last")
PIXELS, BATCH = 256, 2
GRADIENT = 1e-4  # relative error of the gradient that has come all the way back, float32
OPTIM = Optim(steps=1000, batch=BATCH, lr=1e-5, warmup=0, final=1.0, weight_decay=0.01, clip=1.0, ema=0.0)


def quarter(family: Family) -> Family:
    """A family's structure at a quarter of its widths; heads have half of theirs, as 16 channels would be unlike any model's."""
    towers = tuple(replace(each, width=each.width // 4, mlp=each.mlp // 4, projection=each.projection // 4) for each in family.towers)
    context, pooled, size = sum(each.width for each in towers), towers[-1].projection, family.size_embedding // 4
    vector = pooled + 6 * size
    unet = replace(
        family.unet,
        model_channels=family.unet.model_channels // 4,
        norm_groups=family.unet.norm_groups // 2,
        head_dim=family.unet.head_dim // 2,
        context_dim=context,
        vector_dim=vector,
    )
    return replace(family, unet=unet, towers=towers, size_embedding=size)


class Side:
    """One engine's network, its optimiser, and a batch."""

    def __init__(self, side: str, precision: Precision, bench: Bench) -> None:
        self.precision, self.device = precision, bench.device
        self.before = _taken(bench.device, now=True)
        family = bench.family if bench.small else quarter(load_family("sdxl-base"))
        given = Inputs(bench, bench.side(PIXELS), bench.batch(BATCH), guided=False, family=family)
        self.network: nn.Module = engines.unet(family, bench.device, torch.float32)
        self.predict = self._ours(given) if side == "ldm" else self._theirs(given, family, last="last" in side)
        self.network.train().requires_grad_(True)
        self.optimizer = build_optimizer(self.network, OPTIM)
        self.wanted = torch.randn(given.x.shape, generator=torch.Generator().manual_seed(1)).to(bench.device)
        gc.collect()

    def _ours(self, given: Inputs) -> Callable[[], Tensor]:
        network: Any = self.network
        x, context, vector, t = self._moved(given.x, given.context, given.vector, torch.full((len(given.x),), T))
        context, vector = context.expand(len(x), -1, -1), vector.expand(len(x), -1)
        return lambda: network.denoise(x, t, context, vector)

    def _theirs(self, given: Inputs, family: Family, *, last: bool) -> Callable[[], Tensor]:
        ours: Any = self.network
        self.network = engines.their_unet(ours, family)
        if last:
            self.network.to(memory_format=torch.channels_last)
        return given.theirs(self.network)

    def _moved(self, *tensors: Tensor) -> list[Tensor]:
        return [each.to(self.device) for each in tensors]

    def backward(self, precision: Precision) -> None:
        with autocast(self.device, precision):
            predicted = self.predict()
        (predicted.float() - self.wanted).square().mean().backward()

    def gradient(self, *, judge: bool = False) -> Tensor:
        """That of the first convolution, which has come through all of the network; `judge`: by the plain path, in float32."""
        with ops.reference() if judge else nullcontext():
            self.backward("float32" if judge else self.precision)
        found = next(value.grad for value in self.network.parameters() if value.dim() == 4 and value.shape[1] == self.wanted.shape[1])
        self.optimizer.zero_grad(set_to_none=True)
        assert found is not None
        return found.float().cpu().contiguous()

    def gradients(self) -> dict[str, Tensor]:
        return {"own": self.gradient(), "judge": self.gradient(judge=True)}

    def step(self) -> None:
        self.backward(self.precision)
        nn.utils.clip_grad_norm_(self.network.parameters(), OPTIM.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        measures.settle(self.device)

    def gib(self) -> float:
        """At the peak, beside what the process had before the network."""
        return _taken(self.device, now=False) - self.before


def _taken(device: torch.device, *, now: bool) -> float:
    """GiB of a GPU's or the process's memory, now or at the most."""
    if device.type == "cuda":
        return (torch.cuda.memory_reserved(device) if now else torch.cuda.max_memory_reserved(device)) / 2**30
    if not now:
        return peak_gib()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 2**20


class Process:
    """A side in a process of its own, for its peak."""

    def __init__(self, side: str, precision: Precision, bench: Bench) -> None:
        make_folder(bench.folder)
        self.file = bench.folder / f"gradient of {side}.safetensors"
        words = [side, precision, bench.device.type, str(self.file), *(["small"] if bench.small else [])]
        command = [sys.executable, "-m", "scripts.bench.training", *words]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"the process of a side ended with {self.process.wait()}")
        return line

    def _ask(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        return self._answer()

    def gradients(self) -> dict[str, Tensor]:
        return load_file(self.file)

    def step(self) -> None:
        self._ask("step")

    def gib(self) -> float:
        return float(self._ask("end"))


def train(bench: Bench, precision: Precision) -> Row:
    """Forward, mean squared error, backward, clipping, fused AdamW, with the same weights and batch."""
    bench.release()
    names = SIDES if engines.has_diffusers() else SIDES[:1]
    with ExitStack() as stack:
        sides: dict[str, Any] = {}
        for name in names:
            sides[name] = Side(name, precision, bench) if bench.small else stack.enter_context(Process(name, precision, bench))
        gate = judged({name: side.gradients() for name, side in sides.items()}, precision)
        row = bench.contest({name: side.step for name, side in sides.items()}, gate)
        return row | {"gib": {name: side.gib() for name, side in sides.items()}, "pictures": bench.batch(BATCH)}


def judged(found: dict[str, dict[str, Tensor]], precision: Precision) -> measures.Gate:
    """float32: beside diffusers, or the plain path; else both beside our plain path in float32, and ours at most twice theirs."""
    own = {name: each["own"] for name, each in found.items()}
    if precision == "float32":
        beside = own.get("diffusers", found["ldm"]["judge"])
        return measures.gate({"ldm": own["ldm"]}, beside, "gradient of diffusers, float32", {"ldm": GRADIENT})
    gate = measures.gate(own, found["ldm"]["judge"], "gradient of the plain path, float32", {})
    return replace(gate, limits={"ldm": TWICE * gate.errors["diffusers"]} if "diffusers" in own else {})


def serve(side: Side, file: Path) -> None:
    """See the head of this file."""
    save_file(side.gradients(), file)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(side.gib(), flush=True)
            return
        side.step()
        print("done", flush=True)


if __name__ == "__main__":
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    name, kind, device, target, *small = sys.argv[1:]
    serve(Side(name, kind, Bench(torch.device(device), bool(small))), Path(target))  # type: ignore[arg-type]
