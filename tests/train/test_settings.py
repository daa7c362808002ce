"""Every setting reaches the step of a real run: what the network is given, what is asked of it, and what becomes of the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.pipeline import Pipeline
from ldm.text.conditioning import fourier
from ldm.train.data import Composer
from ldm.train.loop import Limits, Trainer
from ldm.train.noising import Noising
from ldm.train.recipe import Optim, PicturesRecipe, Precision, Recipe
from ldm.train.running import Run, start
from ldm.train.sources import collect
from ldm.train.stages import run_stage, stage_trainer
from ldm.train.tune import LossRecipe, TuneRecipe, TuneTask, WindowsRecipe
from ldm.train.unet import unet_task
from ldm.train.vae import Reconstruction, vae_task
from ldm.train.words import run as read
from tests.train.conftest import changed, made_pictures

OPTIM = Optim(steps=4, batch=2, lr=1e-3, warmup=1, final=0.1, weight_decay=0.0, clip=1.0, ema=0.9)
SIZES = {(64, 64): 1, (70, 64): 1, (64, 75): 1, (48, 90): 1, (32, 40): 2}  # (height, width), and by how much a bucket enlarges them
Values = dict[str, Any]


def slope(size: tuple[int, int]) -> int:
    """Of red across and of green down, a pixel."""
    return 240 // max(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures whose pixels say where they are."""
    path = tmp_path / "pictures"
    path.mkdir()
    for k, (height, width) in enumerate(SIZES):
        across, down = np.meshgrid(np.arange(width) * slope((height, width)), np.arange(height) * slope((height, width)))
        Image.fromarray(np.stack([across, down, np.full_like(down, 50 * k)], -1).astype(np.uint8)).save(path / f"{k}.png")
        (path / f"{k}.txt").write_text(f"thing number {k}")
    return path


