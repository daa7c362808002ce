"""The samplers against k-diffusion, live and stored; their protocol, their table, and short runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.profiles import override
from ldm.diffusion.samplers import SAMPLERS, Step
from ldm.diffusion.samplers.lms import lagrange_integral
from ldm.errors import InputError
from ldm.measure import relative_error
from tests.diffusion.cases import A1111, COMFYUI, LISTS, TABLE, final, gaussian, mixture, ours, smooth_noise, state
from tests.diffusion.foreign import k_diffusion, k_sample
from tests.diffusion.references import STOCHASTIC, k_final

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "diffusion.npz")
NAMES = list(SAMPLERS)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_k_diffusion(name, kind):
    theirs = k_final(name, LISTS[kind])
    assert float((ours(name, A1111, LISTS[kind]) - theirs).abs().max()) <= 1e-10
    assert relative_error(ours(name, A1111, LISTS[kind]), theirs) <= 1e-10


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_stored_k_diffusion(name, kind):
    theirs = torch.from_numpy(GOLDEN[f"sampler/{name}/{kind}"])
    assert float((ours(name, A1111, LISTS[kind]) - theirs).abs().max()) <= 1e-10


# k-diffusion's own dpmpp_2m_sde raises UnboundLocalError at one step.
LENGTHS = [(name, steps) for name in NAMES for steps in (1, 2, 3, 20) if (name, steps) != ("dpmpp_2m_sde", 1)]


@pytest.mark.parametrize(("name", "steps"), LENGTHS)
def test_equal_to_k_diffusion_at_other_lengths(name, steps):
    levels = schedules.sigmas("karras", steps, TABLE, COMFYUI, name)
    assert float((ours(name, A1111, levels) - k_final(name, levels)).abs().max()) <= 1e-10


@pytest.mark.filterwarnings("ignore:Should have tb<=t1")  # torchsde, on the end of its own range
@pytest.mark.parametrize("name", STOCHASTIC[1:])
@pytest.mark.parametrize("schedule", ["karras", "exponential", "normal"])
@pytest.mark.parametrize("steps", [3, 15])
def test_equal_to_k_diffusion_with_its_own_brownian_noise_in_float32(name, schedule, steps):
    levels = schedules.sigmas(schedule, steps, TABLE, COMFYUI, name)
    x = state(2, 4, 8, 8, scale=7, dtype=torch.float32)
    exact = torch.tensor(levels)
    theirs = k_sample(name, mixture, x, levels, k_diffusion("sampling").BrownianTreeNoiseSampler(x, exact[-2], exact[0], seed=[3, 4]))
    profile = override(A1111, {"rng": "cpu"})
    sampler = samplers.get(name, profile)
    mine = final(sampler.run, mixture, x, levels, noise.make_noise(profile, [3, 4], (4, 8, 8), levels, sampler))
    assert relative_error(mine, theirs) <= 1e-5


def test_lms_at_zero_goes_by_the_profile():
    x = state(1, 4, 2, 2)
    levels = LISTS["karras"]
    last = list(samplers.get("lms", COMFYUI).run(mixture, x, levels, lambda *_: x))[-1]
    assert torch.equal(last.x, last.x0)
    last = list(samplers.get("lms", A1111).run(mixture, x, levels, lambda *_: x))[-1]
    assert not torch.allclose(last.x, last.x0, atol=1e-6)


def test_lagrange_integrals_are_exact():
    nodes, end = [3.0, 4.5, 5.0, 7.25], 1.25
    for degree in range(4):  # the weights integrate every cubic exactly
        total = sum(lagrange_integral(nodes, j, end) * node**degree for j, node in enumerate(nodes))
        assert total == pytest.approx((end ** (degree + 1) - nodes[0] ** (degree + 1)) / (degree + 1), rel=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_is_a_generator_of_steps(name):
    x, levels = state(1, 4, 2, 2), LISTS["karras"]
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return mixture(x, sigma)

    run = SAMPLERS[name].run(denoise, x, levels, lambda i, a, b: smooth_noise(x, a, b))
    assert calls == []  # nothing happens before the first step is asked for
    first = next(run)
    assert isinstance(first, Step) and (first.i, first.sigma, first.sigma_next) == (0, levels[0], levels[1])
    assert torch.equal(first.x0, mixture(x, levels[0]))
    assert len(calls) == SAMPLERS[name].evaluations
    rest = list(run)
    assert [step.i for step in rest] == list(range(1, len(levels) - 1))
    assert len(calls) == SAMPLERS[name].evaluations * (len(levels) - 2) + 1
    assert torch.equal(state(1, 4, 2, 2), x)  # the caller's x is not written to


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", LISTS)
def test_evaluated_tells_every_call_ahead(name, kind):
    x, calls = state(1, 4, 2, 2, dtype=torch.float32), []

    def denoise(x, sigma):
        calls.append(sigma)
        return mixture(x, sigma)

    sampler = samplers.get(name, COMFYUI)
    final(sampler.run, denoise, x, LISTS[kind], lambda i, a, b: smooth_noise(x, a, b))
    assert samplers.evaluated(sampler, LISTS[kind]) == calls
    assert all(float(np.float32(sigma)) == sigma for sigma in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept(name, dtype):
    x = state(1, 4, 2, 2, dtype=dtype)
    assert final(SAMPLERS[name].run, mixture, x, LISTS["karras"], lambda i, a, b: smooth_noise(x, a, b)).dtype == dtype


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_short_runs_are_finite(name, schedule, profile):
    sampler, table = samplers.get(name, profile), schedules.SigmaTable(profile.alphas)
    for steps in (1, 2, 3, 5):
        levels = schedules.sigmas(schedule, steps, table, profile, name)
        random = noise.make_noise(profile, [1], (4, 4, 4), levels, sampler)
        x = final(sampler.run, mixture, noise.start(random, levels, table, profile), levels, random)
        assert x.isfinite().all() and float(x.abs().max()) < 100
        if steps == 1:
            assert torch.equal(x, mixture(noise.start(random, levels, table, profile), levels[0])) or name == "lms"


@pytest.mark.parametrize("levels", [[], [1.0], [1.0, 1.0, 0.0], [0.0, 0.0], [1.0, 2.0], [math.inf, 1.0], [1.0, math.nan], [1.0, -1.0]])
@pytest.mark.parametrize("name", NAMES)
def test_impossible_lists_are_refused(name, levels):
    with pytest.raises(InputError, match="strictly decreasing"):
        final(SAMPLERS[name].run, mixture, state(1, 4, 2, 2), levels)


def test_unknown_names_have_near_matches():
    with pytest.raises(InputError, match="did you mean dpmpp_2m"):
        samplers.get("dpmpp2m", COMFYUI)


def test_table():
    assert set(NAMES) == {"euler", "euler_a", "heun", "lms", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "ddim"}
    assert {name for name in NAMES if SAMPLERS[name].stochastic} == set(STOCHASTIC)


def test_gradients_flow_when_wanted():
    x = state(1, 4, 2, 2).requires_grad_()
    final(SAMPLERS["heun"].run, gaussian(), x, LISTS["karras"]).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
