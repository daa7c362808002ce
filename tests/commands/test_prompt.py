"""`ldm prompt`: what it says of a prompt, in both formats, and what it refuses; torch is not imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ldm.commands import main


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["prompt", *words]) == 0
    return capsys.readouterr().out


def test_human(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "a (red:1.3) [cat|dog] BREAK b AND c :0.5", "-n", "blur", "--profile", "a1111", "--steps", "4").splitlines()
    assert lines[0].startswith("profile a1111: syntax a1111, weighting scale-mean, chunking comma-20")
    assert lines[1:] == [
        "prompt, part 1 of 2, weight 1",
        "  calls 0-1, 3: a (red:1.3) cat BREAK b",
        "  both towers: 4 tokens in 2 chunks",
        "    1: 3 tokens: a | red [1.3] | cat",
        "    2: 1 token: b",
        "  calls 2: a (red:1.3) dog BREAK b",
        "  both towers: 4 tokens in 2 chunks",
        "    1: 3 tokens: a | red [1.3] | dog",
        "    2: 1 token: b",
        "prompt, part 2 of 2, weight 0.5",
        "  both towers: 1 token in 1 chunk",
        "    1: 1 token: c",
        "negative",
        "  both towers: 1 token in 1 chunk",
        "    1: 1 token: blur",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(said(capsys, "a (cat:1.5)", "--prompt-2", "a dog", "--format", "json"))
    (part,) = facts["prompt"]["parts"]
    assert (facts["profile"], facts["weighting"], facts["calls"], part["weight"]) == ("comfyui", "interpolate-empty", 20, 1.0)
    assert part["schedule"] == [{"from": 0, "to": 19, "text": 0}]
    towers = part["texts"][0]
    assert [token["weight"] for token in towers["CLIP-L"]["chunks"][0]] == [1.0, 1.5]
    assert [token["text"].strip() for token in towers["bigG"]["chunks"][0]] == ["a", "dog"]
    assert "negative" not in facts


def test_what_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "a " * 75 + "red apple", "--profile", "sgm")
    assert "75 tokens in 1 chunk" in out
    assert "cut: 2 tokens: red apple" in out


def test_choices_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    made = {said(capsys, "{red|blue}", "--seed", str(seed)).splitlines()[-1].split(": ")[-1] for seed in range(12)}
    assert made == {"red", "blue"}
    assert "{ red | blue }" in said(capsys, "{red|blue}", "--set", "choices=literal")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a (b:11)"], "prompt: column 4: weight 11"),
        (["a", "--profile", "a111"], "a1111"),
        (["a", "--set", "weighting=x"], "weighting"),
        (["a", "--steps", "0"], "--steps 0"),
        (["a\ud800"], "not UTF-8"),
        (["a", "-n", "(" * 99], "negative: column 51"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_torch_is_not_imported() -> None:
    code = "import sys; from ldm.commands import main; code = main(['prompt', 'a (cat:1.2)']); sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
