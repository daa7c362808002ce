"""docs/metadata.md: its examples are what the code writes, and its limits are the code's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ldm import opening, pictures, watermark
from ldm.metadata import a1111, containers, exif, foreign, native, png, xmp
from ldm.options import Job
from ldm.pictures import Marks
from tests.metadata.test_native import RECORD

PAGE = (Path(__file__).parents[1] / "docs/metadata.md").read_text(encoding="utf-8")
JOB = Job("a red apple on a table", 'blur, "text"', 1024, 768, 20, 5.0, "dpmpp_2m", "karras")
MADE = replace(RECORD, job=JOB, seed=42, index=0, model="sd_xl_base_1.0.safetensors", device="cuda", dtype="bfloat16", vae_dtype="float32")


def example(name: str) -> str:
    match = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)\n```", PAGE, re.DOTALL)
    assert match, name
    return match[1]


def test_the_settings() -> None:
    assert example("parameters") == a1111.write(a1111.from_record(MADE))


def test_the_record() -> None:
    said = json.loads(native.write(MADE))
    assert set(said["job"]) == set(native.SAVED)
    assert example("record") == json.dumps({**said, "job": {"...": "..."}})


def test_the_packet() -> None:
    record = '{"schema": 1, "...": "..."}'
    assert example("xmp") == xmp.write(xmp.Packet(xmp.TRAINED, "ldm 0.1.0", record)).decode()


def test_the_sidecar(tmp_path: Path) -> None:
    saved = pictures.save(Image.new("RGB", (8, 8)), tmp_path / "apple.jpg", Marks("a" * 40_000, "{}"))
    assert saved.notes == (example("note"),)
    assert saved.sidecar
    assert json.loads(example("sidecar")).keys() == json.loads(saved.sidecar.read_text()).keys()


def test_the_limits() -> None:
    units = (exif.JPEG_LIMIT - len(exif.write(""))) // 2
    assert units > 30_000
    for number in (units, xmp.JPEG_LIMIT, native.LIMIT, opening.MAX_PIXELS, containers.PARTS):
        assert f"{number:,}" in PAGE, number
    for size in (png.LIMIT, containers.LIMIT, opening.MAX_FILE):
        assert f"{size >> 20} MiB" in PAGE, size
    assert f"{watermark.MARK:X}" in PAGE and f"{watermark.SMALLEST} pixels" in PAGE


def test_every_program_is_named() -> None:
    source = Path(foreign.__file__).read_text(encoding="utf-8")
    programs = set(re.findall(r'Reading\(\s*"([\w.]+)"', source)) | {"a1111", "sd.cpp", "unknown", "none"}
    assert {"ldm", "comfyui", "swarmui", "invokeai", "novelai"} <= programs
    assert all(f"| `{each}`" in PAGE for each in programs)
