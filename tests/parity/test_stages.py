"""`ldm parity`: the stages of a small file beside diffusers, what it says where it cannot run, and that it sees what is wrong."""

from __future__ import annotations

import json

import pytest
import torch

import ldm
from ldm.catalogue import find
from ldm.commands import main
from ldm.models.shapes import load_family
from ldm.parity import foreign
from ldm.parity.stages import RUN, STAGE, Case, compare

BOX = find(None)
FEW = [("euler_a", "normal"), ("dpmpp_2m", "karras")]


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    monkeypatch.setattr(Case, "runs", lambda self: FEW)


def case(**values) -> Case:
    return Case(BOX, load_family("emoji"), 64, 64, 2, **values)


def test_the_gates_are_what_was_promised():
    assert (STAGE, RUN) == (1e-4, 1e-3)


def test_every_stage_of_the_model_in_the_box(capsys):
    pytest.importorskip("diffusers", reason="parity with diffusers (extra: parity)")
    assert main(["parity", "--json", "--size", "64x64"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["stage"] for row in rows] == [
        *("tower 1, hidden", "tower 2, hidden", "tower 2, pooled", "UNet at t 999", "UNet at t 749", "UNet at t 499", "UNet at t 249"),
        *("UNet at t 1", "run euler_a normal", "run dpmpp_2m karras", "VAE encode", "VAE decode", "picture"),
    ]
    assert all(row["error"] <= (RUN if row["stage"].startswith(("run", "picture")) else STAGE) == row["gate"] for row in rows)


# A fault in one stage of ours, and the rows that must show it; those of other stages must not.
FAULTS = {
    "towers": (lambda pipeline: pipeline.towers[1].text_model.encoder.layers[0].mlp.fc1.weight, {"tower 2, hidden", "tower 2, pooled"}),
    "UNet": (lambda pipeline: next(pipeline.unet.parameters()), {"UNet at t 999", "run euler_a normal", "run dpmpp_2m karras"}),
    "VAE": (lambda pipeline: next(pipeline.vae.decoder.parameters()), {"VAE decode"}),
}


@pytest.mark.parametrize("stage", FAULTS)
def test_a_fault_shows_in_its_own_rows(monkeypatch, stage):
    pytest.importorskip("diffusers", reason="parity with diffusers (extra: parity)")
    weight, expected = FAULTS[stage]
    real = ldm.load

    def broken(*args, **values):
        pipeline = real(*args, **values)
        with torch.no_grad():
            weight(pipeline).mul_(1.01)
        return pipeline

    whole = {row.stage: row.error for row in compare(case(), lambda what: None)}  # of a run it depends on the weights
    monkeypatch.setattr(ldm, "load", broken)
    missed = {row.stage for row in compare(case(), lambda what: None) if row.error > 10 * whole[row.stage] + 1e-6}
    assert expected <= missed
    others = {f"UNet at t {t}" for t in (749, 499, 249, 1)} if stage == "UNet" else set()
    assert missed <= expected | others | {"picture"}


def test_without_diffusers_it_says_so_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(foreign, "find_spec", lambda name: None if name == "diffusers" else object())
    assert main(["parity"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "error E2000: --against diffusers: diffusers not installed here: pip install 'ldm[parity]'" in said.err


@pytest.mark.parametrize(("words", "says"), [(["--size", "100x64"], "nearest"), (["-m", "nothing.safetensors"], "nothing.safetensors")])
def test_what_is_not_acceptable(words, says, capsys):
    assert main(["parity", *words]) == 2
    assert says in capsys.readouterr().err
