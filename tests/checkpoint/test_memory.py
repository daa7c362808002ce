"""What is free, and whether it is enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.checkpoint import memory
from ldm.errors import MemoryNeedError


def test_check() -> None:
    memory.check_memory(10**9, None)
    memory.check_memory(10**9, 2 * 10**9)
    with pytest.raises(MemoryNeedError, match=r"base needs 13.9 GB of memory and 8.0 GB are free: "):
        memory.check_memory(13_900_000_000, 8_000_000_000, "base")


def test_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:    50 kB\n")
    assert memory.free_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("9000\n")
    assert memory.free_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("10000\n")
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 200\ninactive_file 30\n")
    assert memory.free_memory() == 1230
    (tmp_path / "meminfo").write_text("nonsense")
    assert memory.free_memory() == 1230
