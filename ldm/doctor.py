"""What this machine has of all that generation needs: one finding a line, with the remedy. No connection is opened."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ldm
from ldm import catalogue
from ldm.checkpoint.memory import MEMINFO, free_memory
from ldm.checkpoint.safetensors import read_header
from ldm.errors import InputError, LdmError
from ldm.hub import names as hub
from ldm.resources import configs, weights

OK, NOTE, FAULT = "ok", "note", "fault"
PYTHON = (3, 11)
TORCH = (2, 11)
PACKAGES = {  # the package: the module that is imported
    **{name: name for name in ("einops", "safetensors", "tokenizers", "numpy", "tqdm", "ftfy", "regex")},
    "pillow": "PIL",
    "pyyaml": "yaml",
}
LITTLE_MEMORY = 8 * 10**9  # bytes: an SDXL checkpoint has 7, and pictures take more
LITTLE_DISK = 10**9
PROBE_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    state: str  # "ok", "note": something to know, "fault": no pictures can be made
    name: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.name:<12} {self.text}" + (f": {self.remedy}" if self.remedy else "")


def examine(outputs: Path = Path("outputs"), dirs: list[Path] | None = None) -> Iterator[Finding]:
    """All findings, in order. torch is imported on the way, which takes seconds; torchvision is tried in a process of its own."""
    with_torch = find_spec("torch") is not None
    probe = _probe("torchvision") if with_torch and find_spec("torchvision") else None
    yield _python()
    yield _ldm()
    yield from _torch() if with_torch else [Finding(FAULT, "torch", "not installed", f"pip install 'torch>={TORCH[0]}.{TORCH[1]}'")]
    yield _triton()
    yield from map(_package, PACKAGES)
    yield _vocabulary()
    yield _torchvision(probe)
    yield _memory()
    yield from _disks(outputs)
    yield from _models(catalogue.places() if dirs is None else dirs)
    yield _hub()


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    if sys.version_info < PYTHON:
        return Finding(FAULT, "python", text, f"use Python {PYTHON[0]}.{PYTHON[1]} or later")
    return Finding(OK, "python", text)


def _ldm() -> Finding:
    text = f"{ldm.__version__} in {Path(ldm.__file__).parent}"
    if not (configs() / "models").is_dir():
        return Finding(FAULT, "ldm", f"{text}, without its configs", "install it again")
    try:
        read_header(weights() / catalogue.BOX)
    except InputError as error:
        return Finding(NOTE, "ldm", f"{text}; the model in the box cannot be read ({error})", "give a model with -m, or install ldm again")
    return Finding(OK, "ldm", text)


def _torch() -> Iterator[Finding]:
    start = time.perf_counter()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing
        yield Finding(FAULT, "torch", f"cannot be imported ({_line(error)})", "install torch again, in a build for this machine")
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for ROCm" if torch.version.hip else "for the CPU alone"
    text = f"{torch.__version__}, built {build}, imported in {time.perf_counter() - start:.1f} s"
    number = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    old = number < TORCH
    yield Finding(FAULT if old else OK, "torch", text, f"pip install 'torch>={TORCH[0]}.{TORCH[1]}'" if old else "")
    yield from _devices(torch)


def _devices(torch: Any) -> Iterator[Finding]:
    yield Finding(OK, "cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    try:
        count = torch.cuda.device_count()
        for index in range(count):
            free, total = torch.cuda.mem_get_info(index)
            name = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
            yield Finding(OK, f"cuda:{index}", name)
    except RuntimeError as error:
        yield Finding(NOTE, "cuda", f"does not work ({_line(error)})", "update the driver, or use --device cpu")
        return
    if not count and torch.version.cuda:
        yield Finding(
            NOTE, "cuda", "torch is built for CUDA, but sees no device", "pictures are made on the CPU; check nvidia-smi for a GPU"
        )
    if torch.backends.mps.is_available():
        yield Finding(OK, "mps", "available")


def _triton() -> Finding:
    found = _version("triton")
    return Finding(OK, "triton", found) if found else Finding(NOTE, "triton", "not installed: GPUs run the plain kernels of torch")


def _package(name: str) -> Finding:
    if find_spec(PACKAGES[name]) is None:
        return Finding(FAULT, name, "not installed", f"pip install {name}")
    return Finding(OK, name, _version(name) or "of unknown version")


def _vocabulary() -> Finding:
    """CLIP's vocabulary is a file of open_clip, which itself is never imported."""
    try:
        from ldm.text.tokenizer import encode

        good = encode("a red apple") == [320, 736, 3055]
    except ImportError as error:
        return Finding(FAULT, "vocabulary", f"the tokenizer cannot be imported ({_line(error)})", "pip install ldm again")
    except (LdmError, OSError, ValueError, EOFError) as error:
        return Finding(FAULT, "vocabulary", _line(error), "pip install open_clip_torch again")
    if not good:
        return Finding(FAULT, "vocabulary", "open_clip's vocabulary is not CLIP's", "pip install open_clip_torch again")
    return Finding(OK, "vocabulary", f"of open_clip_torch {_version('open_clip_torch') or ''}".strip())


