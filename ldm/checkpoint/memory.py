"""How much memory is free, and whether it is enough; torch is asked for devices alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ldm.errors import MemoryNeedError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
RESERVE = 256 * 2**20  # bytes kept free for everything else
ADVICE = "close other programs, use --dtype bfloat16, or another machine"


def free_memory(device: object = "cpu") -> int | None:
    """Bytes that can be allocated without swapping, the control group's limit considered; None where the system does not say.

    On a CUDA device also those that torch holds without using them.
    """
    if str(device).startswith("cuda"):
        return _on_cuda(str(device))
    free = [amount for amount in (_available(), _under_limit()) if amount is not None]
    return min(free, default=None)


def _on_cuda(device: str) -> int:
    import torch

    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _available() -> int | None:
    return _number(MEMINFO, "MemAvailable:", 1024)


def _under_limit() -> int | None:
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is None or used is None:
        return None
    cache = sum(_number(CGROUP / "memory.stat", kind) or 0 for kind in ("active_file", "inactive_file"))  # given back under pressure
    return max(limit - used + cache, 0)


def _number(file: Path, key: str = "", unit: int = 1) -> int | None:
    """The number after `key` at the start of a line; None where the file, the key or the number is absent."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    words = next((line.removeprefix(key).split() for line in lines if line.startswith(key)), [])
    return int(words[0]) * unit if words and words[0].isdigit() else None


def fits(need: int, free: int | None) -> bool:
    """Whether `need` bytes and a reserve of 256 MiB are free, as far as is known."""
    return free is None or need + RESERVE <= free


def check_memory(need: int, free: int | None, what: str = "the model", advice: Callable[[], str] = lambda: ADVICE) -> None:
    """Raises MemoryNeedError, saying both and what to do, when `need` bytes and the reserve are more than are free."""
    if free is not None and not fits(need, free):
        raise MemoryNeedError(f"{what} needs {size(need)} of memory and {size(free)} are free: {advice()}")


def size(count: float) -> str:
    """Bytes for people, in decimal units: "6.9 GB"."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
