"""`ldm models`: what is listed, what is kept of it, and how long it takes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ldm import summaries
from ldm.commands import main
from ldm.summaries import Summary, summarise
from tests.checkpoint.builders import entry, manifests, raw


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LDM_MODELS_DIR"):
        monkeypatch.delenv(name, raising=False)


def official(path: Path, name: str = "sd_xl_base_1.0.safetensors", metadata: dict[str, str] | None = None) -> Path:
    """A file of this header, its weights a hole."""
    from ldm.checkpoint.safetensors import BITS

    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for tensor, (dtype, *shape) in manifests()[name]["tensors"].items():
        size = BITS[dtype] // 8
        for side in shape:
            size *= side
        table[tensor] = entry(dtype, shape, at, at + size)
        at += size
    header = raw(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header)
    os.truncate(path, len(header) + at)
    return path


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["models", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_files_are_listed_with_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"modelspec.title": "My \x1b[31mmodel", "modelspec.resolution": "1024x1024"}
    official(tmp_path / "models" / "checkpoints" / "base.safetensors", metadata=spec)
    official(tmp_path / "models" / "vae" / "sdxl_vae.safetensors", "sdxl_vae.safetensors")
    (tmp_path / "models" / "checkpoints" / "cut.safetensors").write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "models" / "checkpoints" / "old.ckpt").write_bytes(b"PK")
    (tmp_path / "models" / "checkpoints" / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    lines = listed(capsys, "--models-dir", str(tmp_path))
    rows = {line.split()[0]: line for line in lines}
    assert lines[0] == str(tmp_path)
    assert "6.9 GB  F16   --model  SDXL base 1.0 checkpoint" in rows["base.safetensors"]
    assert rows["base.safetensors"].endswith('"My \\x1b[31mmodel"; 1024x1024')
    assert " --vae " in rows["sdxl_vae.safetensors"] and "335 MB" in rows["sdxl_vae.safetensors"]
    assert " broken " in rows["cut.safetensors"] and "truncated" in rows["cut.safetensors"]
    assert " broken " in rows["gone.safetensors"]
    assert "old.ckpt" not in rows
    assert "(none: the model in the box)" in "\n".join(lines)
    assert [line.split()[0] for line in listed(capsys, "--models-dir", str(tmp_path), "BASE") if line[0] == " "] == ["base.safetensors"]


def test_json_has_an_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = official(tmp_path / "loras" / os.fsdecode(b"x\xff.safetensors"), "sdxl_vae.safetensors")
    rows = [json.loads(line) for line in listed(capsys, "--json", "--models-dir", str(path.parent))]
    assert rows[0]["path"] == str(path) and rows[0]["folder"] == "lora" and rows[0]["flag"] == "--vae" and rows[0]["error"] == ""
    assert rows[0]["size"] == path.stat().st_size and rows[-1]["title"]


def test_the_hubs_cache_is_listed_under_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repo = tmp_path / "hf/hub/models--org--repo"
    official(repo / "snapshots" / ("0" * 40) / "vae.safetensors", "sdxl_vae.safetensors")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    assert any(line.startswith("  org/repo:vae.safetensors ") for line in listed(capsys))


def test_a_folder_that_is_not_there_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--models-dir", str(tmp_path / "absent")]) == 0
    assert capsys.readouterr().err == f"ldm: note: models folder {tmp_path}/absent does not exist\n"


def test_summaries_are_kept_until_the_file_or_the_reader_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = official(tmp_path / "a.safetensors", "sdxl_vae.safetensors")
    read: list[Path] = []
    monkeypatch.setattr(summaries, "summarise", lambda path: read.append(path) or summarise(path))
    first = summaries.summaries([path])
    assert summaries.summaries([path]) == first and read == [path]
    official(path, "sdxl_vae.safetensors", {"modelspec.title": "new"})
    assert summaries.summaries([path])[path].spec_title == "new" and len(read) == 2
    monkeypatch.setattr(summaries, "_reader", lambda: 1)
    summaries.summaries([path])
    assert len(read) == 3


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"reader": 1}', b'{"reader": 1, "files": {"a": 1}}', b"[" * 100_000, b"\xff"])
def test_a_cache_that_is_none_is_left_out(tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "_reader", lambda: 1)
    path = official(tmp_path / "a.safetensors", "sdxl_vae.safetensors")
    cache = tmp_path / "cache.json"
    cache.write_bytes(text)
    assert summaries.summaries([path], cache)[path].flag == "--vae"
    assert json.loads(cache.read_bytes())["files"]


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    path = official(tmp_path / "a.safetensors", "sdxl_vae.safetensors")
    assert summaries.summaries([path], Path("/dev/null/x"))[path].flag == "--vae"


def test_an_error_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"PK\3\4" + bytes(100))
    cache = tmp_path / "cache.json"
    found = summaries.summaries([path], cache)[path]
    assert found == Summary(error=found.error) and "zip" in found.error and not cache.exists()


def test_fifty_files_take_less_than_half_a_second_the_second_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = official(tmp_path / "models" / "a.safetensors")
    for number in range(49):
        path = first.with_name(f"{number}.safetensors")
        with first.open("rb") as file:
            path.write_bytes(file.read(600_000))
        os.truncate(path, first.stat().st_size)
    seconds = []
    for _ in range(6):
        start = time.process_time()
        lines = listed(capsys, "--models-dir", str(tmp_path))
        seconds.append(time.process_time() - start)
        assert sum("SDXL base" in line for line in lines) == 50
    assert min(seconds[1:]) < 0.3, seconds
