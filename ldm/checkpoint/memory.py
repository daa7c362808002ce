"""How much memory is free, and whether it is enough, without torch."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import MemoryNeedError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
RESERVE = 256 * 2**20  # bytes kept free for everything else


def free_memory() -> int | None:
    """Bytes that can be allocated without swapping, the control group's limit considered; None where the system does not say."""
    free = [amount for amount in (_available(), _under_limit()) if amount is not None]
    return min(free, default=None)


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


def check_memory(need: int, free: int | None, what: str = "the model") -> None:
    """Raises MemoryNeedError, saying both, when `need` bytes and a reserve of 256 MiB are more than are free."""
    if free is not None and need + RESERVE > free:
        both = f"{what} needs {need / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        raise MemoryNeedError(f"{both}: close other programs, use --dtype bfloat16, or another machine")
