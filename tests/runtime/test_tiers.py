"""Tiers: which UNet runs, where a tier is refused, and that one job's tier never changes another's picture."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ldm
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.runtime import quantise as quantising
from ldm.runtime import tiers
from ldm.runtime.tiers import Tiers, check

CUDA = torch.device("cuda")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that were asked to be quantised; the answer is another object each time."""
    asked: list[Any] = []

    def quantise(unet: Any, kind: str) -> Any:
        assert kind == "fp8"
        asked.append(unet)
        return SimpleNamespace()

    monkeypatch.setattr(tiers, "check", lambda speed, device: None)
    monkeypatch.setattr(quantising, "quantise", quantise)
    return asked


def test_fp8_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = "take --speed exact or approx"
    for speed in ("exact", "approx"):
        check(speed, torch.device("cpu"))
    with pytest.raises(InputError, match=f"NVIDIA GPU of compute capability 8.9 or higher: this run is on cpu: {remedy}") as caught:
        check("fp8", torch.device("cpu"))
    assert caught.value.code == "E8001" and caught.value.exit_code == 2
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InputError, match=f"NVIDIA A100 has 8.0: {remedy}"):
        check("fp8", CUDA)
    for capability in ((8, 9), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, given=capability: given)
        check("fp8", CUDA)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(InputError, match="this run is on cuda"):
        check("fp8", CUDA)


def test_the_reduced_network_is_made_once_and_the_own_one_stays(made: list[Any]) -> None:
    own: Any = nn.Linear(2, 2)
    held = Tiers()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(held.unet, own), ["fp8", "exact", "approx"] * 8))
    assert all(each is own for each in found[1::3] + found[2::3])
    assert found[0] is not own and all(each is found[0] for each in found[::3])
    assert made == [own]
    held.forget()
    assert held.unet(own, "fp8") is not found[0]
    assert len(made) == 2


def test_a_pipeline_asks_for_its_tier_and_forgets_what_was_made_of_weights_that_moved(made: list[Any]) -> None:
    pipeline = ldm.load(device="cpu")
    first = pipeline._tiers.unet(pipeline.unet, "fp8")
    pipeline.to(dtype="bfloat16")
    assert pipeline._tiers.unet(pipeline.unet, "fp8") is not first
    assert made == [pipeline.unet] * 2
    pipeline.unet = copy.deepcopy(pipeline.unet)
    assert pipeline._tiers.unet(pipeline.unet, "fp8") is not first
    assert made[-1] is pipeline.unet and len(made) == 3


def test_weights_that_a_lora_moved_are_quantised_again(made: list[Any]) -> None:
    own: Any = nn.Linear(2, 2).requires_grad_(False)
    held = Tiers()
    first = held.unet(own, "fp8")
    own.weight.copy_(own.weight + 1)
    second = held.unet(own, "fp8")
    own.bias = nn.Parameter(torch.ones(2), requires_grad=False)
    third = held.unet(own, "fp8")
    assert first is not second and third is not second and held.unet(own, "fp8") is third and len(made) == 3


def test_fp8_is_near_the_exact_tier_and_leaves_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its reference, on the CPU."""
    monkeypatch.setattr(tiers, "check", lambda speed, device: None)
    pipeline = ldm.load(device="cpu")
    before, reduced, after = (
        pipeline.generate("a red apple", seed=1, steps=6, width=64, height=64, speed=speed) for speed in ("exact", "fp8", "exact")
    )
    assert torch.equal(before.latents, after.latents)
    assert 0 < relative_error(reduced.latents, before.latents) < 0.15 and reduced.job.speed == "fp8"


def test_generate_refuses_before_it_samples() -> None:
    with pytest.raises(InputError, match="speed fp8 needs"):
        ldm.load(device="cpu").generate("a red apple", steps=2, speed="fp8")
    with pytest.raises(InputError, match="speed 'aprox' is not known: did you mean approx"):
        ldm.load(device="cpu").generate("a red apple", steps=2, speed="aprox")
