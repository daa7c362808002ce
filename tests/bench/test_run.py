"""`python -m scripts.bench`: the whole way at tiny sizes, slices that go on, rows that break, and what is timed at all."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm import ops
from ldm.errors import InputError
from ldm.models.shapes import load_family
from ldm.ops import choice, fp8, geglu
from scripts import bench
from scripts.bench import ceilings, conduct, engines, measures, operations, page, pictures, records, rows, shapes, training, tuning, working
from scripts.bench.bench import Bench
from scripts.bench.cases import CASES, Case

CPU = torch.device("cpu")
ON_A_GPU = {"picture-1024-30-fp8", "picture-1024-20-b8-fp8"}


def options(file: Path, *words: str) -> argparse.Namespace:
    return bench.parser().parse_args(["--small", "--json", str(file), "--here", "now", *words])


def test_every_row_runs_at_tiny_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert bench.main(["--small", "--json", str(file), "--folder", str(tmp_path), "--minutes", "10"]) == 0
    record, said = records.load(file), capsys.readouterr().out
    assert set(record) == {"schema", "machine", "versions", "small", "command", "date", "rows"}
    assert set(record["rows"]) == set(CASES) and all(f"\n{name} " in said for name in CASES)
    beside = set() if engines.has_diffusers() else {"step-512-compiled", "picture-1024-30-compiled", "picture-1024-20-compiled"}
    assert {name for name, row in record["rows"].items() if row["state"] != "measured"} == ON_A_GPU | beside
    sides = {"ldm", "diffusers"} if engines.has_diffusers() else {"ldm"}
    for name in ("step-512", "step-1024-b4", "vae-1024", "picture-1024-30", "picture-512-4", "picture-1024-30-zero"):
        row = record["rows"][name]
        assert row["gate"]["met"] and row["tflop"] > 0 and set(row["sides"]) == sides
        for side in row["sides"].values():
            assert 0 < side["p10"] <= side["median"] <= side["p90"] and side["runs"] == len(side["samples"]) == 2
    lines = [line for name, row in record["rows"].items() if name.startswith("op-") for line in row["table"]]
    assert all(line["us"] > 0 if line["met"] else line.get("why") or line["error"] is not None for line in lines)


def test_the_operations_are_counted_as_the_plain_path_has_them() -> None:
    """Other people's counts of the same network agree: 6.76 TFLOP a forward, counted here by torch's own counter."""
    family = load_family("sdxl-base")
    assert ceilings.step(family, 1024, 2) == pytest.approx(13.52247, abs=1e-4)
    assert ceilings.decode(family, 1024) == pytest.approx(10.47039, abs=1e-4)


def test_percentiles_and_a_side_against_itself() -> None:
    seconds = [0.5, 0.1, 0.4, 0.2, 0.9, 0.3]
    found = measures.spread(seconds)
    assert (found.p10, found.median, found.p90) == pytest.approx(tuple(np.percentile(seconds, (10, 50, 90))))
    assert found.itself == pytest.approx(np.median([0.5, 0.4, 0.9]) / np.median([0.1, 0.2, 0.3])) and found.runs == 6
    assert measures.spread([2.0]) == measures.Spread(2.0, 2.0, 2.0, 1.0, 1)


def test_sides_alternate_and_a_row_ends_in_good_order_when_time_is_up() -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], Any]] = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seen = measures.alternating(calls, 9, device=CPU, warm=2, until=time.time() - 1)
    assert "".join(order) == "ab" * (2 + measures.FEWEST) and {len(each) for each in seen.values()} == {measures.FEWEST}
    assert len(measures.alternating(calls, 9, device=CPU, until=time.time() + 60)["a"]) == 9


@pytest.mark.parametrize("error", [2e-5, float("nan")])
def test_what_is_not_right_is_not_timed(error: float) -> None:
    timed: list[int] = []
    gate = measures.Gate("the judge", {"ldm": error, "plain path": 1.0}, {"ldm": 1e-5})
    row = measures.contest({"ldm": lambda: timed.append(1)}, gate, runs=3, device=CPU)
    assert row["state"] == "void" and "sides" not in row and not timed and not row["gate"]["met"]
    json.dumps(records.finite(row), allow_nan=False)
    assert measures.contest({"ldm": lambda: None}, measures.Gate("it", {"ldm": 9e-6}, {"ldm": 1e-5}), runs=3, device=CPU)["sides"]


class Half(Bench):
    """As on a GPU: bfloat16, which only float32 can judge."""

    dtype = torch.bfloat16


def test_in_half_precision_the_judge_is_float32_and_the_plain_path_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_diffusers", lambda: False)
    made = Half(CPU, small=True)
    for row in (rows.step(made, 1024), rows.decode(made, 1024), pictures.picture(made, 1024, 30)):
        errors, limits = row["gate"]["errors"], row["gate"]["limits"]
        assert row["state"] == "measured" and limits == {"ldm": 2 * errors["plain path"]} and 1e-3 < errors["ldm"] <= limits["ldm"] < 0.1
    table = {line["name"]: line["error"] for line in operations.measure(made, "attention")["table"]}
    assert 1e-4 < table["ldm"] <= 2 * table["plain"]


def test_a_training_step_is_right_before_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradient as diffusers', in a process of its own too; a wrong one is not timed."""
    made, side = Bench(CPU, small=True, folder=tmp_path), training.Side("ldm", "float32", Bench(CPU, small=True))
    with training.Process("ldm", "float32", made) as process:
        found = process.gradients()
        assert set(found) == {"own", "judge"} and torch.equal(found["own"], side.gradient())
        process.step()
        assert process.gib() > 0
    first = {name: value.clone() for name, value in side.network.named_parameters()}
    side.step()
    assert not any(torch.equal(value, first[name]) for name, value in side.network.named_parameters() if value.dim() > 1)
    monkeypatch.setattr(engines, "has_diffusers", lambda: False)
    monkeypatch.setattr(training.Side, "gradients", lambda self: {"own": torch.ones(3), "judge": torch.ones(3) + 1e-3})
    row = training.train(made, "float32")
    assert row["state"] == "void" and "sides" not in row and set(row["gib"]) == {"ldm"}


