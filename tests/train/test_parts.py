"""The VAE and the text towers of a loaded model, trained on one's own pictures: they learn, resume, and are exported alone."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import ldm
from ldm.catalogue import find
from ldm.checkpoint.safetensors import Header, read_header
from ldm.checkpoint.writer import save, tensor_items
from ldm.commands.progress import Bar
from ldm.commands.train import Screen
from ldm.errors import InputError
from ldm.pipeline import Pipeline
from ldm.train.loop import Limits, train
from ldm.train.recipe import Optim, PicturesRecipe
from ldm.train.reconstructing import Windows, WindowsTask
from ldm.train.running import Run, start, write
from ldm.train.sources import Found, collect
from ldm.train.tune import TowersRecipe, TuneRecipe, WindowsRecipe

OPTIM = Optim(steps=4, batch=3, lr=1e-3, warmup=1, final=0.1, weight_decay=0.01, clip=1.0, ema=0.9)
PICTURES = PicturesRecipe(64, 16)
WINDOWS = WindowsRecipe(32)


@pytest.fixture(scope="module")
def box() -> Pipeline:
    return ldm.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Pictures whose pixels say where they are: red counts columns, green rows."""
    path = tmp_path_factory.mktemp("pictures")
    for k, (width, height) in enumerate([(64, 64), (64, 64), (100, 60), (20, 80)]):
        across, down = np.meshgrid(np.arange(width), np.arange(height))
        Image.fromarray(np.stack([across, down, np.full_like(down, 60 * k)], -1).astype(np.uint8)).save(path / f"{k}.png")
        (path / f"{k}.txt").write_text(f"thing {k}, red, round")
    (path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return collect(path)


def recipe(part: str, **changed: Any) -> TuneRecipe:
    values: dict[str, Any] = {"train": part, "seed": 1, "precision": "float32", "pictures": PICTURES, "optim": OPTIM}
    return TuneRecipe(**values | ({"vae": WINDOWS} if part == "vae" else {}) | changed)


def started(box: Pipeline, found: Found, folder: Path, made: TuneRecipe, *, resume: bool = False) -> Run:
    parts = copy.deepcopy(box.unet), copy.deepcopy(box.vae), [copy.deepcopy(tower) for tower in box.towers]
    return start(Pipeline(box.family, *parts, source=box.source), made, found, folder, resume=resume, limits=Limits())


def test_windows_lie_anywhere_in_pictures_of_one_bucket(found: Found) -> None:
    said: list[str] = []
    made = Windows(found, recipe("vae"), 32, said.append)
    assert len(made.skipped) == 1 and "1 of 5 pictures are left out:" in said
    again, seen = Windows(found, recipe("vae"), 32, said.append), set()
    for step in range(60):
        batch, none = made.batch(step)
        assert np.array_equal(batch, again.batch(step)[0]) and not none
        assert batch.shape[1:] in {(32, 32, 3), (32, 16, 3)}
        seen |= {(each[0, 0, 0], each[0, 0, 1]) for each in batch if each[0, 0, 2] < 2}  # of the first, which is not scaled
        for each in batch:
            if each[0, 0, 2] < 2:
                assert np.array_equal(each[..., 0], each[0, 0, 0] + np.arange(32)[None].repeat(32, 0))
    lefts = [left for left, _ in seen]
    assert min(lefts) < 8 and max(lefts) > 24 and len(seen) > 15
    (found.examples[0].path.parent / "0.png").rename(found.examples[0].path.parent / "away")
    try:
        lost = [made.batch(step)[1] for step in range(4) if len(made.batch(step)[0]) < len(again.batches.rows(step))]
    finally:
        (found.examples[0].path.parent / "away").rename(found.examples[0].path)
    assert lost and all("0.png" in line for lines in lost for line in lines)
    assert said[:2] == ["opening pictures: 0/5", "opening pictures: 5/5"]


def test_processes_make_batches_and_the_run_itself_speaks(
    box: Pipeline, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    shutil.copytree(found.examples[0].path.parent, tmp_path / "in")
    task = WindowsTask(box.family, copy.deepcopy(box.vae), collect(tmp_path / "in"), recipe("vae"), WINDOWS, screen.say)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Bar("vae", False, 3, long=True) as screen.bar:
        assert screen.bar.bar is not None
        batch = pickle.loads(pickle.dumps(task.data.batch))  # as a process is given it that is not forked
        (tmp_path / "in" / "0.png").unlink()
        capsys.readouterr()
        lost = next(step for step in range(4) if batch(step)[1])
        assert not capsys.readouterr().err
        assert np.array_equal(batch(lost)[0], task.batch(lost))
        assert f"left out of batch {lost}: " in capsys.readouterr().err


CASES = [
    recipe("vae"),
    recipe("vae", vae=replace(WINDOWS, part="decoder")),
    recipe("towers", towers=TowersRecipe(alone=1)),
]


@pytest.mark.parametrize("made", CASES, ids=["vae", "decoder", "towers"])
def test_a_run_learns_and_goes_on_to_the_bit(box: Pipeline, found: Found, tmp_path: Path, made: TuneRecipe) -> None:
    whole = started(box, found, tmp_path / "whole", made)
    train(whole.trainer, Limits())
    part = started(box, found, tmp_path / "part", made)
    part.trainer.advance()
    part.trainer.advance()
    part.trainer.save()
    with pytest.raises(InputError, match="--resume"):
        started(box, found, tmp_path / "part", made)
    rest = started(box, found, tmp_path / "part", made, resume=True)
    assert rest.trainer.step == 2
    train(rest.trainer, Limits())
    states = [run.task.module.state_dict() for run in (whole, rest)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(whole.trainer.ema.mean[name], rest.trainer.ema.mean[name]) for name in states[0])


@pytest.mark.parametrize("made", CASES, ids=["vae", "decoder", "towers"])
def test_the_file_has_the_trained_part_and_all_else_to_the_byte(box: Pipeline, found: Found, tmp_path: Path, made: TuneRecipe) -> None:
    run, base = started(box, found, tmp_path / "run", made), read_header(find(None))
    train(run.trainer, Limits())
    write(run, base, tmp_path / "new.safetensors")
    new = read_header(tmp_path / "new.safetensors")
    assert new.tensors.keys() == base.tensors.keys()
    assert all((new.tensors[name].dtype, new.tensors[name].shape) == (entry.dtype, entry.shape) for name, entry in base.tensors.items())
    ours, old = bytes_of(new), bytes_of(base)
    changed = {name for name in base.tensors if ours[name] != old[name]}
    trained = ("first_stage_model.",) if made.train == "vae" else ("conditioner.embedders.",)
    assert changed and all(name.startswith(trained) for name in changed)
    if made.vae is not None and made.vae.part == "decoder":
        assert all(".decoder." in name or ".post_quant_conv." in name for name in changed)
    again = ldm.load(tmp_path / "new.safetensors", device="cpu", dtype="float32")
    mean = {name: value.half().float() for name, value in run.trainer.ema.mean.items()}
    loaded: dict[str, Tensor] = again.vae.state_dict()
    if made.train == "towers":
        loaded = {f"towers.{i}.{name}": value for i, tower in enumerate(again.towers) for name, value in tower.state_dict().items()}
        assert {name.partition(".")[0] for name in mean.keys() - loaded.keys()} == {"picture", "heads", "logit_scale"}
    assert all(torch.equal(loaded[name], mean[name]) for name in loaded)
    assert again.generate("thing 1", width=32, height=32, steps=1, seed=1).images[0].size == (32, 32)


def test_a_projection_of_another_spelling_is_replaced_too(box: Pipeline, found: Found, tmp_path: Path) -> None:
    """As ComfyUI saves it: transposed, as a Linear's weight."""
    name, tensors = "conditioner.embedders.1.model.text_projection", load_file(find(None))
    tensors[f"{name}.weight"] = tensors.pop(name).T.contiguous()
    base = read_header(save(tmp_path / "base.safetensors", tensor_items(tensors), read_header(find(None)).metadata))
    run = started(box, found, tmp_path / "run", CASES[2])
    write(run, base, tmp_path / "new.safetensors")
    new = read_header(tmp_path / "new.safetensors").tensors
    assert new.keys() == base.tensors.keys() - {f"{name}.weight"} | {name} and new[name].dtype == "F16"


def bytes_of(header: Header) -> dict[str, bytes]:
    data = header.path.read_bytes()
    return {name: data[entry.start : entry.end] for name, entry in header.tensors.items()}


def test_the_vae_comes_nearer_to_its_pictures(box: Pipeline, found: Found, tmp_path: Path) -> None:
    run = started(box, found, tmp_path, recipe("vae", optim=replace(OPTIM, steps=20, lr=3e-4)))
    before = [float(run.task.loss(1000 + k)[0].detach()) for k in range(4)]
    train(run.trainer, Limits())
    after = [float(run.task.loss(1000 + k)[0].detach()) for k in range(4)]
    assert sum(after) < 0.9 * sum(before)


def test_towers_learn_whose_caption_it_is_and_the_picture_encoder_first(box: Pipeline, found: Found, tmp_path: Path) -> None:
    made = recipe("towers", towers=TowersRecipe(alone=4), optim=replace(OPTIM, steps=30, batch=4, weight_decay=0.1))
    run = started(box, found, tmp_path, made)
    before = {name: value.clone() for name, value in run.task.module.state_dict().items()}
    first = run.trainer.advance()
    for _ in range(3):
        run.trainer.advance()
    moved = {name.partition(".")[0] for name, value in run.task.module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"picture", "logit_scale"}
    run.trainer.advance()
    moved = {name.partition(".")[0] for name, value in run.task.module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"picture", "logit_scale", "towers", "heads"}
    while run.trainer.step < 30:
        last = run.trainer.advance()
    assert last["loss"] < 0.2 * first["loss"] and last["agree"] == 1.0
    assert run.trainer.task.module.picture.training  # type: ignore[union-attr]


def test_pictures_of_all_buckets_are_in_one_batch_in_their_order(box: Pipeline, found: Found, tmp_path: Path) -> None:
    run = started(box, found, tmp_path, recipe("towers"))
    task: Any = run.task
    rows = [0, 2, 3, 1]
    together, alone = task.features(rows), [task.features([row]) for row in rows]
    for tower, features in enumerate(together):
        expected = torch.cat([each[tower] for each in alone])
        assert (features - expected).norm() < 1e-5 * expected.norm()


def test_what_cannot_be_trained_so_is_refused(box: Pipeline, found: Found, tmp_path: Path) -> None:
    for given, message in (
        (lambda: recipe("towers", optim=replace(OPTIM, batch=1)), "batch above 1"),
        (lambda: recipe("vae", vae=None), r"table \[vae\]"),
        (lambda: recipe("towers", vae=WINDOWS), r"table \[vae\]"),
        (lambda: recipe("vae", checkpointing=True), "checkpointing.*train = 'vae'"),
        (lambda: recipe("unet", towers=TowersRecipe(3)), "towers.*train = 'unet'"),
        (lambda: WindowsRecipe(4), "crop"),
        (lambda: started(box, found, tmp_path, recipe("vae", vae=WindowsRecipe(36))), r"vae\.crop 36"),
    ):
        with pytest.raises(InputError, match=message):
            given()
    alone = Found(examples=found.examples[:1])
    with pytest.raises(InputError, match="one picture alone"):
        started(box, alone, tmp_path, recipe("towers"))


def test_zero_terminal_snr_goes_with_the_model_and_into_its_samples(box: Pipeline, found: Found, tmp_path: Path) -> None:
    told = read_header(find(None)).metadata
    family = json.loads(told["ldm.family"]) | {"prediction": "v"}
    base = save(tmp_path / "base.safetensors", tensor_items(load_file(find(None))), {**told, "ldm.family": json.dumps(family)})
    pipeline = ldm.load(base, device="cpu", dtype="float32")
    assert not pipeline.family.zero_terminal
    made = TuneRecipe("unet", 1, "float32", PICTURES, OPTIM, zero_terminal=True)
    run = start(pipeline, made, found, tmp_path / "run", resume=False, limits=Limits())
    assert run.pipeline.family.zero_terminal
    write(run, read_header(base), tmp_path / "new.safetensors")
    again = ldm.load(tmp_path / "new.safetensors", device="cpu", dtype="float32")
    assert (again.family.prediction, again.family.zero_terminal) == ("v", True)
    write(run, read_header(tmp_path / "new.safetensors"), tmp_path / "newer.safetensors")  # has the mark already
