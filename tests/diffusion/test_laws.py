"""Laws that need no reference: orders of convergence, the point mass, and the spread of Gaussian samples."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.samplers import SAMPLERS
from tests.diffusion.cases import A1111, COMFYUI, TABLE, final, gaussian, mixture, state
from tests.diffusion.foreign import k_sample
from tests.diffusion.references import BROWNIAN_ONES

HIGH, LOW, STD = 14.6, 0.03, 0.7


def karras(n: int) -> list[float]:
    """n steps from HIGH to LOW in float64, not going on to 0."""
    ramp = np.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), n + 1)
    return [float(value) for value in ramp**7]


def gaussian_end(x: torch.Tensor) -> torch.Tensor:
    """The probability flow carries x / sqrt(std² + sigma²) unchanged."""
    return x * math.sqrt((STD**2 + LOW**2) / (STD**2 + HIGH**2))


def mixture_end(x: torch.Tensor, n: int = 1000) -> torch.Tensor:
    """The same flow on the mixture, by the classical Runge-Kutta method of order 4 in Karras' variable."""
    ends = HIGH ** (1 / 7), LOW ** (1 / 7)
    h = (ends[1] - ends[0]) / n

    def slope(x, root):  # dx / d(root), with sigma = root^7
        return (x - mixture(x, root**7)) * (7 / root)

    for k in range(n):
        root = ends[0] + k * h
        a = slope(x, root)
        b = slope(x + a * (h / 2), root + h / 2)
        c = slope(x + b * (h / 2), root + h / 2)
        d = slope(x + c * h, root + h)
        x = x + (a + 2 * b + 2 * c + d) * (h / 6)
    return x


@pytest.fixture(scope="module")
def problems():
    x = state(1, 1, 1, 16)
    return {"gaussian": (gaussian(STD), x, gaussian_end(x)), "mixture": (mixture, x, mixture_end(x))}


def slopes(name: str, problem, counts) -> list[float]:
    denoise, x, exact = problem
    errors = [float((final(SAMPLERS[name].run, denoise, x, karras(n)) - exact).norm()) for n in counts]
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpm2", 2)])
def test_order_of_convergence(problems, name, order, data):
    last = slopes(name, problems[data], (160, 320, 640))
    assert last[-1] == pytest.approx(order, abs=0.05)
    assert last[0] == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_lms_reaches_order_four_before_its_start_shows(problems, data):
    assert max(slopes("lms", problems[data], (40, 80, 160))) >= 3.4


# These end with noise of the list's last sigma above 0, or of 0.001 where the profile says so: see test_first_tier.py.
LEAVE_NOISE = ("dpm_fast", "dpm_adaptive", "unipc", "unipc_bh2")
# Made for distilled models: on others no number of steps keeps the spread. dpm_adaptive has no number of steps.
NO_MINIMUM = ("lcm", "tcd", "dpm_adaptive")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.37, -2.6, 11.0])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in LEAVE_NOISE])
def test_point_mass_is_exact(name, mean, dtype):
    """All data at one point: x0 is that point at every sigma, and every solver must end there, noise or not.

    ipndm's weights amplify rounding; ipndm_v's do not sum to one, so that its last step must be to x0.
    """
    exact = torch.tensor(mean, dtype=dtype)
    ulp = float(torch.nextafter(exact.abs(), torch.tensor(math.inf, dtype=dtype)) - exact.abs())
    for steps in (1, 2, 7, 30):
        for profile in (COMFYUI, A1111) if name != "ipndm_v" else (COMFYUI,):
            sampler = samplers.get(name, profile)
            levels = schedules.sigmas("karras", steps, TABLE, profile, name)
            random = noise.make_noise(profile, [4], (4, 4, 4), levels, sampler)
            x = noise.start(random, levels, TABLE, profile).to(dtype)
            x = final(sampler.run, lambda x, sigma: torch.full_like(x, mean), x, levels, random)
            assert float((x - exact).abs().max()) <= (4 if name != "ipndm" else 100) * ulp


# Final std over true std for N(0, 0.7²) on the Karras schedule, as measured with k-diffusion on 400,000 samples (+-0.0011).
# Its dpmpp_sde was measured there with independent draws for the two overlapping intervals of a step.
ANCHORS = {
    "euler": (0.048, 0.091, 0.667, 0.837, 0.936, 0.985),
    "euler_a": (0.048, 0.064, 0.533, 0.725, 0.874, 0.966),
    "dpmpp_2m": (0.048, 0.091, 1.020, 1.055, 1.008, 0.999),
    "dpmpp_sde": (0.048, 0.503, 0.661, 0.788, 0.892, 0.969),
    "dpmpp_2m_sde": (0.048, 0.064, 0.929, 1.093, 1.020, 1.002),
}
# With one Brownian path, as it must be:
PATH = {"dpmpp_sde": (0.048, 0.540, 0.819, 0.943, 0.991, 0.999)}
COUNTS = (1, 2, 5, 10, 25, 100)


