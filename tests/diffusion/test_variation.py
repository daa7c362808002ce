"""Variation seeds and seed resize: what is done to the first noise, as stable-diffusion-webui's `modules/rng.py` computes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ldm.diffusion import noise, philox, samplers, schedules
from ldm.diffusion.profiles import load_profile, override
from ldm.diffusion.variation import Variation, centred, slerp
from tests.diffusion.cases import A1111, COMFYUI, TABLE

LEVELS = schedules.sigmas("karras", 6, TABLE, COMFYUI, "euler")
IMAGE = (4, 8, 12)


def first(profile, seeds, variation, shape=IMAGE):
    return noise.make_noise(profile, seeds, shape, LEVELS, samplers.get("euler_a", profile), variation=variation)


def along_columns(strength, low, high):
    """The definition in float64, a column at a time: (C, h, w) of numpy."""
    out = np.empty_like(low)
    for channel, column in np.ndindex(low.shape[0], low.shape[2]):
        a, b = low[channel, :, column], high[channel, :, column]
        angle = math.acos(a @ b / math.sqrt((a @ a) * (b @ b)))
        out[channel, :, column] = (math.sin((1 - strength) * angle) * a + math.sin(strength * angle) * b) / math.sin(angle)
    return out


@pytest.mark.parametrize("strength", [0.05, 0.5, 0.93])
def test_between_two_seeds(strength):
    ours = first(A1111, [7, 7], Variation([90, 91], strength)).first().double().numpy()
    for k in range(2):
        low, high = (philox.randn(seed, 0, IMAGE).double().numpy() for seed in (7, 90 + k))
        assert np.abs(ours[k] - along_columns(strength, low, high)).max() < 2e-6


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
def test_the_ends_of_the_way_are_the_two_seeds(profile):
    own, other = (first(profile, [seed], None).first() for seed in (7, 90))
    assert torch.equal(first(profile, [7], Variation([90], 0.0)).first(), own)
    assert torch.allclose(first(profile, [7], Variation([90], 1.0)).first(), other, rtol=0, atol=1e-6)
    assert float(first(profile, [7], Variation([90], 0.5)).first().std()) == pytest.approx(1, abs=0.1)


def test_equal_parallel_and_opposed_noises_stay_finite():
    same = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(slerp(0.3, same, same), same, atol=1e-6)
    one_row = torch.randn(2, 1, 4, 1, 9, generator=torch.Generator().manual_seed(2))  # columns of one number are parallel or opposed
    assert slerp(0.3, *one_row).isfinite().all()


def test_what_follows_stays_that_of_the_seed():
    """The ancestral draws: A1111 goes on with the generators of the seeds."""
    varied, plain = first(A1111, [7], Variation([90], 0.7, (6, 6))), first(A1111, [7], None)
    assert not torch.equal(varied.first(), plain.first())
    for i in range(3):
        assert torch.equal(varied(i, LEVELS[i], LEVELS[i + 1]), plain(i, LEVELS[i], LEVELS[i + 1]))


def test_a_variation_does_not_depend_on_the_batch():
    both = first(COMFYUI, [3, 3], Variation([8, 9], 0.4)).first()
    assert torch.equal(both[1:], first(COMFYUI, [3], Variation([9], 0.4)).first())


# (inner, outer) side: where it begins on the outer one, where on the inner one, how much of it; floors as Python's.
@pytest.mark.parametrize(
    ("inner", "outer", "to", "since", "length"),
    [(8, 12, 2, 0, 8), (12, 8, 0, 2, 8), (8, 8, 0, 0, 8), (7, 12, 2, 0, 7), (13, 8, 0, 3, 7), (9, 8, 0, 1, 7)],
)
def test_the_middle(inner, outer, to, since, length):
    drawn, field = torch.arange(1.0, inner + 1), -torch.arange(1.0, outer + 1)
    expected = field.clone()
    expected[to : to + length] = drawn[since : since + length]
    assert torch.equal(centred(drawn.view(1, 1, 1, -1), field.view(1, 1, 1, -1)).flatten(), expected)
    assert torch.equal(centred(drawn.view(1, 1, -1, 1), field.view(1, 1, -1, 1)).flatten(), expected)


@pytest.mark.parametrize("size", [(6, 6), (16, 6), (20, 30)])
def test_noise_of_another_size(size):
    ours = first(A1111, [7], Variation(size=size)).first()
    small, field = philox.randn(7, 0, (1, 4, *size)), philox.randn(7, 0, (1, *IMAGE))
    assert torch.equal(ours, centred(small, field))
    varied = first(A1111, [7], Variation([90], 0.5, size)).first()
    assert torch.equal(varied, centred(slerp(0.5, small, philox.randn(90, 0, (1, 4, *size))), field))


def test_one_draw_for_a_batch():
    whole = override(COMFYUI, {"batch_noise": "one-draw"})
    ours = first(whole, [7, 7], Variation([90, 91], 0.5)).first()
    own, other = (torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(seed)) for seed in (7, 90))
    assert torch.equal(ours, slerp(0.5, own, other))


@pytest.mark.parametrize(("name", "sampler", "scaled"), [("a1111", "ddim", True), ("a1111", "euler", False), ("comfyui", "ddim", False)])
def test_a_list_that_ends_above_0(name, sampler, scaled):
    profile, x = load_profile(name), torch.full((1, 4, 2, 2), 3.0)
    assert torch.allclose(noise.leave(x, [2.0, 0.5], profile, sampler), x / math.sqrt(1.25) if scaled else x)
    assert torch.equal(noise.leave(x, [2.0, 0.0], profile, sampler), x)
