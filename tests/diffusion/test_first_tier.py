"""Samplers beyond k-diffusion's: against diffusers' schedulers, orders of convergence, closed forms, and a second derivation of each."""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.diffusion import samplers
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.profiles import load_profile, override
from ldm.diffusion.samplers import SAMPLERS, Denoise, Step, singlestep
from ldm.diffusion.samplers.deis import vp_time, weights_in_log_sigma, weights_in_time
from ldm.diffusion.samplers.heun import legs
from ldm.diffusion.samplers.integrals import lagrange, moment, phi
from ldm.diffusion.samplers.ipndm import EQUAL, uneven
from ldm.diffusion.samplers.sa_solver import Rules, comfyui_rules, diffusers_rules, sa_solver, weights
from ldm.diffusion.samplers.unipc import NEAR_ZERO, shares
from ldm.diffusion.schedules import sigmas
from ldm.diffusion.table import SigmaTable
from ldm.measure import relative_error
from tests.diffusion import references
from tests.diffusion.cases import A1111, COMFYUI, LISTS, TABLE, final, gaussian, mixture, smooth_noise, state
from tests.diffusion.references import SCHEDULERS, draws, scheduled_final, scheduler, trained
from tests.diffusion.test_laws import STD, gaussian_end, karras, mixture_end

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "diffusion.npz")
DIFFUSERS = override(load_profile("diffusers"), {"multistep_orders": "second"})
SECOND = override(COMFYUI, {"multistep_orders": "second"})


def no_noise(i: int, sigma: float, sigma_next: float) -> torch.Tensor:
    raise AssertionError("it asked for noise")


def karras_list(steps: int) -> list[float]:
    return sigmas("karras", steps, TABLE, COMFYUI, "euler")


# diffusers ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
def test_equal_to_diffusers(name):
    pytest.importorskip("diffusers", reason="compared with diffusers' schedulers (extra: parity)")
    mine = final(samplers.get(name, DIFFUSERS).run, mixture, state(2, 4, 3, 3, dtype=torch.float32), trained(name), draws)
    assert relative_error(mine, scheduled_final(name)) <= 2e-6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_equal_to_the_stored_diffusers(name):
    mine = final(samplers.get(name, DIFFUSERS).run, mixture, state(2, 4, 3, 3, dtype=torch.float32), trained(name), draws)
    assert relative_error(mine, torch.from_numpy(GOLDEN[f"scheduler/{name}"])) <= 1e-5


@pytest.mark.parametrize("name", ["unipc", "unipc_bh2"])
@pytest.mark.parametrize("steps", [2, 3, 4, 20])
def test_unipc_of_order_three_is_diffusers_down_to_near_zero(name, steps, monkeypatch):
    """ComfyUI's rule: order 3 as the steps allow, and 0.001 in the place of 0."""
    diffusers = pytest.importorskip("diffusers", reason="compared with diffusers' schedulers (extra: parity)")
    levels, kind = karras_list(steps), "bh2" if name == "unipc_bh2" else "bh1"
    order = max(1, min(3, steps - 1))
    made = diffusers.UniPCMultistepScheduler(solver_order=order, solver_type=kind, final_sigmas_type="sigma_min")
    made.set_timesteps(steps)
    made.timesteps, made.sigmas = torch.arange(steps, 0, -1), torch.tensor([*levels[:-1], NEAR_ZERO])
    made.set_begin_index(0)
    monkeypatch.setattr(references, "scheduler", lambda name: made)
    monkeypatch.setattr(references, "trained", lambda name: [*levels[:-1], NEAR_ZERO])
    mine = final(samplers.get(name, COMFYUI).run, mixture, state(2, 4, 3, 3, dtype=torch.float32), levels)
    assert relative_error(mine, scheduled_final(name)) <= 1e-5


