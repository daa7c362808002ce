"""The scripts that shells complete from: they are read by the shells themselves where those are there."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ldm.commands import VERBS, main
from ldm.options import KNOBS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_verb_and_flag_is_in_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in [*VERBS, *(flag.lstrip("-") for knob in KNOBS.values() for flag in knob.flags)]:
        assert word in script


def completed(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["completion", "bash"]) == 0
    words = line.split(" ")
    words_of = " ".join(map(repr, words))
    call = f"COMP_WORDS=({words_of}); COMP_CWORD={len(words) - 1}; _ldm; echo ${{COMPREPLY[@]}}"
    script = capsys.readouterr().out + call
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_verbs_flags_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert completed("ldm sam", capsys) == ["sample", "samplers"]
    assert completed("ldm sample --samp", capsys) == ["--sampler"]
    assert completed("ldm sample --sampler dpmpp_2m_", capsys) == ["dpmpp_2m_sde", "dpmpp_2m_sde_heun"]
    assert completed("ldm sample --type web", capsys) == ["webp"]
    assert completed("ldm sample --preset dr", capsys) == ["draft"]


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err
