"""Guidance: one batch, the order of its rows, scale 1, and rescale against its paper's equations."""

from __future__ import annotations

import math

import pytest
import torch

from ldm.diffusion.guidance import Guidance
from tests.diffusion.cases import state


def watching(rows: torch.Tensor):
    """A denoiser whose rows have their own answer x * row; notes the batches it sees."""
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x * (rows if len(x) == len(rows) else rows[-len(x) :]).view(-1, 1, 1, 1)

    return denoise, seen


def test_one_batch_unconditional_rows_first():
    x = state(2, 4, 3, 3)
    denoise, seen = watching(torch.tensor([0.1, 0.2, 0.5, 0.7], dtype=torch.float64))
    guided = Guidance(denoise, 4.0)
    assert guided.uncond is None
    out = guided(x, 1.0)
    assert [len(batch) for batch in seen] == [4]
    expected = torch.tensor([0.1 + 4 * 0.4, 0.2 + 4 * 0.5], dtype=torch.float64).view(-1, 1, 1, 1) * x
    assert torch.allclose(out, expected, atol=1e-13)
    assert torch.equal(guided.uncond, seen[0][:2] * torch.tensor([0.1, 0.2], dtype=torch.float64).view(-1, 1, 1, 1))


def test_conditional_rows_first():
    x = state(1, 4, 3, 3)
    denoise, _ = watching(torch.tensor([0.5, 0.1], dtype=torch.float64))
    guided = Guidance(denoise, 3.0, order="cond-first")
    assert torch.allclose(guided(x, 1.0), x * (0.1 + 3 * 0.4), atol=1e-13)
    assert torch.allclose(guided.uncond, x * 0.1)


def test_scale_one_asks_for_the_condition_alone():
    x = state(2, 4, 3, 3)
    denoise, seen = watching(torch.tensor([0.1, 0.2, 0.5, 0.7], dtype=torch.float64))
    guided = Guidance(denoise, 1.0)
    assert torch.equal(guided(x, 1.0), x * torch.tensor([0.5, 0.7], dtype=torch.float64).view(-1, 1, 1, 1))
    assert [len(batch) for batch in seen] == [2] and guided.uncond is None


@pytest.mark.parametrize("amount", [0.3, 0.7, 1.0])
def test_rescale_is_the_papers_in_velocity(amount):
    x, sigma, scale = state(2, 4, 5, 5), 2.5, 7.5
    cos, sin = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    v_uncond, v_cond = state(2, 4, 5, 5, scale=0.3).flip(-1), state(2, 4, 5, 5, scale=0.4).flip(1)

    def x0(v):  # of a network that says v
        return x * cos**2 - v * sin

    out = Guidance(lambda batch, s: torch.cat([x0(v_uncond), x0(v_cond)]), scale, rescale=amount)(x, sigma)
    v = v_uncond + (v_cond - v_uncond) * scale
    for image in range(2):  # Lin et al. 2023, eq. 14 to 16
        rescaled = v[image] * (v_cond[image].std() / v[image].std())
        expected = amount * rescaled + (1 - amount) * v[image]
        assert torch.allclose(out[image], x[image] * cos**2 - expected * sin, atol=1e-12)


def test_full_rescale_keeps_the_conditions_spread():
    x, sigma = state(1, 4, 5, 5), 4.0
    cond, uncond = state(1, 4, 5, 5, scale=0.4), state(1, 4, 5, 5, scale=0.2).flip(2)
    out = Guidance(lambda batch, s: torch.cat([uncond, cond]), 9.0, rescale=1.0)(x, sigma)
    velocity = [x / (sigma**2 + 1) - x0 for x0 in (out, cond)]
    assert float(velocity[0].std()) == pytest.approx(float(velocity[1].std()), rel=1e-12)


@pytest.mark.parametrize("order", ["uncond-first", "cond-first"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_several_conditions_side_by_side(order, scale):
    x = state(2, 4, 3, 3)
    sides = {"uncond": (0.1, 0.2), "a": (0.5, 0.7), "b": (0.9, 0.3)}
    names = ["uncond", "a", "b"] if order == "uncond-first" else ["a", "b", "uncond"]
    denoise, seen = watching(torch.tensor([row for name in names for row in sides[name]], dtype=torch.float64))
    guided = Guidance(denoise, scale, weights=(0.8, -0.5), order=order)
    wanted = [u + scale * (0.8 * (a - u) - 0.5 * (b - u)) for u, a, b in zip(*sides.values(), strict=True)]
    assert torch.allclose(guided(x, 1.0), x * torch.tensor(wanted, dtype=torch.float64).view(-1, 1, 1, 1), atol=1e-13)
    assert [len(batch) for batch in seen] == [6]
    assert torch.allclose(guided.uncond, x * torch.tensor(sides["uncond"], dtype=torch.float64).view(-1, 1, 1, 1))


def test_one_condition_of_another_weight_is_another_scale():
    x = state(1, 4, 3, 3)
    denoise, _ = watching(torch.tensor([0.1, 0.5], dtype=torch.float64))
    assert torch.allclose(Guidance(denoise, 4.0, weights=(0.5,))(x, 1.0), Guidance(denoise, 2.0)(x, 1.0), atol=1e-13)


@pytest.mark.parametrize(("scale", "both"), [(4.0, False), (1.0, True), (1.0, False)])
def test_one_picture_of_several(scale, both):
    """`picture(k, count)` asks for the rows of that picture alone, in guidance's order, and answers as the whole would have."""
    x, factors = state(3, 4, 3, 3), torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6, 0.7], dtype=torch.float64)
    factors = factors if both or scale != 1 else factors[3:]

    class Rows:
        def __init__(self, factors):
            self.factors = factors

        def __call__(self, x, sigma):
            return x * self.factors.view(-1, 1, 1, 1)

        def rows(self, picked):
            return Rows(self.factors[list(picked)])

    guided = Guidance(Rows(factors), scale, both=both)
    whole = guided(x, 1.0)
    for k in range(3):
        alone = guided.picture(k, 3)
        assert torch.equal(alone(x[k : k + 1], 1.0), whole[k : k + 1])
        if both or scale != 1:
            assert torch.equal(alone.uncond, guided.uncond[k : k + 1])
    assert (guided.uncond is not None) == (both or scale != 1)


def test_denoisers_without_rows_take_any_number_of_them():
    guided = Guidance(lambda x, sigma: x * 0.5, 3.0)
    assert guided.picture(1, 4)(state(1, 4, 2, 2), 1.0).shape == (1, 4, 2, 2)
