"""`ldm train`: a LoRA and a whole UNet from the shipped recipes, written as files that load, interrupted, gone on with, and reported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

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
from ldm.commands.train import parser, samples
from ldm.resources import configs
from tests import things

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
    text = (configs() / "train" / f"{name}.toml").read_text().replace("bfloat16", "float32")
    less = {"size": 64, "crop": 16, "pictures": 4, "batch": 2, "steps": steps}
    path = tmp_path / f"{name}.toml"
    path.write_text(re.sub(rf"(?m)^({'|'.join(less)}) = \d+", lambda found: f"{found[1]} = {less[found[1]]}", text))
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
    assert "encoding pictures: 0/4\nencoding pictures: 4/4\n" in said and "encoding captions: 0/4\nencoding captions: 4/4\n" in said
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
    assert "of another model: " in capsys.readouterr().err
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
        (["--data", "/absent"], "/absent: no such file or folder"),
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
    assert "exists: choose another name or add --overwrite" in capsys.readouterr().err and file.read_bytes() == b"precious"
    assert not (tmp_path / "run").exists()
    assert main(words(tmp_path, "lora", "--export", str(file), "--overwrite", steps=1)) == 0
    assert len(read_lora(file)) > 20


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("lora", "--export x.ckpt", "the name must end in .safetensors"),
        ("lora", "--export absent/x.safetensors", "there is no folder absent"),
        ("lora", "--every 5", "--every: it counts for --samples: leave it out"),
        ("lora", "--overwrite", "--overwrite: it counts for --export: leave it out"),
        ("lora", "--out pictures/red.png/run", "pictures/red.png is not a folder: choose another with --out"),
        ("lora", "--out pictures/red.png", "pictures/red.png is not a folder: choose another with --out"),
        ("emoji", "--stage vae --out pictures/red.png/run", "pictures/red.png is not a folder: choose another with --out"),
        ("emoji", "--stage unet --export x.safetensors", "--export: one stage is no model"),
        ("emoji", "--stage towers --samples p.txt", "--samples: the stage towers makes no pictures"),
        ("emoji", "--export x.safetensors --minutes 0", "--minutes: without --stage nothing is trained: leave it out"),
        ("emoji", "--export x.safetensors --resume", "--resume: without --stage"),
        ("emoji", "--export x.safetensors --data pictures", "--data: without --stage"),
        ("emoji", "--export x.safetensors -m FILE", "--model: without --stage"),
        ("emoji", "--export x.safetensors --shard-mib 5", "--shard-mib: without --stage"),
        ("emoji", "--export x.safetensors --tensorboard", "--tensorboard: without --stage"),
        ("emoji", "--export x.safetensors --device nonsense", "--device: without --stage nothing is trained: leave it out"),
        ("emoji", "--export x.safetensors --models-dir .", "--models-dir: without --stage"),
        ("emoji", "", "nothing to do: give --stage"),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_what_has_no_effect_or_no_place_is_refused_before_a_model_is_loaded(
    name: str, more: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm.pipeline.load", lambda *_, **__: pytest.fail("a model is loaded"))
    assert main(["train", str(recipe(tmp_path, name)), "--out", "run", *more.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", f"{name}.toml"}


@pytest.mark.parametrize(
    ("name", "key", "more"), [("lora", "train", ""), ("lora", "train", "--minutes 0"), ("emoji", "family", "--stage vae")]
)
@pytest.mark.usefixtures("pictures")
def test_a_recipe_without_the_key_that_tells_its_kind(
    name: str, key: str, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(tmp_path, name, *more.split())
    (tmp_path / f"{name}.toml").write_text(re.sub(rf"(?m)^{key} = .*\n", "", (tmp_path / f"{name}.toml").read_text()))
    assert main(given) == 2
    assert f"{name}.toml: missing key '{key}'" in capsys.readouterr().err


@pytest.mark.usefixtures("pictures")
def test_where_the_time_is_over_before_a_step_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--resume",)):
        assert main(words(tmp_path, "vae", "--minutes", "1e-6", *more)) == 0
        said = capsys.readouterr().err
        assert "opening pictures: 0/4\nopening pictures: 4/4\n" in said
        last = f"no step was made: the 1e-06 minutes were over before: give more --minutes\nstep 0 of 3: {tmp_path / 'run' / 'tune'}\n"
        assert said.endswith(last)
    assert main(words(tmp_path, "vae", "--minutes", "0", "--resume")) == 0
    assert "no step was made" not in capsys.readouterr().err


def test_grids_differ_by_the_weights_alone(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo --d -1\nthree --d 7\n")
    options = parser().parse_args(["x.toml", "--out", "run", "--samples", str(tmp_path / "p.txt")])
    assert [job.seed for job in samples(options, 5)] == [5, 5, 7]


class Writer:
    """As TensorBoard's."""

    told: ClassVar[dict[str, list[int]]] = {}

    def __init__(self, folder: str) -> None:
        self.steps = self.told.setdefault(Path(folder).name, [])

    def add_scalar(self, name: str, _value: float, step: int) -> None:
        self.steps += [step] if name == "loss" else []

    def flush(self) -> None:
        pass


def test_stages_are_watched_as_other_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tensorboard: Any = ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setattr(Writer, "told", {})
    (tmp_path / "things").mkdir()
    things.write(tmp_path / "things")
    (tmp_path / "prompts.txt").write_text("a red disc --w 64 --h 64 --s 1\n")
    run = ["train", str(recipe(tmp_path, "emoji")), "--data", str(tmp_path / "things"), "--out", str(tmp_path / "run"), "--tensorboard"]
    for stage in ("vae", "towers"):
        assert main([*run, "--stage", stage]) == 0
        assert capsys.readouterr().err.endswith(f"step 3 of 3: {tmp_path / 'run' / stage}\n")
    assert main([*run, "--stage", "unet", "--samples", str(tmp_path / "prompts.txt"), "--every", "2"]) == 0
    assert "encoding captions: 0/" in capsys.readouterr().err
    assert Writer.told == {stage: [1, 2, 3] for stage in ("vae", "towers", "unet")}
    assert [path.stem for path in sorted((tmp_path / "run" / "unet" / "samples").glob("*.png"))] == ["00000002", "00000003"]
    assert main(["train", "report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert re.findall(r"<h2>(\w+): 3 steps", page) == ["towers", "unet", "vae"] and page.count("<img src='data:image/png") == 2


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "report", str(tmp_path)]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
