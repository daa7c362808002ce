"""Measures on one checkpoint, on the CPU: loading and one step beside diffusers in float32, the checks of weights and digests alone."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.bench.measures import itself, settle

ENGINES = ("ours", "theirs")


def load_ours(checkpoint: Path, _: Path, device: str) -> Any:
    import ldm

    return lambda: ldm.load(checkpoint, device=device, dtype="auto")


def load_theirs(checkpoint: Path, folder: Path, device: str) -> Any:
    from diffusers import StableDiffusionXLPipeline

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    said = {"config": str(folder), "torch_dtype": dtype, "local_files_only": True}
    return lambda: StableDiffusionXLPipeline.from_single_file(str(checkpoint), **said).to(device)


def peak_gib() -> float:
    """The largest resident size of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def one_load(engine: str, checkpoint: Path, folder: Path, device: str) -> dict[str, float]:
    call = {"ours": load_ours, "theirs": load_theirs}[engine](checkpoint, folder, device)
    if engine == "ours":
        import ldm.pipeline  # noqa: F401  (imports are not part of the time on either side)
    start = time.perf_counter()
    kept = call()
    settle(torch.device(device))
    seconds = time.perf_counter() - start
    print(type(kept).__name__, file=sys.stderr)
    return {"seconds": seconds, "gib": peak_gib()}


def loads(checkpoint: Path, runs: int, engines: Sequence[str], device: str) -> dict[str, list[dict[str, float]]]:
    """Alternating fresh processes; the file is read once before, so that every run finds it in the page cache."""
    seen: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as name:
        if "theirs" in engines:
            from scripts import theirs

            theirs.pipeline_folder(Path(name))
        subprocess.run(["cat", str(checkpoint)], stdout=subprocess.DEVNULL, check=True)
        command = [sys.executable, "-m", "scripts.bench", "load", "--checkpoint", str(checkpoint), "--folder", name, "--device", device]
        for _ in range(runs):
            for engine in engines:
                done = subprocess.run(
                    [*command, "--engine", engine], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
                seen[engine].append(json.loads(done.stdout))
    return seen


def load(checkpoint: Path, runs: int) -> None:
    seen = loads(checkpoint, runs, ENGINES, "cpu")
    for key in ("seconds", "gib"):
        report(f"load {key}", *([run[key] for run in seen[engine]] for engine in ENGINES))


def report(what: str, ours: list[float], theirs: list[float], names: tuple[str, str] = ENGINES) -> None:
    """Medians, their ratio, and beside it each side against itself: its even runs against its odd ones."""
    medians = [statistics.median(values) for values in (ours, theirs)]
    alone = [itself(values) for values in (ours, theirs)]
    sides = f"{names[0]} {medians[0]:.3f}  {names[1]} {medians[1]:.3f}"
    print(f"{what}: {sides}  ratio {medians[0] / medians[1]:.3f}  over {len(ours)} alternating runs", end="")
    print(f"; against themselves {alone[0]:.3f} and {alone[1]:.3f}")


@torch.inference_mode()
def step(checkpoint: Path, runs: int) -> None:
    """Both networks in one process over the same weights; ours has the text's keys and values from `prepare`, once a prompt."""
    import ldm
    from ldm.models.shapes import load_family
    from ldm.ops.embedding import sinusoid
    from scripts import theirs

    unet = ldm.load(checkpoint, device="cpu", dtype="float32").unet
    network = theirs.unet_of(unet.state_dict(), theirs.BASE_UNET)
    width = load_family("sdxl-base").unet.context_dim
    x, context, pooled = torch.randn(2, 4, 32, 32), torch.randn(2, 77, width), torch.randn(2, 1280)
    ids = torch.tensor([[256.0, 256.0, 0.0, 0.0, 256.0, 256.0]] * 2)
    vector = torch.cat([pooled, sinusoid(ids.flatten(), 256).reshape(2, -1)], 1)
    start = time.perf_counter()
    prepared = unet.prepare(context, vector, [500.0])
    print(f"prepare: {time.perf_counter() - start:.2f} s once a prompt")
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: unet(x, prepared, 0),
        "theirs": lambda: network(x, 500.0, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample,
    }
    seen: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for call in calls.values():
        call()
    for _ in range(runs):
        for engine in ENGINES:
            start = time.perf_counter()
            calls[engine]()
            seen[engine].append(time.perf_counter() - start)
    report("UNet step seconds", seen["ours"], seen["theirs"])


def finite(checkpoint: Path, runs: int, dtype: str) -> None:
    """The share of a load's processor time that the check of the weights takes, timed around it in its own threads.

    With and without the check the clock differs by less than one run from the next, on a machine whose memory is lent by a host.
    """
    import ldm.pipeline
    from ldm.checkpoint import reading

    check, spent, shares = reading.doubtful, [0], []

    def timed(values: torch.Tensor) -> bool:
        start = time.thread_time_ns()
        found = check(values)
        spent.append(time.thread_time_ns() - start)
        return found

    reading.doubtful = timed
    for _ in range(runs):
        spent.clear()
        start = time.process_time_ns()
        kept = ldm.load(checkpoint, device="cpu", dtype=dtype)
        shares.append(sum(spent) / (time.process_time_ns() - start))
        del kept
    low, high = min(shares), max(shares)
    spread = f"{low:.1%} to {high:.1%}, {runs} runs"
    print(f"check of the weights, load to {dtype}: {statistics.median(shares):.1%} of its processor time ({spread})")


def digest(checkpoint: Path, runs: int) -> None:
    """sha256 of the whole file as `verify` takes it, and by hashlib over one buffer: what the machine can do."""
    from ldm.checkpoint.digests import sha256

    size, seen = checkpoint.stat().st_size / 1e9, []
    for _ in range(runs):
        start = time.perf_counter()
        sha256(checkpoint)
        seen.append((time.perf_counter() - start) / size)
    block = bytes(2**26)
    start = time.perf_counter()
    hashlib.sha256(block).digest()
    alone = (time.perf_counter() - start) / len(block) * 1e9
    spread = f"{min(seen):.2f} to {max(seen):.2f}"
    print(f"sha256: {statistics.median(seen):.2f} s/GB over {runs} runs of {size:.2f} GB ({spread}); in memory {alone:.2f}")


def run(what: str, checkpoint: Path, *, runs: int, dtype: str) -> None:
    verbs: dict[str, Callable[[Path, int], None]] = {
        "load": load,
        "step": step,
        "finite": partial(finite, dtype=dtype),
        "digest": digest,
    }
    verbs[what](checkpoint, runs)