@pytest.fixture
def begun(family: Family, folder: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run of a tiny model, with a family's and a recipe's values changed."""

    def start_one(of_family: Values | None = None, **of_recipe: Any) -> Run:
        torch.manual_seed(7)
        own = Family.from_dict(family.to_dict() | (of_family or {}))
        model = Pipeline(own, UNet(own.unet), VAE(own.vae), [CLIPText(shape) for shape in own.towers], source="tiny")
        values: Values = {
            "train": "unet",
            "seed": 1,
            "precision": "float32",
            "pictures": PicturesRecipe(64, 16),
            "optim": OPTIM,
        } | of_recipe
        return start(model, TuneRecipe(**values), collect(folder), tmp_path / "run", resume=False, limits=Limits())

    return start_one


@dataclass
class Step:
    """One step's loss, what the network was given for it, and what it said."""

    rows: list[int]
    value: float
    given: tuple[Tensor, Tensor, Tensor, Tensor]  # x, t, context and vector
    predicted: Tensor


def taken(task: Any, step: int) -> Step:
    own, calls = task.unet.denoise, list[Any]()
    task.unet.denoise = lambda *given: calls.append((given, own(*given))) or calls[-1][1]  # type: ignore[func-returns-value]
    try:
        value = float(task.loss(step)[0].detach())
    finally:
        del task.unet.denoise
    ((given, predicted),) = calls
    return Step([task.data.rows[at] for at in task.batches.rows(step)], value, given, predicted.detach())


def test_size_crop_and_bucket_of_each_picture_reach_the_network_as_they_were(
    begun: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crop from the pixels that the VAE was given, whatever was written down."""
    encoded, own = list[Tensor](), VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, image: encoded.append(image[0]) or own(self, image))  # type: ignore[func-returns-value]
    task: Any = begun(optim=replace(OPTIM, batch=1)).task
    wanted = []
    for (size, scale), image in zip(SIZES.items(), encoded, strict=True):
        at = ((image[:2, 8, 8] + 1) * 127.5 / slope(size) + 0.5) * scale - 0.5  # away from the edge, where a scaled picture is no ramp
        left, top = (round(each) - 8 for each in at.tolist())
        wanted.append((*size, top, left, *image.shape[1:]))
    assert {place[4:] for place in wanted} == {(64, 64), (48, 80)}
    assert any(place[2] for place in wanted) and all(place[3] for place in wanted[2:])
    seen, wide = set(), task.family.size_embedding
    for step in range(task.batches.steps):
        found = taken(task, step)
        (row,), (x, _, _, vector) = found.rows, found.given
        assert tuple(8 * side for side in x.shape[2:]) == wanted[row][4:]
        torch.testing.assert_close(vector[:, -6 * wide :], fourier(torch.tensor([wanted[row]], dtype=torch.float32), wide), rtol=0, atol=0)
        seen.add(row)
    assert seen == set(range(len(SIZES)))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_products_are_of_the_recipe_s_precision_and_the_state_is_float32(
    precision: Precision, dtype: torch.dtype, begun: Callable[..., Run]
) -> None:
    run = begun(precision=precision)
    kinds: dict[str, torch.dtype] = {}
    for name, layer in run.pipeline.unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out, name=name: kinds.update({name: out.dtype}))
    before = [value.clone() for value in run.task.module.parameters()]
    for _ in range(3):
        assert math.isfinite(run.trainer.advance()["loss"])
    assert len(kinds) > 20 and set(kinds.values()) == {dtype}
    trainer = run.trainer
    assert any(not torch.equal(one, other) for one, other in zip(before, run.task.module.parameters(), strict=True))
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in [*run.task.module.parameters(), *trainer.ema.mean.values(), *moments]} == {torch.float32}
    assert run.task.loss(0)[0].dtype == torch.float32
    assert trainer.scaler.is_enabled() == (precision == "float16")


LOSSES: dict[str, tuple[LossRecipe, Noising]] = {
    "square": (LossRecipe(), Noising()),
    "huber": (LossRecipe(huber=0.3), Noising()),
    "min-snr": (LossRecipe("min-snr", gamma=0.01), Noising()),
    "debiased": (LossRecipe("debiased"), Noising()),
    "offset": (LossRecipe(), Noising(offset=0.4)),
    "perturbation": (LossRecipe(), Noising(perturbation=0.3)),
}


def levels(zero_terminal: bool) -> np.ndarray:
    """The share of the picture's variance by step; Lin et al. 2023, algorithm 1, for those that end in noise alone."""
    roots = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    return np.asarray(((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1]) if zero_terminal else roots) ** 2)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", LOSSES)
def test_noise_and_loss_are_the_recipe_s(name: str, prediction: str, begun: Callable[..., Run]) -> None:
    loss, noising = LOSSES[name]
    task: Any = begun({"prediction": prediction}, loss=loss, noise=noising).task
    for step in range(2):
        found, random = taken(task, step), torch.Generator().manual_seed(1_000_003 + step)
        x, t = found.given[:2]
        a, z = torch.tensor(levels(False)[t.long().numpy()]).float(), torch.stack([task.data.z[row] for row in found.rows])
        plain = torch.randn(x.shape, generator=random)
        more = torch.randn(*x.shape[:2], *((1, 1) if noising.offset else x.shape[2:]), generator=random)
        wanted = plain + noising.offset * more
        held = wanted + noising.perturbation * more
        share = a.view(-1, 1, 1, 1)
        torch.testing.assert_close(x, share.sqrt() * z + (1 - share).sqrt() * held, rtol=1e-4, atol=1e-4)
        aim = wanted if prediction == "epsilon" else share.sqrt() * wanted - (1 - share).sqrt() * z
        squares = (found.predicted - aim).square()
        if loss.huber:
            squares = 2 * loss.huber * ((squares + loss.huber**2).sqrt() - loss.huber)
        snr = a / (1 - a)
        own = 1 / snr if prediction == "epsilon" else 1 - a
        weight = {"none": 1 + 0 * snr, "min-snr": snr.clamp(max=loss.gamma) * own, "debiased": snr.sqrt() * own}[loss.weighting]
        assert found.value == pytest.approx(float((squares.mean((1, 2, 3)) * weight).mean()), rel=1e-4)


@pytest.mark.parametrize("zero_terminal", ["family", "recipe", "neither"])
def test_levels_that_end_in_noise_alone_are_trained_where_they_are_asked_for(zero_terminal: str, begun: Callable[..., Run]) -> None:
    """By the task itself: `start` tells the family too."""
    run = begun({"prediction": "v", "zero_terminal": zero_terminal == "family"})
    recipe = replace(run.recipe, zero_terminal=zero_terminal == "recipe")
    old: Any = run.task
    task: Any = TuneTask(run.pipeline.family, run.pipeline.unet, run.pipeline.towers, old.data, recipe)
    late = 0.0
    for step in range(12):
        found = taken(task, step)
        x, t = found.given[:2]
        shares = torch.tensor(levels(zero_terminal != "neither")[t.long().numpy()]).float().view(-1, 1, 1, 1)
        z = torch.stack([task.data.z[row] for row in found.rows])
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1_000_003 + step))
        torch.testing.assert_close(x, shares.sqrt() * z + (1 - shares).sqrt() * noise, rtol=1e-4, atol=2e-4)
        late = max(late, float(t.max()))
    assert late > 950  # where the two differ by much
    if zero_terminal != "neither":
        assert float(task.sigmas[-1]) > 1000