def test_a_process_of_a_side_that_ends_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="ended with 1"), training.Process("ldm", "float32", Bench(CPU, small=True, folder=tmp_path)):
        pass


def fakes(monkeypatch: pytest.MonkeyPatch, **runs: Callable[[Any], dict[str, Any]]) -> None:
    made = {name: Case(name, name, {"cpu": 60}, run) for name, run in runs.items()}
    for module in (working, __import__("scripts.bench.cases", fromlist=["CASES"])):
        monkeypatch.setattr(module, "CASES", made)
    monkeypatch.setattr(working, "seconds", lambda case, device, *, small: case.seconds[device])


def test_slices_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = itertools.count()
    fakes(monkeypatch, a=lambda made: {"state": "measured", "n": next(counts)}, b=lambda made: {"state": "measured", "n": next(counts)})
    file = tmp_path / "bench.json"
    assert working.run(options(file, "--only=a"), ["a"]) == 0
    assert working.run(options(file, "--until", str(time.time() + 30)), ["a", "b"]) == 0
    found = records.load(file)["rows"]
    assert found["a"]["n"] == 0 and (found["b"]["state"], found["b"]["why"]) == ("not measured", conduct.TIME)
    assert "b " in page.table(records.load(file)) and "time was up" in page.table(records.load(file))
    later = options(file, "--until", str(time.time() + 300))
    later.here = "later"
    assert working.run(later, ["a", "b"]) == 0
    assert {name: row["n"] for name, row in records.load(file)["rows"].items()} == {"a": 0, "b": 1}
    later.again, later.here = True, "again"
    assert working.run(later, ["a"]) == 0 and records.load(file)["rows"]["a"]["n"] == 2


def test_a_row_that_raises_has_failed_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(made: Any) -> dict[str, Any]:
        raise RuntimeError("no\nsuch kernel")

    fakes(monkeypatch, a=broken, b=lambda made: {"state": "measured", "error": float("inf")})
    assert working.run(options(tmp_path / "bench.json"), ["a", "b"]) == 0
    found = records.load(tmp_path / "bench.json")["rows"]
    assert (found["a"]["state"], found["a"]["why"]) == ("failed", "RuntimeError: no such kernel") and found["b"]["state"] == "measured"


def test_where_the_gpu_answers_no_more_another_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes(monkeypatch, a=lambda made: {"state": "measured"}, b=lambda made: {"state": "measured"})
    alive = iter([False, True])
    monkeypatch.setattr(working, "answers", lambda device: next(alive))
    assert working.run(options(tmp_path / "bench.json"), ["a", "b"]) == conduct.AGAIN
    assert working.run(options(tmp_path / "bench.json"), ["a", "b"]) == 0
    found = records.load(tmp_path / "bench.json")["rows"]
    assert (found["a"]["state"], found["a"]["why"], found["b"]["state"]) == ("failed", working.DEAD, "measured")


