"""What a file needs and what is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.checkpoint import memory
from ldm.errors import MemoryNeedError
from tests.checkpoint import builders


def test_need_of_the_official_file() -> None:
    header = builders.header("sd_xl_base_1.0.safetensors")
    values = 3_468_837_945 - 77 - 1  # without position_ids and logit_scale
    assert memory.needed_bytes(header) == 4 * values
    vae = 83_653_863
    assert memory.needed_bytes(header, 2, {"first_stage_model.": 4}) == 2 * values + 2 * vae


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
