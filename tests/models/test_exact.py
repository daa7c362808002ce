"""Whole networks: the fast operations together against their references, in float32, at tiny width and in the model in the box."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ldm
from ldm import ops
from ldm.measure import relative_error
from ldm.pipeline import Pipeline
from ldm.results import Result
from tests.models import cases
from tests.models.tiny import tiny

EXACT = 2e-6


@cache
def box() -> Pipeline:
    return ldm.load(device="cpu")


def far(run: Callable[[], Tensor]) -> float:
    """The relative error of the fast path."""
    with torch.no_grad():
        fast = run()
        with ops.reference():
            return relative_error(fast, run())


@pytest.mark.parametrize("name", cases.FAMILIES)
@pytest.mark.parametrize("empty", [False, True], ids=["text", "empty"])
def test_the_unet(name: str, empty: bool) -> None:
    family = tiny(name)
    network, given = cases.unet(family), cases.inputs(family)
    context, vector = given["context"].clone(), torch.randn(2, family.unet.vector_dim, generator=torch.Generator().manual_seed(1))
    context[0] *= not empty
    assert far(lambda: network(given["x"], network.prepare(context, vector, [cases.T]), 0)) < EXACT


@pytest.mark.parametrize("name", cases.FAMILIES)
def test_the_vae(name: str) -> None:
    network, given = cases.vae(tiny(name)), cases.inputs(tiny(name))
    assert far(lambda: network.decode(given["z"])) < EXACT
    assert far(lambda: network.encode(given["image"])[0]) < EXACT


def test_the_towers() -> None:
    family = tiny("sdxl-base")
    ids = cases.inputs(family)["ids"]
    for tower in cases.towers(family):
        assert far(lambda tower=tower: tower(ids).penultimate) < EXACT  # type: ignore[misc]


@pytest.mark.parametrize("size", [(16, 16), (13, 17)], ids=["128x128", "odd"])
def test_the_model_in_the_box(size: tuple[int, int]) -> None:
    pipeline, random = box(), torch.Generator().manual_seed(2)
    unet, x = pipeline.unet, torch.randn(2, 4, *size, generator=random)
    vector = torch.randn(2, unet.shape.vector_dim, generator=random)
    context = torch.randn(2, 77, unet.shape.context_dim, generator=random)
    assert far(lambda: unet(x, unet.prepare(context, vector, [500.0]), 0)) < EXACT
    assert far(lambda: pipeline.vae.decode(x[:1])) < EXACT


def test_pictures_are_nearer_to_the_plain_path_than_half_precision_is() -> None:
    """End to end, in float32 and in bfloat16: what the exact tier changes is less than what bfloat16 does.

    In bfloat16 it errs at most twice as much as the plain path, over several pictures: of one the rounding of many steps decides.
    """
    pipelines = {"float32": box(), "bfloat16": ldm.load(device="cpu", dtype="bfloat16")}
    squares = []
    for seed in (3, 4, 5, 6):
        job: Any = {"width": 64, "height": 64, "steps": 6, "seed": seed}
        made: list[Result] = []
        for pipeline in pipelines.values():
            made.append(pipeline.generate("a red apple", **job))
            with ops.reference():
                made.append(pipeline.generate("a red apple", **job))
        fast, plain, half, plain_half = made
        allowed = relative_error(plain_half.latents, plain.latents)
        assert 1e-3 < allowed < 0.1
        assert relative_error(fast.latents, plain.latents) < 1e-3 * allowed
        one, two, judge = (np.asarray(each.images[0], np.float64) for each in (fast, plain_half, plain))
        assert np.abs(one - judge).max() <= 1 and np.square(one - judge).mean() < np.square(two - judge).mean()
        squares.append((relative_error(half.latents, plain.latents) ** 2, allowed**2))
    ours, theirs = np.sqrt(np.mean(squares, axis=0))
    assert ours <= 2 * theirs
