"""`--from-image`: prompt files whose pictures are made again to the pixel, and what is said where something is not as it was."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm import pictures
from ldm.commands import main
from ldm.metadata import native
from ldm.resources import weights
from scripts import replay

QUICK = ["-s", "1", "--steps", "1", "-W", "64", "-H", "64", "--sampler", "euler"]
BOX = "ldm-emoji.safetensors"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))


def test_prompt_files_run_unchanged_and_their_pictures_are_made_again() -> None:
    figure = replay.replay(6)
    assert figure.good, figure


def test_the_files_of_the_experiment_have_every_option_that_people_write() -> None:
    options = {word for lines in replay.FILES.values() for line in lines(100) for word in line.split() if word.startswith("--")}
    short = "n w h d s l ss ow oh ct cl nw nh am t g nl f"
    long = "prompt negative_prompt width height seed steps cfg_scale sampler_name batch_size n_iter styles"
    assert {f"--{each}" for each in (*short.split(), *long.split())} <= options
    for lines in replay.FILES.values():
        assert sum(bool(line.strip()) and not line.startswith("#") for line in lines(100)) == 100
        assert {"", "   "} <= set(lines(100)) and any(line.startswith("#") for line in lines(100))


def test_a_picture_that_is_another_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_pixels", lambda path: path.name)
    assert not replay.replay(1).good


def made(name: str, **changes: Any) -> str:
    """A picture by the model in the box whose record says something else."""
    if not Path("one.png").exists():
        assert main(["sample", "-p", "a cat", "-o", "one.png", *QUICK, "-q"]) == 0
    record = native.read(pictures.read(Path("one.png")).texts[native.KEY])
    with Image.open("one.png") as picture:
        pictures.save(picture, Path(name), pictures.Marks(record=native.write(replace(record, **changes))))
    return name


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ldm: note: ") and " was made with " in line]


def test_where_nothing_differs_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--from-image", made("same.png"), "-o", "out.png"]) == 0
    assert main(["sample", "--from-image", made("bare.png", model_sha256=None), "-o", "out.png"]) == 0
    Path("renamed.safetensors").symlink_to(weights() / BOX)
    assert main(["sample", "--from-image", "same.png", "-m", "renamed.safetensors", "-o", "out.png"]) == 0
    assert notes(capsys) == []


def test_another_engine_is_one_note_that_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    made("old.png", version="0.0.9", torch="1.13.1+cu117", device="cuda:0")
    assert main(["sample", "--from-image", "old.png", "-o", "out.png", "--device", "cpu"]) == 0
    (note,) = notes(capsys)
    assert "made with ldm 0.0.9, torch 1.13.1+cu117, device cuda; here it is ldm 0." in note
    assert f"torch {torch.__version__}, device cpu" in note and "model" not in note


def test_another_model_is_taken_where_it_is_asked_for_and_refused_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    made("changed.png", model_sha256="ab" * 32)
    assert main(["sample", "--from-image", "changed.png", "-o", "out.png"]) == 2
    said = capsys.readouterr().err
    assert f"changed.png was made with {BOX} (sha256 ababababab), and " in said and "--model" in said and said.count("\n") == 1
    assert main(["sample", "--from-image", "changed.png", "-m", "ldm-emoji", "-o", "out.png"]) == 0
    (note,) = notes(capsys)
    assert f"made with model {BOX} (sha256 ababababab); here it is model {BOX} (sha256 " in note
    made("short.png", model="mine.safetensors", model_sha256=None)
    for more in ([], ["--no-hash"]):
        assert main(["sample", "--from-image", "short.png", "-m", "ldm-emoji", "-o", "out.png", *more]) == 0
        (note,) = notes(capsys)
        assert f"made with model mine.safetensors; here it is {BOX} (" in note


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "ldm-emojo.safetensors"}, ("made with a model that is not found", "did you mean ldm-emoji?", "--model takes another")),
        ({"vae": "nice.safetensors"}, ("made with a vae that is not found", "nice.safetensors", "--vae takes another")),
    ],
)
def test_a_file_that_is_absent_is_refused_with_near_names(changes: Any, said: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--from-image", made("gone.png", **changes), "-o", "out.png", "-q"]) == 2
    error = capsys.readouterr().err
    assert all(each in error for each in ("gone.png", *said)) and error.count("\n") == 1
    assert not Path("out.png").exists()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif"])
def test_any_prompt_makes_the_same_picture_again(suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = " 猫 🦊 e\u0301 \u2028\x85\t]]>&amp;\ufffe\nNegative prompt: x\nSteps: 1, Seed: 2, Size: 8x8 "
    assert main(["sample", "-p", prompt, "-n", "\ud7ff\U0010ffff", "-o", f"one.{suffix}", *QUICK]) == 0
    assert main(["sample", "--from-image", f"one.{suffix}", "-o", f"two.{suffix}"]) == 0
    assert Path(f"one.{suffix}").read_bytes() == Path(f"two.{suffix}").read_bytes()
    assert native.read(pictures.read(Path(f"two.{suffix}")).texts[native.KEY]).job.prompt == prompt
    assert notes(capsys) == []


def test_the_vae_s_dtype_is_its_own_and_comes_again() -> None:
    assert main(["sample", "-p", "a star", "-o", "plain.png", *QUICK]) == 0
    assert main(["sample", "-p", "a star", "-o", "half.png", "--vae-dtype", "bf16", *QUICK]) == 0
    assert main(["sample", "--from-image", "half.png", "-o", "again.png"]) == 0
    plain, half, again = (native.read(pictures.read(Path(f"{name}.png")).texts[native.KEY]) for name in ("plain", "half", "again"))
    assert (plain.dtype, plain.vae_dtype, half.dtype, half.vae_dtype) == ("float32", "float32", "float32", "bfloat16")
    assert again == half and Path("again.png").read_bytes() == Path("half.png").read_bytes() != Path("plain.png").read_bytes()


def test_what_a_jpeg_cannot_hold_is_said_and_makes_the_picture_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "-p", "a" + " " * 40_000 + "cat", "-o", "one.jpg", *QUICK]) == 0
    assert "one.jpg: a JPEG cannot hold parameters of 40" in capsys.readouterr().err
    assert main(["sample", "--from-image", "one.jpg", "-o", "two.jpg", "-q"]) == 0
    for suffix in ("jpg", "jpg.json"):
        old, new = (Path(f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
        assert old == new


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


VERIFY = ["sample", "-p", "x", "-o", "v.png", *QUICK, "--verify", "-m"]


@pytest.mark.parametrize("words", [VERIFY, ["info", "--verify"], ["info", "--hash"]])
def test_reading_a_whole_file_shows_a_bar(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    Path("e.safetensors").symlink_to(weights() / BOX)
    Path("e.safetensors.sha256").write_text(hashlib.sha256(Path("e.safetensors").read_bytes()).hexdigest())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([*words, "e.safetensors"]) == 0
    drawn = sys.stderr.getvalue()
    label = "verifying, loading" if words[0] == "sample" else "reading e.safetensors"
    shares = [int(share) for share in re.findall(rf"{label}: +([0-9]+)%", drawn)]
    starts = [at for at, share in enumerate(shares) if share == 0]
    assert len(starts) == (1 if words == ["info", "--verify"] else 2)  # verifying begins at nothing, and so does loading
    assert all(max(shares[start:end]) > 90 for start, end in zip(starts, [*starts[1:], len(shares)], strict=True))