class Increments:
    """Noise as vectors over independent unit normals, so that a linear run yields the exact std as the norm of its x.

    Entry 0 is the start; the others are the path's pieces between the sigmas of `grid`, or, without one, a new entry a draw.
    """

    def __init__(self, size: int, grid: list[float] | None) -> None:
        self.size, self.grid, self.used = size, grid, 0

    def __call__(self, i: int, sigma: float, sigma_next: float) -> torch.Tensor:
        out = torch.zeros(self.size, 1, 1, 1, dtype=torch.float64)
        if self.grid is None:
            self.used += 1
            out[self.used] = 1.0
            return out
        for k, (a, b) in enumerate(pairwise(self.grid), 1):
            if sigma >= a and b >= sigma_next:
                out[k] = math.sqrt((a - b) / (sigma - sigma_next))
        return out


def spread(name: str, steps: int, *, path: bool, run=None) -> float:
    """Final std over true std, exact to rounding."""
    sampler = samplers.get(name, A1111)
    levels = schedules.sigmas("karras", steps, TABLE, COMFYUI, name)
    x = torch.zeros(3 * steps + 2, 1, 1, 1, dtype=torch.float64)
    x[0] = math.hypot(levels[0], STD)
    watched: set[float] = set()
    final(sampler.run, lambda x, sigma: watched.add(sigma) or x, x, levels, lambda *_: x)
    increments = Increments(len(x), sorted(watched, reverse=True) if path else None)
    end = run(increments, x, levels) if run else final(sampler.run, gaussian(STD), x, levels, increments)
    return float(end.norm()) / STD


@pytest.mark.parametrize("name", ANCHORS)
def test_spread_of_gaussian_samples(name):
    for steps, anchor in zip(COUNTS, ANCHORS[name], strict=True):
        assert spread(name, steps, path=False) == pytest.approx(anchor, abs=0.0038)


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde"])
def test_spread_with_one_brownian_path(name):
    for steps, anchor in zip(COUNTS, PATH.get(name, ANCHORS[name]), strict=True):
        assert spread(name, steps, path=True) == pytest.approx(anchor, abs=0.0038)
    assert spread(name, 400, path=True) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("steps", [5, 25])
@pytest.mark.parametrize("name", ["euler_a", "dpm2_a", "dpmpp_2s_a", *BROWNIAN_ONES])
def test_spread_is_k_diffusions(name, steps):
    def run(increments, x, levels):
        grid = increments.grid

        def noise_sampler(a, b):  # its midpoints differ from ours in the last bits: take the grid's
            a, b = (min(grid, key=lambda g: abs(g - float(end))) for end in (a, b))
            return increments(0, a, b)

        return k_sample(name, gaussian(STD), x, levels, noise_sampler)

    assert spread(name, steps, path=True) == pytest.approx(spread(name, steps, path=True, run=run), abs=1e-9)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in NO_MINIMUM])
def test_minimum_steps(name):
    """The table's `minimum`: from there on the spread is within 20 % of the truth, and one step earlier it is not."""
    minimum = SAMPLERS[name].minimum
    assert all(abs(spread(name, steps, path=True) - 1) < 0.2 for steps in range(minimum, minimum + 6))
    assert abs(spread(name, minimum - 1, path=True) - 1) >= 0.2


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
@pytest.mark.parametrize("name", ["euler_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde"])
def test_spread_of_samples_with_the_real_noise(name, profile):
    """65,536 samples with the profile's own noise: the formula's spread within three standard errors of a std, 0.83 %."""
    sampler = samplers.get(name, profile)
    levels = schedules.sigmas("karras", 12, TABLE, COMFYUI, name)
    random = noise.make_noise(profile, [2, 3, 4, 5], (4, 64, 64), levels, sampler)
    x = final(sampler.run, gaussian(STD), noise.start(random, levels, TABLE, profile), levels, random)
    expected = spread(name, 12, path=True)
    independent = sampler.noise == "brownian" or profile is A1111  # ComfyUI's first ancestral draw is the start noise again
    assert float(x.std()) / STD == pytest.approx(expected, rel=0.0083 if independent else 0.03)
