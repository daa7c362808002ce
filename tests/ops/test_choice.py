"""A named implementation wins, then the table of a GPU's name, then the operation's default."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ldm import resources
from ldm.ops import choice

GPU, OTHER, CPU = torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")
TABLE = '[attention]\n"self 1024 64" = "cudnn"\n\n[geglu]\n"2048 1280" = "triton"\n'


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[torch.device]]:
    """One GPU with a table and one without; what was asked of the driver."""
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "nvidia-h200.toml").write_text(TABLE)
    asked: list[torch.device] = []

    def name(device: torch.device) -> str:
        asked.append(device)
        return ["NVIDIA H200", "NVIDIA A100-SXM4-80GB"][device.index]

    monkeypatch.setattr(resources, "configs", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    choice.table.cache_clear()
    yield asked
    choice.table.cache_clear()


def test_the_table_of_a_gpus_name_is_read_once(gpus: list[torch.device]) -> None:
    for _ in range(3):
        assert choice.chosen("attention", "self 1024 64", GPU, "sdpa") == "cudnn"
        assert choice.chosen("geglu", "2048 1280", GPU, "plain") == "triton"
    assert gpus == [GPU]


@pytest.mark.parametrize(
    ("op", "shape", "device"),
    [("attention", "self 4096 64", GPU), ("norm", "self 1024 64", GPU), ("attention", "self 1024 64", OTHER)],
)
def test_what_no_table_has_takes_the_default(op: str, shape: str, device: torch.device) -> None:
    assert choice.chosen(op, shape, device, "sdpa") == "sdpa"


def test_without_a_folder_of_tables(tmp_path: Path) -> None:
    (tmp_path / "tuning" / "nvidia-h200.toml").unlink()
    (tmp_path / "tuning").rmdir()
    assert choice.chosen("attention", "self 1024 64", GPU, "sdpa") == "sdpa"


def test_no_gpu_is_asked_about_a_cpu(gpus: list[torch.device]) -> None:
    assert choice.chosen("attention", "self 1024 64", CPU, "sdpa") == "sdpa" and gpus == []


@pytest.mark.parametrize("device", [GPU, OTHER, CPU])
def test_a_named_one_wins_until_its_block_ends(device: torch.device) -> None:
    before = choice.chosen("attention", "self 1024 64", device, "sdpa")
    with choice.using(attention="triton"):
        assert choice.chosen("attention", "self 1024 64", device, "sdpa") == "triton"
        with choice.using(geglu="plain"):
            assert choice.named() == {"attention": "triton", "geglu": "plain"}
        with pytest.raises(ZeroDivisionError), choice.using(attention="flash"):
            assert choice.chosen("attention", "self 1024 64", device, "sdpa") == "flash"
            raise ZeroDivisionError
        assert choice.chosen("attention", "self 1024 64", device, "sdpa") == "triton"
    assert choice.chosen("attention", "self 1024 64", device, "sdpa") == before and choice.named() == {}


def test_it_is_named_in_one_thread_alone() -> None:
    with choice.using(attention="triton"), ThreadPoolExecutor(1) as other:
        assert other.submit(choice.chosen, "attention", "self 1024 64", GPU, "sdpa").result() == "cudnn"


@pytest.mark.parametrize(
    ("name", "slug"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"), ("Quadro (T1)", "quadro-t1")],
)
def test_a_gpus_name_as_a_files(name: str, slug: str) -> None:
    assert choice.slug(name) == slug
