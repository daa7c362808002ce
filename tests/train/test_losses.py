"""Every loss against a computation of its own, and one whole step of the UNet's stage."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.train import losses, towers
from ldm.train.recipe import Recipe
from ldm.train.tune import TuneTask
from ldm.train.unet import initialise, unet_task
from ldm.train.words import run
from tests.train.conftest import made_pictures


def made_task(family: Family, recipe: Recipe) -> TuneTask:
    torch.manual_seed(7)
    unet, towers = UNet(family.unet), [CLIPText(shape) for shape in family.towers]
    initialise(unet)
    return unet_task(family, unet, towers, made_pictures(), recipe)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("weighting", ["none", "min-snr", "debiased"])
def test_one_step_equals_its_formulas(
    family: Family, recipe: Recipe, prediction: Literal["epsilon", "v"], weighting: losses.Weighting
) -> None:
    family = Family.from_dict({**family.to_dict(), "prediction": prediction})
    recipe = Recipe.from_dict({**recipe.to_dict(), "unet": {**recipe.unet.to_dict(), "weighting": weighting}})
    task = made_task(family, recipe)
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)  # from the betas of the paper
    with torch.no_grad():
        task.unet.get_parameter("out.2.weight").normal_(generator=torch.Generator().manual_seed(0))
    task.loss(3)[0].backward()
    got = [p.grad.clone() for p in task.module.parameters() if p.grad is not None]
    value = float(task.loss(3)[0].detach())
    task.module.zero_grad()
    wanted = by_hand(task, 3, alphas)
    wanted.backward()
    want = [p.grad for p in task.module.parameters() if p.grad is not None]
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert sum((a - b).square().sum() for a, b in zip(got, want, strict=True)) <= 1e-10 * sum(b.square().sum() for b in want)


def by_hand(task: TuneTask, step: int, alphas: np.ndarray) -> torch.Tensor:
    """The same step, one picture at a time: sqrt(a) z + sqrt(1 - a) noise through the generating path, prepare and forward."""
    loss, data, epsilon = task.recipe.loss, task.data, task.family.prediction == "epsilon"
    random = torch.Generator().manual_seed(task.recipe.seed * 1_000_003 + step)
    rows = [data.rows[at] for at in task.batches.rows(step)]
    shape = (len(rows), *data.z[rows[0]].shape)
    noises = torch.randn(shape, generator=random) + task.recipe.noise.offset * torch.randn(*shape[:2], 1, 1, generator=random)
    ts = torch.randint(1000, (len(rows),), generator=random).tolist()
    dropped = (torch.rand(len(rows), generator=random) < loss.dropout).tolist()
    total = torch.zeros(())
    for row, noise, t, drop in zip(rows, noises, ts, dropped, strict=True):
        a, z = float(alphas[t]), data.z[row]
        numbers = torch.cat([harmonics(float(n), task.family.size_embedding) for n in data.numbers[row]])
        context, pooled = run(task.words.towers, ["" if drop else data.captions[row]])
        assert pooled is not None
        prepared = task.unet.prepare(context.detach(), torch.cat([pooled.detach(), numbers[None]], dim=1), [float(t)])
        predicted = task.unet((a**0.5 * z + (1 - a) ** 0.5 * noise)[None], prepared, 0)[0]
        wanted = noise if epsilon else a**0.5 * noise - (1 - a) ** 0.5 * z
        snr = a / (1 - a)
        own = 1 / snr if epsilon else 1 - a  # what brings the squared error to that of the latents, divided by SNR
        weight = {"none": 1.0, "min-snr": min(snr, loss.gamma) * own, "debiased": snr**0.5 * own}[loss.weighting]
        total = total + weight * (predicted - wanted).square().mean() / len(rows)
    return total


def harmonics(number: float, dim: int) -> torch.Tensor:
    angles = [number * 10000 ** (-i / (dim // 2)) for i in range(dim // 2)]
    return torch.tensor([np.cos(angle) for angle in angles] + [np.sin(angle) for angle in angles], dtype=torch.float32)


def test_contrastive_loss_is_the_mean_of_both_cross_entropies() -> None:
    random = np.random.default_rng(0)
    pictures, captions = random.normal(size=(2, 5, 7))
    logits = 3.0 * np.array([[p @ c / np.linalg.norm(p) / np.linalg.norm(c) for c in captions] for p in pictures])
    rows = [np.log(np.exp(logits[k]).sum()) - logits[k, k] for k in range(5)]
    columns = [np.log(np.exp(logits[:, k]).sum()) - logits[k, k] for k in range(5)]
    got = losses.contrastive_loss(torch.tensor(pictures), torch.tensor(captions), torch.tensor(3.0))
    assert float(got) == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, rel=1e-5)


def test_contrastive_loss_and_its_gradients_are_open_clips() -> None:
    theirs = pytest.importorskip("open_clip.loss").ClipLoss()
    random = torch.Generator().manual_seed(2)
    given = [torch.randn(6, 9, generator=random), torch.randn(6, 9, generator=random), torch.tensor(7.0)]
    ours, other = ([each.clone().requires_grad_() for each in given] for _ in range(2))
    got = losses.contrastive_loss(*ours)
    wanted = theirs(torch.nn.functional.normalize(other[0], dim=-1), torch.nn.functional.normalize(other[1], dim=-1), other[2])
    assert abs(float(got.detach()) - float(wanted.detach())) <= 1e-6 * float(wanted.detach())
    for one, two in zip(torch.autograd.grad(got, ours), torch.autograd.grad(wanted, other), strict=True):
        assert (one - two).norm() <= 1e-6 * two.norm()


def test_the_scale_of_likenesses_comes_back_from_its_limit_as_open_clip_s_does() -> None:
    """Four steps that push it beyond ln 100, then four back; open_clip clamps the parameter after each step, where no gradient is taken."""
    theirs = pytest.importorskip("open_clip.loss").ClipLoss()
    random = torch.Generator().manual_seed(2)
    pictures = torch.nn.functional.normalize(torch.randn(6, 9, generator=random), dim=-1)
    captions = pictures.roll(1, 0)
    courses = []
    for own in (True, False):
        scale = torch.nn.Parameter(torch.tensor([4.5]))
        optimizer, course = torch.optim.SGD([scale], lr=0.01), list[float]()
        for step in range(8):
            loss = towers.agreement([pictures], [captions], scale)[0] if own else theirs(pictures, captions, scale.exp()[0])
            course.append(float(scale.detach().exp()))  # of the loss
            optimizer.zero_grad()
            (loss * (-1 if step < 4 else 1)).backward()
            optimizer.step()
            if not own:
                with torch.no_grad():
                    scale.clamp_(0, np.log(100))
        courses.append(course)
    assert courses[0] == pytest.approx(courses[1], rel=1e-5)
    assert sum(each == pytest.approx(100) for each in courses[0]) > 2 and courses[0][-1] < 50


def test_kl_loss_is_that_of_two_normals() -> None:
    mean, logvar = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(torch.zeros(()), torch.ones(()))).mean()
    assert torch.allclose(losses.kl_loss(mean, logvar), wanted, rtol=1e-5)


def test_gradient_loss_sees_edges_and_not_brightness() -> None:
    image = torch.zeros(1, 1, 2, 3)
    assert float(losses.gradient_loss(image + 0.5, image)) == 0.0
    edge = image.clone()
    edge[..., 0] = 1.0
    assert float(losses.gradient_loss(edge, image)) == pytest.approx(0.5)  # of four horizontal differences, two are 1


def test_v_and_x_give_the_latents_back() -> None:
    z, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.03, 1.0, 14.0])
    s = sigma.view(-1, 1, 1, 1)
    x, v = losses.noised(z, noise, sigma), losses.target(z, noise, sigma, "v")
    assert torch.allclose((x - s * v) / (1 + s**2).sqrt(), z, atol=1e-5)


def test_a_pseudo_huber_loss_is_the_square_near_zero_and_a_line_far_off() -> None:
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1)
    for difference, huber, wanted in ((0.01, 100.0, 1e-4), (0.01, 1.0, 1e-4), (1000.0, 0.5, 1000.0 - 0.5), (0.75, 1.0, 0.5)):
        assert float(losses.diffusion_loss(zero + difference, zero, one, huber)) == pytest.approx(wanted, rel=1e-3)
