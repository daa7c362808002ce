"""docs/benchmarks.md is its data, docs/performance.md counts what the code counts, and goals are judged as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import InputError
from ldm.models.shapes import load_family
from scripts.bench import ceilings, goals, page

PERFORMANCE = (page.DOCS / "performance.md").read_text(encoding="utf-8")


def side(median: float) -> dict[str, Any]:
    return {"median": median, "p10": median, "p90": 2 * median, "itself": 1.02, "runs": 3, "samples": [median]}


def row(state: str = "measured", **sides: float) -> dict[str, Any]:
    made = {name.replace("_", " "): side(median) for name, median in sides.items()}
    return {"what": "a step", "tier": "exact", "state": state, "sides": made, "tflop": 1.0, "gate": {"errors": {"ldm": 3e-7}}}


def record(device: str, **rows: Any) -> dict[str, Any]:
    machine = {"name": "NVIDIA H200" if device == "cuda" else "two cores", "device": device}
    machine["slug"] = "nvidia-h200" if device == "cuda" else "two-cores"
    said = {"versions": {"torch": "2.11"}, "date": "2026-01-01", "command": "python -m scripts.bench", "small": False}
    return {"machine": machine, **said, "rows": {name.replace("_", "-"): each for name, each in rows.items()}}


def test_the_page_is_its_data() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.kept()), "python -m scripts.bench --json FILE --write"


def test_without_data_every_number_is_not_measured() -> None:
    lines = goals.table({}).splitlines()
    assert len(lines) == 2 + len(goals.GOALS) and all(line.endswith("| not measured |") for line in lines[2:])


def test_a_measured_number_is_judged_by_gate_and_stretch() -> None:
    table = [{"shape": "self 1024 64", "name": name, "tflops": value, "met": True} for name, value in (("FLASH", 400), ("ldm triton", 360))]
    gpu = record("cuda", vae_1024=row(ldm=0.03), picture_512_4=row(ldm=0.02), op_attention=row() | {"table": table})
    cpu = record("cpu", step_512=row(ldm=9.7, diffusers=10), step_256=row("void", ldm=1, diffusers=10))
    found = {goal.what: goal.cells({"nvidia-h200": gpu, "two-cores": cpu})[-1] for goal in goals.GOALS}
    assert found["H200: VAE decode, 1024x1024"] == "30 ms: gate met"
    assert found["H200: 512x512, 4 steps, no guidance"] == "20 ms: stretch met"
    assert found["own attention, 2x20 heads, 1024 tokens, of torch's best"] == "0.9: gate met"
    assert found["own attention, 2x10 heads, 4096 tokens, of torch's best"] == "not measured"
    assert found["CPU: guided step, 512x512, float32, of diffusers eager"] == "0.97: gate missed"
    assert found["CPU: guided step, 256x256, float32, of diffusers eager"] == "not measured"


def test_a_table_has_ratio_and_mfu_of_each_side_and_says_why_there_is_none() -> None:
    made = record("cuda", product={**row(), "sides": {}, "tflops": 2.0}, step=row(ldm=1.0, diffusers=2.0), other=row("void"))
    del made["rows"]["product"]["sides"]
    made["rows"]["other"] |= {"why": "the gate is not met"}
    text = page.table(made)
    assert re.search(r"step +exact +ldm +1\.00 s +1\.00 s to 2\.00 s +1\.02 +50% +3e-07", text)
    assert re.search(r"diffusers +2\.00 s +2\.00 s to 4\.00 s +1\.02 +0\.50 +25%", text)
    assert "void: the gate is not met" in text and "2 TFLOP/s" in text
    assert page.section(made).count("| step | exact | ldm | 1.00 s |") == 1


def test_what_is_kept_outlives_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "DATA", tmp_path / "benchmarks.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "benchmarks.md")
    page.write(record("cuda", vae_1024=row(ldm=0.03), vae_512=row(ldm=0.01)))
    page.write(record("cuda", vae_1024={"tier": "exact", "state": "not measured", "why": "time was up"}, vae_512=row(ldm=0.02)))
    kept = json.loads(page.DATA.read_text())["records"]["nvidia-h200"]["rows"]
    assert kept["vae-1024"]["sides"]["ldm"]["median"] == 0.03 and kept["vae-512"]["sides"]["ldm"]["median"] == 0.02
    assert "samples" not in page.DATA.read_text() and page.PAGE.read_text() == page.page(page.kept())
    with pytest.raises(InputError, match="no measure"):
        page.write(record("cpu") | {"small": True})


def test_the_floor_is_counted() -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", PERFORMANCE, re.MULTILINE)
    assert len(rows) == 5 and all(float(ms) == pytest.approx(float(tflop) / 0.790, abs=0.006) for _, tflop, ms in rows)
    counted = {what: float(tflop) for what, tflop, _ in rows}
    family = load_family("sdxl-base")
    assert counted["guided step, 1024x1024"] == pytest.approx(ceilings.step(family, 1024, 2), abs=6e-5)
    assert counted["VAE decode, 1024x1024"] == pytest.approx(ceilings.decode(family, 1024), abs=6e-5)
    for steps, ms in zip((20, 30, 50), re.search(r"text: (\d+), (\d+) and (\d+) ms", PERFORMANCE).groups(), strict=True):  # type: ignore[union-attr]
        floor = (steps * counted["guided step, 1024x1024"] + counted["VAE decode, 1024x1024"]) / 0.790 + 0.4
        assert float(ms) == pytest.approx(floor, abs=1)


def test_every_prediction_has_an_outcome_or_says_that_it_has_none() -> None:
    logs = "".join(re.findall(r"^## [GC]PU: the log\n(.*?)(?=^## )", PERFORMANCE, re.MULTILINE | re.DOTALL))
    rows = [line.strip("|").split("|") for line in logs.splitlines() if line.startswith("| ")]
    changes = [cells for cells in rows if cells[0].strip() != "change"]
    assert len(changes) > 20 and all(cell.strip() for cells in changes for cell in cells)
    assert all(re.match(r"(yes|no|dropped|in part)\b", cells[3].strip()) for cells in changes)
    assert all(re.search(r"\d", cells[1]) for cells in changes)
