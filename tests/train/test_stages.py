"""Stages of a new model: from nothing, or from another model's weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.errors import InputError
from ldm.models.shapes import Family, load_family
from ldm.models.vae import VAE
from ldm.options import Job
from ldm.train.cache import PICTURES, pictures
from ldm.train.data import Composer
from ldm.train.export import export
from ldm.train.loop import Limits, Trainer
from ldm.train.recipe import Recipe
from ldm.train.stages import Place, run_stage, sampled, stage_trainer
from ldm.train.watching import Grids


@pytest.fixture
def warm(trained: Path, recipe: Recipe, tmp_path: Path) -> ldm.Pipeline:
    export(recipe, trained, tmp_path / "model.safetensors")
    return ldm.load(tmp_path / "model.safetensors", device="cpu", dtype="float32")


@pytest.mark.parametrize("stage", ["vae", "towers", "unet"])
def test_a_warm_start_has_the_model_s_weights_in_module_and_mean(
    stage: str, warm: ldm.Pipeline, trained: Path, family: Family, recipe: Recipe, composer: Composer, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    for before in ("vae", "towers"):
        shutil.copytree(trained / before, out / before)
    shutil.rmtree(out / stage, ignore_errors=True)

    def begun(place: Place) -> Trainer:
        return stage_trainer(stage, recipe, composer, out, resume=False, limits=Limits(), place=place)

    trainer, cold = begun(Place(torch.device("cpu"), warm)), begun(Place(torch.device("cpu")))
    networks = {"vae": {"": warm.vae}, "unet": {"": warm.unet}, "towers": {f"towers.{i}.": tower for i, tower in enumerate(warm.towers)}}
    for prefix, network in networks[stage].items():
        for name, value in network.state_dict().items():
            assert torch.equal(trainer.task.module.state_dict()[prefix + name], value), name
            assert torch.equal(trainer.ema.mean[prefix + name], value), name
    mine, others = trainer.task.module.state_dict(), cold.task.module.state_dict()
    assert any(not torch.equal(mine[name], others[name]) for name in mine)
    assert trainer.step == 0


@pytest.mark.parametrize("stage", ["vae", "towers", "unet"])
def test_a_warm_start_from_another_family_is_refused(
    stage: str, trained: Path, recipe: Recipe, composer: Composer, tmp_path: Path, family: Family
) -> None:
    out = tmp_path / "again"
    for before in ("vae", "towers"):
        shutil.copytree(trained / before, out / before)
    shutil.rmtree(out / stage, ignore_errors=True)
    box = ldm.load(device="cpu", dtype="float32")
    with pytest.raises(InputError, match="of another family"):
        stage_trainer(stage, recipe, composer, out, resume=False, limits=Limits(), place=Place(torch.device("cpu"), box))


def test_stages_that_were_not_built_on_each_other_are_refused(trained: Path, recipe: Recipe, composer: Composer, tmp_path: Path) -> None:
    """A VAE that is trained further leaves the later stages with the latents of the old one."""
    longer = replace(recipe, vae=replace(recipe.vae, optim=replace(recipe.vae.optim, steps=8)))
    assert run_stage("vae", longer, composer, trained, resume=True, limits=Limits()) == 8
    encoded = (trained / "pictures.safetensors").read_bytes()
    for stage in ("towers", "unet"):
        with pytest.raises(InputError, match=f"{stage}/state-00000006.json: built on another VAE.*remove its folder"):
            run_stage(stage, longer, composer, trained, resume=True, limits=Limits())
    with pytest.raises(InputError, match=r"towers/state-00000006\.json: built on another VAE"):
        export(longer, trained, tmp_path / "a.safetensors")
    assert (trained / "pictures.safetensors").read_bytes() == encoded  # nothing was made for what is refused
    shutil.rmtree(trained / "unet")
    with pytest.raises(InputError, match=r"towers/state-00000006\.json: built on another VAE"):  # not after the whole of its training
        run_stage("unet", longer, composer, trained, resume=True, limits=Limits())
    shutil.rmtree(trained / "towers")
    for stage in ("towers", "unet"):
        run_stage(stage, longer, composer, trained, resume=True, limits=Limits())
    export(longer, trained, tmp_path / "a.safetensors")


def test_samples_on_the_way_are_those_of_the_model_to_be(
    trained: Path, recipe: Recipe, composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the VAE, the towers, the scale and the moving average that are exported, the UNet itself left as it was."""
    trainer = stage_trainer("unet", recipe, composer, trained, resume=True, limits=Limits())
    own = {name: value.clone() for name, value in trainer.task.module.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr("ldm.train.cache.whole", lambda _: pytest.fail("read again"))
        run = sampled(trainer, recipe, trained)
    Grids(run, [Job("a circle", seed=3, steps=2)], 6, lambda _: None)(trainer, {})
    export(recipe, trained, tmp_path / "model.safetensors")
    model = ldm.load(tmp_path / "model.safetensors", device="cpu", dtype="float32")
    wanted = np.asarray(model.generate("a circle", seed=3, steps=2).images[0], dtype=float)
    shown = np.asarray(Image.open(trained / "unet" / "samples" / "00000006.png"), dtype=float)
    assert np.abs(shown - wanted).max() <= 2 and wanted.std() > 3  # in 255; the file is in F16
    assert all(torch.equal(value, own[name]) for name, value in trainer.task.module.state_dict().items())
    with run.averaged() as pipeline:
        assert not all(torch.equal(value, own[name]) for name, value in pipeline.unet.state_dict().items())
    with pytest.raises(InputError, match="only the stage unet"):
        sampled(stage_trainer("vae", recipe, composer, trained, resume=True, limits=Limits()), recipe, trained)


def test_pictures_of_another_vae_are_encoded_again_where_the_stages_fit(
    trained: Path, recipe: Recipe, composer: Composer, tmp_path: Path
) -> None:
    vae = VAE(load_family("emoji").vae)
    said: list[str] = []
    pictures(trained / PICTURES, composer, vae, "float32", 0, said.append)
    assert said == ["encoding pictures: 0/16", "encoding pictures: 16/16"]
    with pytest.raises(InputError, match="go on with the stage 'unet'"):
        export(recipe, trained, tmp_path / "a.safetensors")
    run_stage("unet", recipe, composer, trained, resume=True, limits=Limits())
    export(recipe, trained, tmp_path / "a.safetensors")