def test_a_dropped_caption_is_the_empty_one_with_the_picture_s_own_numbers(begun: Callable[..., Run]) -> None:
    task: Any = begun(loss=LossRecipe(dropout=0.5)).task
    context, pooled = read(task.words.towers, ["", *task.data.captions])
    assert pooled is not None
    dropped, wide = list[bool](), task.family.size_embedding
    for step in range(8):
        found = taken(task, step)
        for row, words, vector in zip(found.rows, found.given[2], found.given[3], strict=True):
            torch.testing.assert_close(vector[-6 * wide :], fourier(task.data.numbers[[row]], wide)[0], rtol=0, atol=0)
            far = [(words - context[at]).norm() + (vector[: -6 * wide] - pooled[at]).norm() for at in (0, row + 1)]
            assert min(far) < 1e-4 < 1e-2 < max(far)
            dropped.append(bool(far[0] < far[1]))
    assert 0.2 < np.mean(dropped) < 0.8


def test_every_part_of_a_vae_s_loss_has_the_recipe_s_weight(
    family: Family, recipe: Recipe, composer: Composer, begun: Callable[..., Run]
) -> None:
    torch.manual_seed(7)
    stage = Recipe.from_dict(changed(recipe.to_dict(), {"vae.gradient": 3.0, "vae.kl": 0.5}))
    tuned = begun(train="vae", vae=WindowsRecipe(32, gradient=3.0, kl=0.5)).task
    for task in (vae_task(VAE(family.vae), composer, stage), tuned):
        assert isinstance(task, Reconstruction)
        value, parts = task.loss(0)
        assert parts["gradient"] > 0.01 and parts["kl"] > 0.01
        assert float(value.detach()) == pytest.approx(parts["l1"] + 3.0 * parts["gradient"] + 0.5 * parts["kl"], rel=1e-5)


def test_the_stage_of_a_new_unet_has_the_settings_of_a_tuning_run(family: Family, recipe: Recipe) -> None:
    settings = {"pyramid": 0.3, "perturbation": 0.2, "huber": 0.1, "checkpointing": True, "offset": 0.4, "dropout": 0.25, "gamma": 2.0}
    made = Recipe.from_dict(changed(recipe.to_dict(), {f"unet.{key}": value for key, value in settings.items()}))
    task = unet_task(family, UNet(family.unet), [CLIPText(shape) for shape in family.towers], made_pictures(), made)
    assert task.recipe.noise == Noising(0.4, 0.3, 0.2)
    assert task.recipe.loss == LossRecipe(recipe.unet.weighting, 2.0, 0.1, 0.25)
    assert task.recipe.checkpointing and "forward" in vars(task.unet.input_blocks[1][0])  # type: ignore[index]


def test_a_stage_s_state_is_split_and_its_loss_scaled_as_asked(family: Family, recipe: Recipe, composer: Composer, tmp_path: Path) -> None:
    optim = {"vae.optim.steps": 2}
    run_stage("vae", Recipe.from_dict(changed(recipe.to_dict(), optim)), composer, tmp_path / "one", resume=False, limits=Limits())
    made = Recipe.from_dict(changed(recipe.to_dict(), {**optim, "precision": "float16"}))
    limits = Limits(shard=2**16)
    run_stage("vae", made, composer, tmp_path / "two", resume=False, limits=limits)
    files = [sorted((tmp_path / name / "vae").glob("state-*.safetensors")) for name in ("one", "two")]
    assert len(files[0]) == 1 and len(files[1]) > 2
    again = stage_trainer("vae", made, composer, tmp_path / "two", resume=True, limits=limits)
    assert again.step == 2 and again.scaler.is_enabled()


class Steep:
    """A loss whose gradient is 100 a value."""

    def __init__(self) -> None:
        self.module: nn.Module = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(self.module.get_parameter("weight"))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        return 100 * self.module.get_parameter("weight").sum(), {}


def test_gradients_are_clipped_to_the_recipe_s_norm() -> None:
    for clip, norm in ((0.5, 0.5), (1e9, 100 * 3**0.5)):
        trainer = Trainer(Steep(), replace(OPTIM, clip=clip), Path("unused"))
        assert trainer.advance()["norm"] == pytest.approx(100 * 3**0.5)  # as it was
        (state,) = trainer.optimizer.state.values()
        assert float(state["exp_avg"].norm()) == pytest.approx(0.1 * norm, rel=1e-4)  # AdamW's first moment, 1 - 0.9 of it


def test_the_moving_average_decays_as_the_recipe_says() -> None:
    trainer, wanted = Trainer(Steep(), replace(OPTIM, ema=0.05), Path("unused")), torch.zeros(1, 3)
    for _ in range(3):
        trainer.advance()
        wanted = 0.05 * wanted + 0.95 * trainer.task.module.get_parameter("weight").detach()
    torch.testing.assert_close(trainer.ema.mean["weight"], wanted)
