"""`ldm train`: a LoRA and a whole UNet from the shipped recipes, written as files that load, interrupted, gone on with, and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ldm
from ldm import resources
from ldm.checkpoint.lora import merge, read_lora
from ldm.checkpoint.writer import HASH
from ldm.commands import main
from ldm.resources import configs

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (20, 160, 40)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (130 + 40 * k, 130), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a plain {name} sheet")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


def recipe(tmp_path: Path, name: str, steps: int = 3) -> Path:
    """A shipped recipe, cut to a few small steps in float32."""
    text = (configs() / "train" / f"{name}.toml").read_text()
    for old, new in (("bfloat16", "float32"), ("size = 128", "size = 64"), ("batch = 8", "batch = 2"), ("batch = 16", "batch = 2")):
        text = text.replace(old, new)
    lines = [f"steps = {steps}" if line.startswith("steps = ") else line for line in text.splitlines()]
    path = tmp_path / f"{name}.toml"
    path.write_text("\n".join(lines))
    return path


def words(tmp_path: Path, name: str, *more: str, steps: int = 3) -> list[str]:
    return ["train", str(recipe(tmp_path, name, steps)), "--data", str(tmp_path / "pictures"), "--out", str(tmp_path / "run"), *more]


@pytest.mark.usefixtures("pictures")
def test_a_lora_is_written_as_others_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, prompts = tmp_path / "sheet.safetensors", tmp_path / "prompts.txt"
    prompts.write_text("a plain red sheet --w 64 --h 64 --s 2 --d 1\na plain blue sheet --w 64 --h 64 --s 2 --d 1\n")
    assert main(words(tmp_path, "lora", "--export", str(file), "--samples", str(prompts), "--every", "2")) == 0
    said = capsys.readouterr().err
    assert "1 of 4 pictures are left out" in said and "broken.jpg" in said
    with safe_open(file, "pt") as opened:
        told = opened.metadata()
    assert (told["ss_network_module"], told["ss_network_dim"], told["ss_steps"]) == ("networks.lora", "8", "3")
    assert json.loads(told["ss_tag_frequency"])["pictures"]["a plain red sheet"] == 1
    pipeline = ldm.load(device="cpu", dtype="float32")
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    merge(read_lora(file), pipeline.unet, pipeline.towers)
    assert any(not torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    grids = sorted((tmp_path / "run" / "tune" / "samples").glob("*.png"))
    assert [path.stem for path in grids] == ["00000002", "00000003"]
    assert Image.open(grids[0]).size == (132, 64)
    assert main(["train", "report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "loss:" in page and page.count("<img src='data:image/png") == 2 and "http" not in page


@pytest.mark.usefixtures("pictures")
def test_a_tuned_model_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "tuned.safetensors"
    assert main(words(tmp_path, "finetune", "--export", str(file), "--shard-mib", "16")) == 0
    assert len(list((tmp_path / "run" / "tune").glob("state-00000003-*-of-*.safetensors"))) > 3
    tuned, box = (ldm.load(path, device="cpu", dtype="float32") for path in (file, None))
    assert tuned.family == box.family
    for one, other, same in ((tuned.vae, box.vae, True), (tuned.towers[1], box.towers[1], True), (tuned.unet, box.unet, False)):
        equal = [torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()]
        assert all(equal) == same
    assert tuned.generate("a red apple", seed=1, steps=2).images[0].size == (128, 128)


@pytest.mark.parametrize("name", ["vae", "towers"])
@pytest.mark.usefixtures("pictures")
def test_the_other_recipes_make_models_too(name: str, tmp_path: Path) -> None:
    file = tmp_path / "new.safetensors"
    assert main(words(tmp_path, name, "--export", str(file), steps=2)) == 0
    new, box = (ldm.load(path, device="cpu", dtype="float32") for path in (file, None))
    moved = {"vae": (new.vae, box.vae), "towers": (new.towers[0], box.towers[0])}
    for part, (one, other) in moved.items():
        equal = all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
        assert equal == (part != name or name == "towers")  # the recipe's picture encoder learns alone for more steps than these
    assert new.generate("a red apple", seed=1, steps=1).images[0].size == (128, 128)


def tuned(folder: Path) -> Path:
    """The model in the box with one value moved."""
    tensors = load_file(resources.weights() / "ldm-emoji.safetensors")
    with safe_open(resources.weights() / "ldm-emoji.safetensors", "pt") as box:
        told = box.metadata()
    tensors["model.diffusion_model.out.2.bias"][0] += 1
    save_file(tensors, folder / "other.safetensors", {key: value for key, value in told.items() if key != HASH})
    return folder / "other.safetensors"


@pytest.mark.usefixtures("pictures")
def test_what_cannot_be_shown_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, "lora", "--samples", str(tmp_path / "absent.txt"))) == 2
    assert "absent.txt" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("pictures")
def test_a_run_goes_on_only_as_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, "lora", "--minutes", "0")) == 0
    assert main(words(tmp_path, "lora")) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert main([*words(tmp_path, "lora", "--resume"), "-m", str(tuned(tmp_path))]) == 2
    assert "of another recipe, model or data" in capsys.readouterr().err
    assert main(words(tmp_path, "lora", "--resume")) == 0
    assert "step 3 of 3" in capsys.readouterr().err
    assert main(words(tmp_path, "lora", "--resume", steps=4)) == 0
    assert "step 4 of 4" in capsys.readouterr().err


@pytest.mark.usefixtures("pictures")
def test_a_signal_saves_the_state_and_says_where(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ldm.train", *words(tmp_path, "lora", steps=100_000)[1:]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored in what a shell runs in the background
    rest = process.stderr.read()
    assert process.wait() == 143
    assert "terminated at step" in rest and "continue with --resume" in rest
    step = int(rest.split("terminated at step ")[1].split(":")[0])
    assert (tmp_path / "run" / "tune" / f"state-{step:08}.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--stage", "unet"], "this recipe has no stages"),
        (["--data", "/absent"], "no pictures to train on"),
        (["-m", "absent"], "absent"),
        (["--device", "gpu"], "device 'gpu' is not known"),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(tmp_path, "lora"), *more]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.usefixtures("pictures")
def test_a_file_that_exists_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"precious")
    assert main(words(tmp_path, "lora", "--export", str(file), steps=1)) == 2
    assert "exists already" in capsys.readouterr().err and file.read_bytes() == b"precious"
    assert not (tmp_path / "run").exists()
    assert main(words(tmp_path, "lora", "--export", str(file), "--overwrite", steps=1)) == 0
    assert len(read_lora(file)) > 20


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "report", str(tmp_path)]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
