"""Samplers without a reference that can be installed: orders of convergence, closed forms, and a second derivation of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.diffusion.rounding import between
from ldm.diffusion.samplers.er_sde import er_sde
from ldm.diffusion.samplers.gradient import gradient_estimation
from ldm.diffusion.samplers.res import res_multistep
from ldm.diffusion.samplers.seeds import seeds_2, seeds_3
from tests.diffusion.cases import LISTS, final, gaussian, mixture, smooth_noise, state
from tests.diffusion.test_laws import LOW, STD, Increments, gaussian_end, karras, mixture_end

LEVELS = [12.5, 11.75, 6.0, 5.5, 2.25, 0.75, 0.625, 0.125]
EXACT = math.hypot(STD, LOW)


def slopes(errors: Sequence[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize(("run", "order"), [(res_multistep, 2), (gradient_estimation, 1)])
def test_order_of_convergence(run, order):
    x = state(1, 1, 1, 16)
    for denoise, exact in ((gaussian(STD), gaussian_end(x)), (mixture, mixture_end(x))):
        found = slopes([float((final(run, denoise, x, karras(n)) - exact).norm()) for n in (160, 320, 640)])
        assert found[-1] == pytest.approx(order, abs=0.06) and found[0] == pytest.approx(order, abs=0.15)


def spread(run, levels: list[float]) -> float:
    """The exact std of what `run` makes of Gaussian data, every draw independent."""
    x = torch.zeros(3 * len(levels) + 2, 1, 1, 1, dtype=torch.float64)
    x[0] = math.hypot(levels[0], STD)
    return float(final(run, gaussian(STD), x, levels, Increments(len(x), None)).norm())


@pytest.mark.parametrize(("run", "limits"), [(seeds_2, (2e-5, 2.1e-5)), (seeds_3, (1.5e-6, 2.6e-6)), (er_sde, (0, 2e-5))])
def test_spread_converges(run, limits):
    """In law to order 2: a quarter of the error for half the step. er_sde's left sums leave it a part of order 1, seen at many steps."""
    errors = [abs(spread(run, karras(n)) - EXACT) for n in (80, 160, 640)]
    assert limits[0] <= errors[-1] <= limits[1]
    assert math.log2(errors[0] / errors[1]) >= 1.55


def test_er_sde_is_of_order_two_but_for_its_sums(monkeypatch):
    monkeypatch.setattr("ldm.diffusion.samplers.er_sde.POINTS", 5000)
    assert slopes([abs(spread(er_sde, karras(n)) - EXACT) for n in (20, 40, 80)])[-1] == pytest.approx(2.05, abs=0.1)


@pytest.mark.parametrize("run", [er_sde, seeds_2, seeds_3])
def test_a_point_mass_keeps_its_noise_level(run):
    """All data at 0: x is N(0, sigma²) at every sigma, to rounding, whatever the steps."""
    x = torch.zeros(100, 1, 1, 1, dtype=torch.float64)
    x[0] = LEVELS[0]
    for step in run(lambda x, sigma: torch.zeros_like(x), x, LEVELS, Increments(100, None)):
        assert float(step.x.norm()) == pytest.approx(step.sigma_next, rel=1e-12)


def silent(i: int, sigma: float, sigma_next: float) -> Tensor:
    return torch.zeros(1, 1, 1, 1, dtype=torch.float64)


def driven(run, x0: Callable[[float], float], levels: list[float], start: float = 3.0) -> float:
    """Where `run` goes without noise if x0 is a function of sigma alone."""
    x = torch.full((1, 1, 1, 1), start, dtype=torch.float64)
    return float(final(run, lambda x, sigma: torch.full_like(x, x0(sigma)), x, levels, silent))


def mean_flow(rate: Callable[[float], float], x0: Callable[[float], float], levels: list[float], start: float = 3.0) -> float:
    """dx / dsigma = rate(sigma) (x - x0(sigma)) by the classical Runge-Kutta method, in small steps: a derivation of its own."""

    def slope(sigma, x):
        return rate(sigma) * (x - x0(sigma))

    nodes = np.geomspace(levels[0], levels[-1], 4001)
    x = start
    for a, b in pairwise(nodes):
        h = b - a
        k1 = slope(a, x)
        k2 = slope(a + h / 2, x + h / 2 * k1)
        k3 = slope(a + h / 2, x + h / 2 * k2)
        x += h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(b, x + h * k3))
    return x


def euler_rate(sigma: float) -> float:
    return 1 / sigma


def scale(v: float) -> float:
    """The authors' fifth noise scale, as the paper has it."""
    return v * (math.exp(v**0.3) + 10)


def er_rate(sigma: float) -> float:
    """phi' / phi of log phi = log sigma + log(e^(sigma^0.3) + 10)."""
    grown = math.exp(sigma**0.3)
    return 1 / sigma + grown * 0.3 * sigma**-0.7 / (grown + 10)


def test_res_multistep_is_exact_for_x0_linear_in_log_sigma():
    """x0 = a + b log sigma has the solution x = a + b (log sigma + 1) + c sigma; only the first step is Euler's."""
    a, b = 0.4, -0.7

    def exact(x, sigma, sigma_next):
        c = (x - a - b * (math.log(sigma) + 1)) / sigma
        return a + b * (math.log(sigma_next) + 1) + c * sigma_next

    x0 = a + b * math.log(LEVELS[0])
    x = x0 + (3.0 - x0) * LEVELS[1] / LEVELS[0]
    for sigma, sigma_next in pairwise(LEVELS[1:]):
        x = exact(x, sigma, sigma_next)
    assert driven(res_multistep, lambda sigma: a + b * math.log(sigma), LEVELS) == pytest.approx(x, rel=1e-13)


