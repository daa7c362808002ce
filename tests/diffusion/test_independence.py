"""A picture is a function of (seed, index) alone: not of its batch, of a pause, of a run broken off and taken up, or of who watches.

Every sampler of the table, under the default profile.
"""

from __future__ import annotations

import pytest
import torch

from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.samplers import SAMPLERS
from tests.diffusion.cases import COMFYUI, TABLE
from tests.diffusion.cases import mixture as together

SEED, STEPS, IMAGE = 70, 8, (4, 3, 4)
TOLERANCE = 1e-6
# Solvers that look back at steps before the last one, or at the whole list: begun anew at step k they are another run.
LOOK_BACK = {
    *("lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "unipc", "unipc_bh2", "deis", "ipndm", "ipndm_v"),
    *("res_multistep", "gradient_estimation", "er_sde", "sa_solver", "dpm_fast", "dpm_adaptive", "heunpp2"),
}


def mixture(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Picture by picture, as the engine asks its network on the CPU: softmax over threads has other last bits in a batch."""
    return torch.cat([together(row[None], sigma) for row in x])


def levels_of(name: str) -> list[float]:
    return schedules.sigmas("karras", STEPS, TABLE, COMFYUI, name)


def begin(name: str, seeds: list[int]):
    """The sampler's function, the first x, the list and the noise."""
    sampler, levels = samplers.get(name, COMFYUI), levels_of(name)
    random = noise.make_noise(COMFYUI, seeds, IMAGE, levels, sampler)
    return sampler.run, noise.start(random, levels, TABLE, COMFYUI, name), levels, random


def states(name: str, seeds: list[int]) -> list[torch.Tensor]:
    """x after every step."""
    run, x, levels, random = begin(name, seeds)
    return [step.x for step in run(mixture, x, levels, random)]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_batch_of_four_is_four_pictures(name):
    batch = states(name, [SEED + k for k in range(4)])[-1]
    for k in range(4):
        assert distance(batch[k : k + 1], states(name, [SEED + k])[-1]) <= TOLERANCE


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_run_goes_on_where_it_was_broken_off(name):
    run, x, levels, random = begin(name, [SEED, SEED + 1])
    draws: list[int] = []
    whole = [(step.x, len(draws)) for step in run(mixture, x, levels, lambda *asked: draws.append(1) or random(*asked))]
    if len(whole) != len(levels) - 1:
        pytest.skip("its steps are not those of the list")
    apart = []
    for k in (1, 3, len(whole) - 1):
        x, drawn = whole[k - 1]
        *_, last = run(mixture, x.clone(), levels[k:], random.after(drawn))
        apart.append(distance(last.x, whole[-1][0]))
    assert (max(apart) <= TOLERANCE) == (name not in LOOK_BACK), apart


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_who_watches_changes_nothing(name):
    """A preview draws random numbers, asks for noise of other steps, and takes its time while another run goes on."""
    expected = states(name, [SEED])[-1]
    run, x, levels, random = begin(name, [SEED])
    other_run, other_x, _, other_random = begin(name, [SEED + 9])
    others = other_run(mixture, other_x, levels, other_random)
    for step in run(mixture, x, levels, random):
        torch.manual_seed(step.i)
        shown = step.x0 + torch.randn(step.x0.shape)
        assert shown.isfinite().all()
        if SAMPLERS[name].stochastic:
            random(0, levels[0], levels[1])
        random.first()
        next(others, None)
        x = step.x
    assert distance(x, expected) <= TOLERANCE