def test_schedulers_are_the_ones_meant():
    pytest.importorskip("diffusers", reason="compared with diffusers' schedulers (extra: parity)")
    assert scheduler("unipc").config.solver_type == "bh1" and scheduler("unipc_bh2").config.solver_type == "bh2"
    assert scheduler("deis").config.solver_order == 2 and scheduler("sa_solver").config.corrector_order == 2


# Orders of convergence ------------------------------------------------------------------------------------------------------------------

QUIET = Rules(3, 4, lambda sigma, sigma_next: 0.0, late=0)
RUNS = {
    "deis": (samplers.get("deis", COMFYUI).run, 2.8, (20, 40, 80, 160)),
    "deis second": (samplers.get("deis", SECOND).run, 1.95, (20, 40, 80, 160)),
    "unipc": (samplers.get("unipc", COMFYUI).run, 2.7, (20, 40, 80)),
    "unipc_bh2": (samplers.get("unipc_bh2", COMFYUI).run, 2.7, (20, 40, 80)),
    "unipc second": (samplers.get("unipc", SECOND).run, 2.8, (20, 40, 80, 160)),
    "ipndm": (samplers.get("ipndm", A1111).run, 1.95, (80, 160, 320)),
    "ipndm_v": (samplers.get("ipndm_v", A1111).run, 1.8, (320, 640)),
    "heunpp2": (samplers.get("heunpp2", COMFYUI).run, 0.95, (80, 160, 320)),
    "dpm_fast": (samplers.get("dpm_fast", COMFYUI).run, 2.95, (41, 83, 167)),  # n % 3 == 2: order 3, order 2 at the end
    "sa_solver": (partial(sa_solver, rules=QUIET), 3.85, (20, 40, 80, 160)),
    "sa_solver second": (partial(sa_solver, rules=Rules(2, 2, QUIET.tau, late=1, simple=True)), 2.0, (80, 160, 320)),
}


@cache
def problem(data: str) -> tuple[Denoise, torch.Tensor, torch.Tensor]:
    """The denoiser, the start and the exact end."""
    x = state(1, 1, 1, 16)
    return (gaussian(STD), x, gaussian_end(x)) if data == "gaussian" else (mixture, x, mixture_end(x, 500))


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("kind", RUNS)
def test_order_of_convergence(kind, data):
    run, order, counts = RUNS[kind]
    denoise, x, exact = problem(data)
    errors = [float((final(run, denoise, x, karras(n), no_noise) - exact).norm()) for n in counts]
    assert max(math.log2(a / b) for a, b in pairwise(errors)) >= order


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_dpm_adaptive_keeps_its_tolerance(data):
    denoise, x, exact = problem(data)
    steps = list(samplers.get("dpm_adaptive", COMFYUI).run(denoise, x, karras(5), no_noise))
    assert relative_error(steps[-1].x, exact) <= 0.05 and 6 <= len(steps) <= 30
    assert all(a.sigma_next == b.sigma and a.sigma > a.sigma_next for a, b in pairwise(steps))