def test_gradient_estimation_is_a_sum_of_extrapolated_slopes():
    """A slope that is a function of sigma alone makes the end a plain sum, with twice the newest slope less the one before."""
    slope = np.cos(np.array(LEVELS[:-1]))
    doubled = 2 * slope - np.concatenate([slope[:1], slope[:-1]])
    expected = 3.0 + float(np.sum(doubled * np.diff(LEVELS)))
    x = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64)
    got = final(gradient_estimation, lambda x, sigma: x - sigma * math.cos(sigma), x, LEVELS)
    assert float(got) == pytest.approx(expected, rel=1e-13)


def test_er_sde_follows_its_mean():
    """The mean of its process obeys dx / dsigma = phi'/phi (x - x0), whatever x0 is of sigma; the left sums cost 2e-3."""
    fine = [float(v) for v in np.geomspace(12.5, 0.125, 200)]
    for x0 in (lambda sigma: 0.4 - 0.2 * sigma, lambda sigma: 0.4 - 0.2 * sigma + 0.03 * sigma**2):
        expected = mean_flow(er_rate, x0, fine)
        assert driven(er_sde, x0, fine) == pytest.approx(expected, abs=2e-3)
        assert driven(er_sde, lambda sigma: 1.0, fine) == pytest.approx(mean_flow(er_rate, lambda sigma: 1.0, fine), rel=1e-9)


def test_er_sde_step_by_step_with_exact_integrals(monkeypatch):
    """x0 linear in sigma: a step of order 2 or 3 ends at phi times the integral of x0 phi' / phi², here by Simpson's rule."""
    monkeypatch.setattr("ldm.diffusion.samplers.er_sde.POINTS", 100_000)
    levels = [2.0, 1.5, 1.0, 0.6]
    a, b = 0.4, -0.7
    x = a + b * 2.0 + (3.0 - a - b * 2.0) * scale(1.5) / scale(2.0)
    for s, t in pairwise(levels[1:]):
        at = np.linspace(t, s, 20_001)
        values = np.array([(a + b * v) * er_rate(v) / scale(v) for v in at])
        weights = np.ones(20_001)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        x = scale(t) / scale(s) * x + scale(t) * float(values @ weights) * (s - t) / 60_000
    assert driven(er_sde, lambda sigma: a + b * sigma, levels) == pytest.approx(x, abs=2e-5)


def phi(k: int, z: float) -> float:
    """phi_1 = (e^z - 1) / z, phi_2 = (phi_1 - 1) / z, as series."""
    return sum(z**j / math.factorial(j + k) for j in range(40))


def by_the_book(stages: int, levels: list[float], noise: dict[tuple[float, float], float], start: float) -> float:
    """SEEDS with its coefficients as the exponential Runge-Kutta tableaus have them, scalar, eta 1: exp(-h) on top of sigma's own decay."""
    x = start
    nodes = {2: (0.5,), 3: (1 / 3, 2 / 3)}[stages]
    for s, t in pairwise(levels):
        h = math.log(s / t)
        path, last, rise = 0.0, s, 0.0
        x0 = float(mixture(torch.tensor(x, dtype=torch.float64), s))
        for place, share in enumerate((*nodes, 1.0)):
            end = between(s, t, share, torch.float64) if share < 1 else t
            wide = 2 * share * h
            path = path * (end / last) ** 2 + noise[last, end] * end * math.sqrt(1 - (end / last) ** 2)
            if stages == 2:
                weight = 0.0 if place == 0 else 2 * share * h * phi(1, -wide)  # its point half way serves the whole step
            else:
                weight = 0.0 if place == 0 else wide * phi(2, -wide) * share / nodes[place - 1]
            now = math.exp(-wide) * x + wide * phi(1, -wide) * x0 + weight * rise + path
            last = end
            if share < 1:
                rise = float(mixture(torch.tensor(now, dtype=torch.float64), end)) - x0
        x = now
    return x


@pytest.mark.parametrize(("run", "stages"), [(seeds_2, 2), (seeds_3, 3)])
def test_seeds_by_their_tableaus(run, stages):
    drawn: dict[tuple[float, float], float] = {}
    counts = []

    def noise(i, sigma, sigma_next):
        counts.append(i)
        drawn[sigma, sigma_next] = math.sin(7 * i + 1)
        return torch.full((1, 1, 1, 1), drawn[sigma, sigma_next], dtype=torch.float64)

    x = torch.full((1, 1, 1, 1), 9.0, dtype=torch.float64)
    end = float(final(run, mixture, x, LEVELS, noise))
    assert counts == list(range(stages * (len(LEVELS) - 1)))  # each draw has a number of its own
    assert end == pytest.approx(by_the_book(stages, LEVELS, drawn, 9.0), rel=1e-11)


@pytest.mark.parametrize("run", [res_multistep, gradient_estimation, er_sde, seeds_2, seeds_3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_protocol(run, dtype):
    x = state(2, 4, 3, 3, dtype=dtype)
    before = x.clone()
    seen: list[float] = []

    def denoise(x, sigma):
        seen.append(sigma)
        return mixture(x, sigma)

    steps = list(run(denoise, x, LISTS["karras"], lambda i, a, b: smooth_noise(x, a, b)))
    assert torch.equal(x, before) and len(steps) == 12
    assert torch.equal(steps[-1].x, steps[-1].x0) and steps[-1].x.dtype == dtype and steps[-1].x.isfinite().all()
    assert all(float(np.float32(sigma)) == sigma for sigma in seen) or dtype is torch.float64
