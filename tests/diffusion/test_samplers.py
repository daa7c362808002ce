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
from ldm.diffusion.table import SigmaTable
from ldm.errors import InputError
from ldm.measure import relative_error
from tests.diffusion.cases import A1111, COMFYUI, LISTS, TABLE, final, gaussian, mixture, ours, smooth_noise, state
from tests.diffusion.foreign import FUNCTIONS, OWN_SIGMAS, k_diffusion, k_sample
from tests.diffusion.references import BROWNIAN_ONES, STOCHASTIC, k_final

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "diffusion.npz")
NAMES = list(SAMPLERS)
KNOWN = list(FUNCTIONS)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name", KNOWN)
def test_equal_to_k_diffusion(name, kind):
    theirs = k_final(name, LISTS[kind])
    assert float((ours(name, A1111, LISTS[kind]) - theirs).abs().max()) <= 1e-10
    assert relative_error(ours(name, A1111, LISTS[kind]), theirs) <= 1e-10


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name", KNOWN)
def test_equal_to_the_stored_k_diffusion(name, kind):
    theirs = torch.from_numpy(GOLDEN[f"sampler/{name}/{kind}"])
    assert float((ours(name, A1111, LISTS[kind]) - theirs).abs().max()) <= 1e-10


# At one step k-diffusion's own multistep SDE functions raise UnboundLocalError, and the two that choose sigmas have no range.
ONE_FAILS = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "dpm_fast", "dpm_adaptive")
LENGTHS = [(name, steps) for name in KNOWN for steps in (1, 2, 3, 20) if steps > 1 or name not in ONE_FAILS]


@pytest.mark.parametrize(("name", "steps"), LENGTHS)
def test_equal_to_k_diffusion_at_other_lengths(name, steps):
    levels = schedules.sigmas("karras", steps, TABLE, COMFYUI, name)
    assert float((ours(name, A1111, levels) - k_final(name, levels)).abs().max()) <= 1e-10


@pytest.mark.filterwarnings("ignore:Should have tb<=t1")  # torchsde, on the end of its own range
@pytest.mark.parametrize("name", BROWNIAN_ONES)
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


@pytest.mark.parametrize("name", ["lms", "ipndm", "ipndm_v"])
def test_the_last_step_of_lms_and_its_kin_goes_by_the_profile(name):
    x = state(1, 4, 2, 2)
    levels = LISTS["karras"]
    last = list(samplers.get(name, COMFYUI).run(mixture, x, levels, lambda *_: x))[-1]
    assert torch.equal(last.x, last.x0)
    last = list(samplers.get(name, A1111).run(mixture, x, levels, lambda *_: x))[-1]
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
    assert isinstance(first, Step) and (first.i, first.sigma) == (0, levels[0])
    assert name in OWN_SIGMAS or first.sigma_next == levels[1]
    assert torch.equal(first.x0, mixture(x, levels[0]))
    assert name in OWN_SIGMAS or len(calls) == SAMPLERS[name].evaluations
    rest = list(run)
    assert [step.i for step in rest] == list(range(1, len(rest) + 1))
    if name not in OWN_SIGMAS:
        assert len(rest) == len(levels) - 2
        assert len(calls) == SAMPLERS[name].evaluations * (len(levels) - 2) + 1 - (name == "heunpp2")
    elif name == "dpm_fast":
        assert len(calls) == len(levels) - 1
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
    assert samplers.evaluated(sampler, LISTS[kind]) == ([] if sampler.adaptive else calls)
    assert all(float(np.float32(sigma)) == sigma for sigma in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_is_kept(name, dtype):
    x = state(1, 4, 2, 2, dtype=dtype)
    assert final(SAMPLERS[name].run, mixture, x, LISTS["karras"], lambda i, a, b: smooth_noise(x, a, b)).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("profile", "schedule"),
    [*((COMFYUI, schedule) for schedule in schedules.SCHEDULES), (A1111, "karras"), (A1111, "kl_optimal")],
    ids=lambda each: getattr(each, "name", each),
)
def test_short_runs_are_finite(name, schedule, profile):
    sampler, table = samplers.get(name, profile), SigmaTable(profile.alphas)
    for steps in (1, 2, 3, 5):
        levels = schedules.sigmas(schedule, steps, table, profile, name)
        random = noise.make_noise(profile, [1], (4, 2, 2), levels, sampler)
        start = noise.start(random, levels, table, profile)
        x = final(sampler.run, mixture, start, levels, random)
        assert x.isfinite().all() and (float(x.abs().max()) < 100 or name == "ipndm_v")  # its weights on very uneven lists: see there
        if steps == 1 and levels[-1] == 0 and name not in ("lms", "ipndm", "ipndm_v"):
            assert torch.equal(x, mixture(start, levels[0])) or ("unipc" in name and relative_error(x, mixture(start, levels[0])) < 0.01)


@pytest.mark.parametrize("levels", [[], [1.0], [1.0, 1.0, 0.0], [0.0, 0.0], [1.0, 2.0], [math.inf, 1.0], [1.0, math.nan], [1.0, -1.0]])
@pytest.mark.parametrize("name", NAMES)
def test_impossible_lists_are_refused(name, levels):
    with pytest.raises(InputError, match="strictly decreasing"):
        final(SAMPLERS[name].run, mixture, state(1, 4, 2, 2), levels)


def test_unknown_names_have_near_matches():
    with pytest.raises(InputError, match="did you mean dpmpp_2m"):
        samplers.get("dpmpp_2n", COMFYUI)


def test_table():
    first = (
        "euler euler_a heun lms dpmpp_2m dpmpp_sde dpmpp_2m_sde ddim dpm2 dpm2_a dpmpp_2s_a dpmpp_3m_sde dpmpp_2m_sde_heun lcm tcd unipc"
    )
    second = "unipc_bh2 deis ipndm ipndm_v heunpp2 dpm_fast dpm_adaptive restart euler_cfg_pp euler_a_cfg_pp sa_solver"
    third = "er_sde res_multistep gradient_estimation seeds_2 seeds_3"
    assert set(NAMES) == {*first.split(), *second.split(), *third.split()}
    drawing = {name for name in KNOWN if samplers.get(name, A1111).stochastic}
    assert drawing == set(STOCHASTIC)
    assert drawing - {name for name in KNOWN if samplers.get(name, COMFYUI).stochastic} == set(OWN_SIGMAS)


def test_gradients_flow_when_wanted():
    x = state(1, 4, 2, 2).requires_grad_()
    final(SAMPLERS["heun"].run, gaussian(), x, LISTS["karras"]).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
