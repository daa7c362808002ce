"""Noise drawn ahead: the same bits, whatever was foreseen, and no thread left."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ldm
from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.samplers import SAMPLERS
from ldm.runtime import ahead
from ldm.runtime.ahead import Ahead, Ask
from scripts import synthetic
from tests.diffusion.cases import A1111, COMFYUI, TABLE, final, mixture

LEVELS = schedules.sigmas("karras", 6, TABLE, COMFYUI, "euler")
PROFILES = {"comfyui": COMFYUI, "a1111": A1111}


def make(name: str, profile: str = "comfyui") -> noise.Noise:
    return noise.make_noise(PROFILES[profile], [5, 6], (4, 8, 8), LEVELS, samplers.get(name, PROFILES[profile]))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if not SAMPLERS[name].adaptive])
def test_what_a_sampler_will_ask_is_known_before(name: str, profile: str) -> None:
    """Every ask of a real run was foreseen, in its order, and the run ends at the same bits."""
    sampler = samplers.get(name, PROFILES[profile])
    asked: list[Ask] = []
    random, x = make(name, profile), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * LEVELS[0]

    def listening(*ask: int) -> Tensor:
        asked.append(ask)
        return random(*ask)

    wanted = final(sampler.run, mixture, x, LEVELS, listening)
    foreseen = samplers.asked(sampler, LEVELS)
    assert foreseen == asked and bool(asked) == (sampler.stochastic and name != "restart")  # whose way back up takes more steps
    with Ahead(make(name, profile).draw, foreseen) as drawn:
        assert torch.equal(final(sampler.run, mixture, x, LEVELS, make(name, profile).drawn_by(drawn)), wanted)


def test_nothing_is_foreseen_of_an_adaptive_one() -> None:
    assert samplers.asked(samplers.get("dpm_adaptive", A1111), LEVELS) == []


@pytest.mark.parametrize("foreseen", ["others", "backwards", "twice", "fewer"])
@pytest.mark.parametrize("name", ["euler_a", "dpmpp_sde"])
def test_what_was_foreseen_wrong_costs_time_alone(name: str, foreseen: str) -> None:
    asks = samplers.asked(samplers.get(name, COMFYUI), LEVELS)
    plans: dict[str, list[Ask]] = {
        "others": [(i + 1, sigma, sigma_next) for i, sigma, sigma_next in asks],
        "backwards": asks[::-1],
        "twice": [ask for ask in asks for _ in range(2)],
        "fewer": asks[1::2],
    }
    wanted = [make(name)(*ask) for ask in asks]
    with Ahead(make(name).draw, plans[foreseen]) as drawn:
        assert all(torch.equal(drawn(*ask), want) for ask, want in zip(asks, wanted, strict=True))
        assert all(torch.equal(drawn(*ask), want) for ask, want in zip(asks, wanted, strict=True))  # and again


def test_draws_are_made_before_they_are_asked_for_by_one_thread() -> None:
    threads: list[int] = []
    made = {i: threading.Event() for i in range(12)}

    def draw(i: int, sigma: float, sigma_next: float) -> Tensor:
        threads.append(threading.get_ident())
        made[i].set()
        return torch.tensor(float(i))

    asks = [(i, 2.0 - i, 1.0 - i) for i in range(12)]
    with Ahead(draw, asks) as drawn:
        for i, ask in enumerate(asks):
            assert all(each.wait(30) for each in list(made.values())[: i + ahead.DEPTH])
            assert not any(each.is_set() for each in list(made.values())[i + ahead.DEPTH :])
            assert drawn(*ask) == i
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident() and len(threads) == 12


def test_an_error_comes_when_its_draw_is_asked_for_and_the_thread_ends() -> None:
    def draw(i: int, sigma: float, sigma_next: float) -> Tensor:
        if i == 1:
            raise MemoryError("no more")
        return torch.tensor(float(i))

    before, count = threading.active_count(), torch.get_num_threads()
    with Ahead(draw, [(i, 1.0, 0.5) for i in range(9)]) as drawn:
        assert drawn(0, 1.0, 0.5) == 0
        with pytest.raises(MemoryError, match="no more"):
            drawn(1, 1.0, 0.5)
        assert drawn(2, 1.0, 0.5) == 2
    assert threading.active_count() == before and torch.get_num_threads() == count


def test_a_pipeline_draws_ahead_on_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = ldm.load(synthetic.write(tmp_path / "tiny.safetensors", synthetic.tiny("sdxl-base"), dtype="F32"), device="cpu")
    job = {"width": 32, "height": 32, "steps": 4, "cfg": 1.0, "seed": 3, "sampler": "dpmpp_2m_sde"}
    made: list[list[Ask]] = []
    begin = Ahead.__init__
    monkeypatch.setattr(Ahead, "__init__", lambda self, draw, asks: made.append(list(asks)) or begin(self, draw, asks))
    wanted = pipeline.generate("a cat", **job)
    assert made == []
    monkeypatch.setattr(noise.Noise, "device", property(lambda self: torch.device("cuda"), lambda self, _: None), raising=False)
    monkeypatch.setattr(noise, "_moved", lambda x, device: x)
    found = pipeline.generate("a cat", **job)
    assert torch.equal(found.latents, wanted.latents)
    levels = list(found.job.sigmas or ())
    assert [ask[1:] for ask in made[0]] == list(pairwise(levels))[:-1]
    pipeline.generate("a cat", **job | {"sampler": "euler"})
    assert len(made) == 1