def test_a_process_that_dies_takes_one_row_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, codes = tmp_path / "bench.json", iter([-9, 0])

    def process(command: list[str], seconds: float | None) -> int:
        code = next(codes)
        if code:
            records.save(file, {"schema": 1, "rows": {"a": {"state": "running"}}})
        return code

    monkeypatch.setattr(conduct, "_process", process)
    conduct.start(options(file), None)
    assert records.load(file)["rows"]["a"] == {"state": "failed", "why": "its process ended with -9"} and next(codes, None) is None
    codes = iter([1])
    file.unlink()
    monkeypatch.setattr(conduct, "_process", lambda command, seconds: 1)
    with pytest.raises(InputError, match="outside of a row"):
        conduct.start(options(file), None)


def test_a_process_over_its_time_is_ended() -> None:
    import sys

    assert conduct._process([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == -15


def test_a_record_of_another_machine_is_not_added_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    head = records.fresh(CPU, "", small=True)
    records.save(file, head | {"versions": {"torch": "1.0"}})
    assert conduct.run(options(file, "--only", "product")) == 2 and "torch 1.0" in capsys.readouterr().err
    file.write_text("[]")
    assert conduct.run(options(file)) == 2 and "no record" in capsys.readouterr().err
    assert conduct.run(options(file, "--only", "stepp-512")) == 2 and "step-512" in capsys.readouterr().err


class Asked(Exception):
    """What an operation asks the tables for."""


@pytest.mark.parametrize("word", [word for word, op in shapes.OPS.items() if op.name is not None])
def test_what_is_tuned_is_what_the_operation_asks_for(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, and by the shape in its words: a table of other words is never read."""

    def chosen(op: str, shape: str, device: object, default: str) -> str:
        raise Asked(op, shape)

    op = shapes.OPS[word]
    inputs = op.inputs(op.small, lambda *shape, scale=1.0: torch.ones(*shape, dtype=torch.bfloat16))
    monkeypatch.setattr(ops, "fast", lambda *tensors: True)
    monkeypatch.setattr(fp8, "quantise_triton", fp8.quantise_reference)
    monkeypatch.setattr(geglu, "default", lambda device: "plain")
    monkeypatch.setattr(choice, "chosen", chosen)
    assert op.public is not None
    with pytest.raises(Asked) as caught:
        op.public(*inputs)
    assert caught.value.args == (op.name, op.key(*inputs) if op.key else " ".join(map(str, op.small)))


def test_one_name_serves_all_shapes_of_a_key() -> None:
    """The text's keys are as many at 1024 queries as at 4096: the least time of both counts, and what fails at one is out."""
    times = [("a", 5.0, True), ("b", 3.5, True), ("c", 0.5, True), ("a", 1.0, True), ("b", 2.0, True), ("c", 0.5, False)]
    lines = [{"key": "cross 77 64", "name": f"ldm {name}", "met": met} | ({"us": us} if met else {}) for name, us, met in times]
    assert tuning.fastest(lines) == {"cross 77 64": "b"}
    assert tuning.fastest(lines[-1:]) == {}


def test_the_fastest_that_is_right_is_kept_a_shape(tmp_path: Path) -> None:
    lines = [("ldm", 1.0, True), ("ldm cudnn", 3.0, True), ("ldm triton 64x64", 2.0, True), ("ldm flash", 1.5, False)]
    table = [{"shape": "x", "key": "self 1024 64", "name": name, "us": us, "met": met} for name, us, met in lines]
    record = {
        "machine": {"name": "NVIDIA H200", "slug": "nvidia-h200", "device": "cuda"},
        "versions": {"torch": "2.11"},
        "date": "2026-01-01",
        "rows": {"op-attention": {"table": table}, "op-linear": {"table": table}},
    }
    tuning.write(record, tmp_path)
    assert tomllib.loads((tmp_path / "nvidia-h200.toml").read_text()) == {"attention": {"self 1024 64": "triton 64x64"}}
    with pytest.raises(InputError, match="nothing is written"):
        tuning.write(record | {"machine": record["machine"] | {"device": "cpu"}}, tmp_path)