def _probe(module: str) -> subprocess.Popen[str]:
    """Import a module in a process of its own, where it can do no harm."""
    nothing = subprocess.DEVNULL
    words = [sys.executable, "-c", f"import {module}"]
    return subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=subprocess.PIPE, text=True, errors="replace")


def _torchvision(probe: subprocess.Popen[str] | None) -> Finding:
    if probe is None:
        return Finding(OK, "torchvision", "not installed, and not needed")
    try:
        _, said = probe.communicate(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
        return Finding(
            NOTE, "torchvision", f"its import does not end in {PROBE_SECONDS} s", "ldm does without it; pip uninstall torchvision"
        )
    found = _version("torchvision") or "of unknown version"
    if probe.returncode:
        last = next(iter(said.strip().splitlines()[-1:]), f"exit code {probe.returncode}")
        remedy = "ldm does without it, transformers and open_clip do not: install the torchvision of this torch, or none"
        return Finding(NOTE, "torchvision", f"{found} does not fit this torch ({last[:120]})", remedy)
    return Finding(OK, "torchvision", f"{found}, never imported by ldm")


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding(NOTE, "memory", f"free memory is not known here (no {MEMINFO})", "a model that does not fit ends the process")
    text = f"{free / 1e9:.1f} GB free"
    if free < LITTLE_MEMORY:
        return Finding(
            NOTE,
            "memory",
            f"{text}, and SDXL wants more than {LITTLE_MEMORY / 1e9:.0f} on the CPU",
            "close other programs, or add --dtype bfloat16",
        )
    return Finding(OK, "memory", text)


def _disks(outputs: Path) -> Iterator[Finding]:
    yield _disk("outputs", outputs.absolute(), "choose another place with -o")
    yield _disk("hub cache", hub.cache_folder(), "choose another place with HF_HUB_CACHE")


def _disk(name: str, folder: Path, remedy: str) -> Finding:
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    text = f"{folder}{'' if nearest == folder else ' (not made yet)'}"
    try:
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        return Finding(NOTE, name, f"{text} cannot be looked at ({_line(error)})", remedy)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(NOTE, name, f"{text} cannot be written to", remedy)
    if free < LITTLE_DISK:
        return Finding(NOTE, name, f"{text}: only {free / 1e9:.2f} GB free", f"make room, or {remedy}")
    return Finding(OK, name, f"{text}, {free / 1e9:.1f} GB free")


def _models(dirs: list[Path]) -> Iterator[Finding]:
    if not dirs:
        yield Finding(NOTE, "models", "no models folder is set", f"set {catalogue.VARIABLE} to use files by name")
    for folder in dirs:
        found = catalogue.scan([folder])
        count = sum(not each.is_pickle for each in found.files)
        refused = len(found.files) - count
        text = f"{folder}: {count} files" + (f", and {refused} pickles, which are refused" if refused else "")
        yield Finding(NOTE if found.notes else OK, "models", "; ".join([text, *found.notes]))


def _hub() -> Finding:
    found = _version("huggingface_hub")
    if not found:
        return Finding(NOTE, "hub", "huggingface_hub is not installed: `ldm pull` does not work", 'pip install "ldm[hub]"')
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    return Finding(
        OK, "hub", f"huggingface_hub {found}, {'offline by the environment' if hub.is_offline() else 'used by `ldm pull` alone'}, {token}"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
