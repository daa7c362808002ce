"""`ldm samplers`: one table for people, one object a line for programs, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ldm.commands import main
from ldm.diffusion.names import SOLVERS, SPACINGS


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["samplers", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys)
    assert [line.split()[0] for line in lines[1 : len(SOLVERS) + 1]] == list(SOLVERS)
    assert [line.split()[0] for line in lines[-len(SPACINGS) :]] == list(SPACINGS)
    row = next(line for line in lines if line.startswith("dpmpp_2m_sde "))
    start = lines[0].index("evaluations")
    assert "DPM++ 2M SDE" in row and row[start:].split()[:3] == ["1", "brownian", str(SOLVERS["dpmpp_2m_sde"].minimum)]
    assert all(line == line.rstrip() and len(line) < 240 for line in lines)


def test_a_word_of_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers", "dpmpp_4m"]) == 2
    assert "'dpmpp_4m' in its names: did you mean dpmpp_2m" in capsys.readouterr().err


def test_words_choose_by_any_engines_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[0] for line in told(capsys, "EulerAncestral")[1:-1]] == ["euler_a"]
    assert told(capsys, "SGM uni")[-1].split()[:3] == ["sgm_uniform", "SGM", "Uniform"]
    assert [line.split()[0] for line in told(capsys, "dpmpp_2m_sde_gpu")[1:-1]] == ["dpmpp_2m_sde"]
    assert [line.split()[:1] for line in told(capsys, "AlignYourSteps")[1:]] == [["align_your_steps"]]
    for words in (["DPM++ 2M Karras"], ["DPM++", "2M", "Karras"]):
        lines = told(capsys, *words)
        assert [lines[1].split()[0], lines[-1].split()[0]] == ["dpmpp_2m", "karras"]


@pytest.mark.parametrize("flags", [["--json"], ["--format", "json"], ["--format=json"]])
def test_objects(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    found = [json.loads(line) for line in told(capsys, *flags)]
    assert [each["name"] for each in found] == [*SOLVERS, *SPACINGS]
    euler_a = next(each for each in found if each["name"] == "euler_a")
    assert euler_a["kind"] == "sampler" and euler_a["stochastic"] is True and euler_a["a1111"] == "Euler a"
    assert next(each for each in found if each["name"] == "karras")["kind"] == "schedule"


def test_without_torch() -> None:
    code = "import sys; from ldm.commands import main; main(['samplers']); sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