# Closed forms -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive", "unipc", "unipc_bh2"])
def test_on_a_point_mass_the_distance_is_in_proportion_to_sigma(name, steps):
    levels, x = karras_list(steps), state(1, 4, 2, 2)
    end = NEAR_ZERO if "unipc" in name else levels[-2] if steps > 1 else 0.0
    out = final(samplers.get(name, COMFYUI).run, lambda x, sigma: torch.full_like(x, 0.37), x, levels, no_noise)
    torch.testing.assert_close(out - 0.37, (x - 0.37) * (end / levels[0]), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", ["unipc", "dpm_fast", "dpm_adaptive"])
@pytest.mark.parametrize("levels", [[0.0005, 0.0], [0.0005, 0.0002, 0.0], [1.0, 0.0005, 0.0]])
def test_lists_that_end_below_near_zero(name, levels):
    assert final(samplers.get(name, COMFYUI).run, mixture, state(1, 4, 2, 2), levels, no_noise).isfinite().all()


def test_lcm_is_the_last_prediction_noised():
    x, levels = state(2, 4, 2, 2), LISTS["karras"]
    steps = list(SAMPLERS["lcm"].run(mixture, x, levels, lambda i, a, b: smooth_noise(x, a, b)))
    for step in steps[:-1]:
        torch.testing.assert_close(step.x, step.x0 + smooth_noise(x, step.sigma, step.sigma_next) * step.sigma_next)
    assert torch.equal(steps[-1].x, steps[-1].x0)


def test_tcd_keeps_the_noise_level():
    """All data at 0 and unit noise of a new direction each step: x is of norm sigma throughout, its old part of the lower sigma."""
    levels, table = trained("tcd"), SigmaTable("float32-betas")
    x = torch.zeros(30, 1, 1, 1, dtype=torch.float64)
    x[0] = levels[0]

    def noise(i, sigma, sigma_next):
        return torch.eye(30, dtype=torch.float64)[i + 1].view(-1, 1, 1, 1)

    for step in samplers.get("tcd", DIFFUSERS).run(lambda x, sigma: x * 0, x, levels, noise):
        assert float(step.x.norm()) == pytest.approx(step.sigma_next, rel=1e-12)
        down = table.sigmas[math.floor(np.float32(references.STEPS[step.i + 1]) * np.float32(0.7))]
        assert float(step.x[: step.i + 1].norm()) == pytest.approx(float(down), rel=1e-6)


@pytest.mark.parametrize("name", ["euler_cfg_pp", "euler_a_cfg_pp"])
def test_cfg_pp_renoises_with_the_unconditional_prediction(name):
    """Chung et al. 2024, algorithm 2, in its own variables: x / sqrt(1 + sigma²), alphas, eps."""
    x, levels = state(1, 4, 2, 2), LISTS["karras"]
    guided = Guidance(lambda x, sigma: torch.cat([mixture(x[:1], sigma), mixture(x[1:], sigma) + 0.3]), 0.6)
    fresh = lambda i, a, b: smooth_noise(x, a, b)  # noqa: E731
    for step in SAMPLERS[name].run(guided, x, levels, fresh):
        bar, bar_next = (1 / (1 + sigma**2) for sigma in (step.sigma, step.sigma_next))
        z, plain, told = x * bar**0.5, mixture(x, step.sigma), mixture(x, step.sigma) + 0.3
        eps, eps_told = ((z - bar**0.5 * x0) / (1 - bar) ** 0.5 for x0 in (plain, told))
        mixed = eps + (eps_told - eps) * 0.6
        x0 = (z - (1 - bar) ** 0.5 * mixed) / bar**0.5
        kept = step.sigma_next if name == "euler_cfg_pp" else step.sigma_next**2 / step.sigma
        x = (bar_next**0.5 * x0 + bar_next**0.5 * kept * eps) / bar_next**0.5
        x = x + fresh(step.i, step.sigma, step.sigma_next) * math.sqrt(step.sigma_next**2 - kept**2)
        torch.testing.assert_close(step.x, x, rtol=1e-12, atol=1e-12)


# Second derivations -------------------------------------------------------------------------------------------------------------------


def test_heunpp2_is_a_mean_of_slopes():
    x, levels = state(1, 4, 2, 2), LISTS["uneven"]
    steps = list(SAMPLERS["heunpp2"].run(mixture, x, levels, no_noise))
    for k, step in enumerate(steps):
        points = levels[k : min(k + 3, len(levels) - 1)] or levels[k : k + 1]
        at, found = x, []
        for j, sigma in enumerate(points):
            found.append((at - mixture(at, sigma)) / sigma)
            at = at + found[-1] * (levels[k + j + 1] - sigma)
        shares = [sigma / (len(points) * levels[0]) for sigma in points[1:]]
        mean = sum((s * d for s, d in zip([1 - sum(shares), *shares], found, strict=True)), torch.zeros_like(x))
        x = x + mean * (step.sigma_next - step.sigma)
        torch.testing.assert_close(step.x, x, rtol=1e-12, atol=1e-12)


def test_uneven_weights_are_adams_and_bashforths_on_equal_steps():
    for n in range(1, 4):
        assert uneven([-0.3] * n) == pytest.approx(EQUAL[n - 1], rel=1e-13)
    assert uneven([-0.3] * 4) == pytest.approx([57 / 24, -65 / 24, 43 / 24, -11 / 24], rel=1e-13)  # not theirs, but the engines'
    for n in (2, 3):
        assert sum(uneven([-0.3, -0.7, -1.1][:n])) == pytest.approx(1, rel=1e-13)


def test_uneven_weights_have_the_engines_brackets():
    """Order 3 and 4 at h = 1, h1 = 2, h2 = 4, h3 = 4, by hand from the formulas that ComfyUI runs: fractions over 1."""
    third = (1 - (1 / 9) * (3 / 12)) / 2
    assert uneven([-1.0, -2.0, -4.0]) == pytest.approx([1.25 + third, -0.25 - 1.5 * third, third / 2], rel=1e-13)
    fourth = ((1 - 1 / 9) / 2 + (1 - 1 / 6) / 42) * 21 / 120
    far = 12 / 32
    expected = [1.25 + third + fourth, -0.25 - 1.5 * third - (1.5 + far) * fourth, third / 2 + (0.5 + 2 * far) * fourth, -far / 2 * fourth]
    assert uneven([-1.0, -2.0, -4.0, -4.0]) == pytest.approx(expected, rel=1e-13)
    assert sum(expected) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("variable", [math.log, vp_time], ids=["log", "time"])
@pytest.mark.parametrize("nodes", [[3.0, 4.5], [3.0, 4.5, 7.0], [0.5, 0.75, 4.0]])
def test_deis_weights_are_the_integrals(nodes, variable):
    """By the trapezoid rule on a million points in sigma, as ComfyUI sums on ten thousand in time."""
    end = 0.25
    grid = np.linspace(nodes[0], end, 1_000_001)
    at = np.log(grid) if variable is math.log else np.array([vp_time(s) for s in grid[::100]])
    grid = grid if variable is math.log else grid[::100]
    points = [variable(node) for node in nodes]
    found = (weights_in_log_sigma if variable is math.log else weights_in_time)(nodes, end)
    for j in range(len(nodes)):
        basis = np.prod([(at - points[k]) / (points[j] - points[k]) for k in range(len(nodes)) if k != j], axis=0)
        assert found[j] == pytest.approx(np.trapezoid(basis, grid), rel=1e-6, abs=1e-6)


def test_vp_time_is_one_at_80_and_a_thousandth_at_its_least():
    assert vp_time(80.0) == pytest.approx(1, rel=1e-12) and vp_time(0.002) == pytest.approx(1e-3, rel=1e-6)


def test_deis_leaves_weight_to_the_newest_where_time_stands_still():
    for nodes, end in (([1e-7, 1e-6, 1e-5], 1e-8), ([1e-9, 14.0, 14.6], 1e-10)):
        found = weights_in_time(nodes, end)
        assert sum(found) == pytest.approx(end - nodes[0], rel=1e-6) and all(map(math.isfinite, found))


@pytest.mark.parametrize("c", [1e-9, 1e-3, 0.4, 0.99, 1.01, 7.0, 60.0])
def test_moments_and_phi(c):
    u = np.polynomial.legendre.leggauss(200)
    at, share = (u[0] + 1) / 2, u[1] / 2
    for p in range(4):
        assert moment(p, c) == pytest.approx(float(share @ (c * np.exp(-(1 - at) * c) * at**p)), rel=1e-9)
        value = float(share @ (np.exp((1 - at) * c) * at**p)) / math.factorial(p)
        assert phi(p + 1, c) == pytest.approx(value, rel=1e-7)


def test_lagrange_is_one_at_its_node_and_zero_at_the_others():
    nodes = [0.0, -0.4, -1.7, 1.0]
    table = [[sum(c * node**p for p, c in enumerate(lagrange(nodes, j))) for node in nodes] for j in range(4)]
    assert np.allclose(table, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("at", [[0.0], [0.0, -0.7], [0.0, -0.7, -1.9], [1.0, 0.0, -0.7, -1.9]])
def test_sa_solver_weights_are_the_integrals_of_the_paper(at, tau):
    """Eq. 15 and 18 as they stand, by the trapezoid rule; (1 + tau²) sigma_t exp(-tau² lambda_t) stands before the integral."""
    h, start = 0.8, -1.3
    grid = np.linspace(start, start + h, 20_001)
    factor = (1 + tau**2) * math.exp(-(1 + tau**2) * (start + h))  # sigma_t = exp(-lambda_t)
    nodes = [start + u * h for u in at]
    found = weights(at, (1 + tau**2) * h)
    for j in range(len(at)):
        basis = np.prod([(grid - nodes[k]) / (nodes[j] - nodes[k]) for k in range(len(at)) if k != j], axis=0) * np.ones_like(grid)
        assert found[j] == pytest.approx(factor * np.trapezoid(np.exp((1 + tau**2) * grid) * basis, grid), rel=1e-6, abs=1e-9)


def test_sa_solver_is_noisy_where_the_rules_say():
    levels, x = karras_list(20), state(1, 4, 2, 2)
    for rules, low, high, always in ((comfyui_rules(TABLE), 199.8, 799.2, False), (diffusers_rules(TABLE), 199.5, 800.5, True)):
        asked: list[tuple[int, float, float]] = []

        def noise(i, a, b, asked=asked):
            asked.append((i, a, b))
            return smooth_noise(x, a, b)

        steps = list(sa_solver(mixture, x, levels, noise, rules=rules))
        numbers, ends = [i for i, *_ in asked], [(a if always else b) for _, a, b in asked]
        assert numbers == list(range(19 if always else len(asked)))
        noisy = [end for (_, a, b), end in zip(asked, ends, strict=True) if rules.tau(a, b)]
        bounds = [float(TABLE.at(torch.tensor([t]))) for t in (low, high)]
        assert all(bounds[0] <= end <= bounds[1] for end in noisy) and len(noisy) >= 6
        assert len(steps) == 20 and len(asked) == (19 if always else len(noisy))


def test_unipc_shares_integrate_polynomials():
    """The corrector's vector is exact for x0 that is a cubic in log sigma: the step from sums equals the step from the integral."""
    ratios, h = [-0.6, -1.9, 1.0], 0.7
    for scale in (lambda z: z, math.expm1):
        found = shares(ratios, -h, scale, final=True)
        for p in (1, 2, 3):  # x0 = u^p: its changes over u at the ratios are ratio^(p - 1)
            total = -scale(-h) * sum(share * r ** (p - 1) for share, r in zip(found, ratios, strict=True))
            assert total == pytest.approx(moment(p, h), rel=1e-12)


def karras_by_hand(n: int, low: float, high: float) -> np.ndarray:
    return np.linspace(high ** (1 / 7), low ** (1 / 7), n) ** 7


@pytest.mark.parametrize(("steps", "main", "times", "back"), [(20, 11, 1, 10), (35, 26, 1, 10), (36, 18, 2, 10), (50, 26, 2, 13)])
def test_restart_goes_up_where_the_paper_says(steps, main, times, back):
    levels = sigmas("normal", steps, TABLE, COMFYUI, "restart")
    found = legs(levels)
    assert len(found) == steps
    grid = [*karras_by_hand(main, levels[-2], levels[0]), 0.0]
    low, high = (int(np.argmin(np.abs(np.array(grid) - end))) for end in (0.1, 2.0))
    again = karras_by_hand(back, grid[low], grid[high])
    expected = [*pairwise(grid[: low + 1]), *(list(pairwise(again)) * times), *pairwise(grid[low:])]
    assert np.allclose(np.array(found), np.array(expected), rtol=2e-6)
    ups = [(a[1], b[0]) for a, b in pairwise(found) if b[0] > a[1]]
    assert len(ups) == times and all(up == (found[low - 1][1], found[low][0]) for up in ups)


def test_restart_is_heuns_method_below_twenty_steps_and_between_jumps():
    x, short = state(1, 4, 2, 2), karras_list(19)
    assert torch.equal(final(SAMPLERS["restart"].run, mixture, x, short, no_noise), final(SAMPLERS["heun"].run, mixture, x, short))
    levels = karras_list(40)
    asked = []

    def noise(i, sigma, sigma_next):
        asked.append((i, sigma, sigma_next))
        return smooth_noise(x, i, sigma_next)

    end = final(SAMPLERS["restart"].run, mixture, x, levels, noise)
    found = legs(levels)
    chains = [[found[0][0]]]
    for a, b in found:
        chains = [*chains, [a]] if a > chains[-1][-1] else chains
        chains[-1].append(b)
    for k, chain in enumerate(chains):
        if k:
            below = chains[k - 1][-1]
            x = x + smooth_noise(x, k - 1, below) * math.sqrt(chain[0] ** 2 - below**2)
        x = final(SAMPLERS["heun"].run, mixture, x, chain)
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)
    assert [i for i, *_ in asked] == [0, 1] and all(a > b for _, a, b in asked)


def test_restart_far_from_its_range_is_karras():
    levels = [0.09 - k * 0.004 for k in range(21)]
    assert all(a > b for a, b in legs([*levels, 0.0])) and legs([*levels, 0.0])[-1][1] == 0


# dpm_adaptive: pictures by themselves -------------------------------------------------------------------------------------------------


class OneByOne:
    """A denoiser whose data differ by picture, so that it must be told which one it sees."""

    def __init__(self, stds: list[float]) -> None:
        self.stds, self.calls = stds, 0

    def __call__(self, x, sigma):
        assert len(x) == len(self.stds)
        self.calls += 1
        return torch.cat([gaussian(std)(row, sigma) for row, std in zip(x.split(1), self.stds, strict=True)])

    def picture(self, k, count):
        assert count == len(self.stds)
        return OneByOne([self.stds[k]])


def test_dpm_adaptive_takes_pictures_one_by_one():
    stds, x = [0.1, 0.7, 2.0], state(3, 4, 3, 3)
    both = list(samplers.get("dpm_adaptive", COMFYUI).run(OneByOne(stds), x, LISTS["karras"], no_noise))
    counts = set()
    for k, std in enumerate(stds):
        alone = list(samplers.get("dpm_adaptive", COMFYUI).run(gaussian(std), x[k : k + 1], LISTS["karras"], no_noise))
        counts.add(len(alone))
        assert torch.equal(both[-1].x[k : k + 1], alone[-1].x)
        assert all(torch.equal(a.x[k : k + 1], b.x) for a, b in zip(both, alone, strict=False))
    assert len(counts) > 1 and len(both) == max(counts)  # the others wait for the last
    assert [step.i for step in both] == list(range(len(both))) and all(isinstance(step, Step) for step in both)


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
def test_dpm_adaptive_ends_whatever_the_denoiser_says(profile, monkeypatch):
    monkeypatch.setattr(singlestep, "SHORTEST", 0.02)
    x, levels = state(2, 4, 2, 2, dtype=torch.float32), LISTS["karras"]
    run = samplers.get("dpm_adaptive", profile).run
    noise = lambda i, a, b: smooth_noise(x, a, b)  # noqa: E731
    broken = list(run(lambda x, sigma: x * math.nan, x, levels, noise))
    assert len(broken) == 1 and not broken[0].x.isfinite().any()
    calls = []

    def wild(x, sigma):  # no two calls agree: every step is too long until it may not be shorter
        calls.append(sigma)
        return x * 0 + 1e4 * (-1) ** len(calls)

    out = list(run(wild, x[:1], levels, noise))
    assert out[-1].x.isfinite().all() and 100 < len(calls) <= 3 * (math.log(levels[0] / levels[-2]) / 0.02 + 10)
