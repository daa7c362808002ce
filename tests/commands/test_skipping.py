"""`--skip-existing` and `--resume`: which pictures count as there, after runs of one job as after runs of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.commands import main

QUICK = ["--steps", "1", "-W", "64", "-H", "64", "--sampler", "euler", "--no-hash", "-q"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The paths that a run prints."""
    capsys.readouterr()
    assert main(["sample", *words, *QUICK]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(("flag", "batch"), [("--skip-existing", "1"), ("--resume", "2")])
def test_a_single_job_is_known_by_the_manifest(flag: str, batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-p", "a cat", "-s", "4", "-b", batch, "-o", "out"]
    assert len(made(capsys, *words)) == int(batch)
    assert len(Path("out/manifest.jsonl").read_text().splitlines()) == int(batch)
    assert made(capsys, *words, flag) == []
    assert len(made(capsys, *words, "--crop", "8,8", flag)) == int(batch)  # another picture
    for path in Path("out").glob("*.png"):
        path.unlink()
    assert len(made(capsys, *words, flag)) == int(batch)
    assert [each.name for each in Path("out").iterdir() if each.name.startswith(".")] == []


def test_a_random_seed_is_one_job() -> None:
    for _ in range(2):
        assert main(["sample", "-p", "a cat", "-o", "out", "--skip-existing", *QUICK]) == 0
    assert len(list(Path("out").glob("*.png"))) == 1


def test_a_file_that_is_there_is_left_and_no_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-p", "a cat", "-s", "4", "-o", "out/a.png", "--skip-existing"]
    assert made(capsys, *words) == ["out/a.png"]
    first = Path("out/a.png").read_bytes()
    assert made(capsys, *words, "--cfg", "2") == []
    assert main(["sample", *words, *QUICK[:-1]]) == 0
    assert capsys.readouterr().err == "out/a.png is there: nothing is made\n"
    assert [each.name for each in Path("out").iterdir()] == ["a.png"] and Path("out/a.png").read_bytes() == first
    for more in (["-b", "2"], ["-s", "1,2"]):
        assert main(["sample", *words[:2], "-o", "out/a.png", "--skip-existing", *more, *QUICK]) == 2
        assert "--skip-existing of 2 pictures with the file out/a.png: give -o a folder" in capsys.readouterr().err


def test_a_picture_of_the_name_asked_for_is_skipped_and_made_by_resume(capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.txt").write_text("a cat --f cats/tom --d 1,2\na dog --f rex.v2 --d 1\na fox --d 3\n")
    words = ["--from-file", "jobs.txt", "-o", "out"]
    assert len(made(capsys, *words)) == 4
    Path("out/manifest.jsonl").unlink()
    Path("out/cats/tom-1.png").unlink()
    first, last = made(capsys, *words, "--skip-existing")
    assert first == "out/cats/tom-1.png" and last.endswith("-3.png")  # the last one has no name of its own
    assert made(capsys, *words, "--skip-existing") == []
    assert len(made(capsys, *words, "--resume")) == 2  # it goes by the manifest alone


def test_a_pattern_asks_for_a_name_where_it_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-p", "a cat", "-o", "out", "--name", "{sampler}-{cfg:.1f}-{seed}"]
    assert made(capsys, *words, "-s", "1,2") == ["out/euler-4.0-1.png", "out/euler-4.0-2.png"]
    Path("out/manifest.jsonl").write_text("")
    assert made(capsys, *words, "-s", "1-3", "--skip-existing") == ["out/euler-4.0-3.png"]
    assert len(made(capsys, *words[:-1], "{index}-{seed}", "-s", "1", "--skip-existing")) == 1
    lines = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [3, 1]
