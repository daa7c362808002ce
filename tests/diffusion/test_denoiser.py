"""The denoiser: exact for a network that knows the answer, equal to k-diffusion's wrapper, rules of the timestep."""

from __future__ import annotations

import math

import pytest
import torch

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.schedules import SigmaTable
from ldm.errors import InputError
from tests.diffusion.cases import TABLE, state
from tests.diffusion.foreign import k_diffusion


@pytest.mark.parametrize("sigma", [14.6146, 1.0, 0.03])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_perfect_network_gives_the_data_back(prediction, sigma):
    z, eps = state(2, 4, 3, 3, scale=0.5), state(2, 4, 3, 3, scale=0.4).flip(0)
    cos, sin = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
    answer = eps if prediction == "epsilon" else cos * eps - sin * z
    seen = []

    def predict(x, t):
        seen.append((x, t))
        return answer

    x0 = Denoiser(predict, TABLE, prediction=prediction, timestep="float")(z + sigma * eps, sigma)
    assert torch.allclose(x0, z, atol=1e-13)
    (x_in, t), expected = seen[0], cos * z + sin * eps
    assert torch.allclose(x_in, expected, atol=1e-13)
    assert t == TABLE.locate(sigma, "float")[0]


@pytest.mark.parametrize("rule", ["float", "nearest-log", "nearest-snap"])
def test_float32_is_accurate_at_the_end_of_zero_terminal_tables(rule):
    """x is noise of std 4518 there; data of a few units must come out of it to float32's own error."""
    table = SigmaTable(zero_terminal=True)
    sigma = table.high
    z, eps = state(2, 4, 8, 8, scale=0.5), state(2, 4, 8, 8, scale=0.4).flip(0)
    scale = 1 / math.sqrt(1 + sigma**2)
    v = scale * eps - sigma * scale * z
    seen = []

    def predict(x, t):
        seen.append((x, t))
        return v.float()

    x0 = Denoiser(predict, table, prediction="v", timestep=rule)((z + sigma * eps).float(), sigma)
    assert float((x0.double() - z).abs().max()) <= 2e-7
    assert seen[0][1] == 999 and float((seen[0][0].double() - eps).abs().max()) < 5e-4


def test_epsilon_with_zero_terminal_is_refused():
    with pytest.raises(InputError, match="needs v-prediction"):
        Denoiser(lambda x, t: x, SigmaTable(zero_terminal=True), prediction="epsilon", timestep="float")


@pytest.mark.parametrize(("rule", "t", "used"), [("float", 353.89, 1.0), ("nearest-log", 354.0, 1.0), ("nearest-snap", 354.0, 1.000365)])
def test_the_sigma_that_denoises(rule, t, used):
    denoise = Denoiser(lambda x, t: torch.ones_like(x) * t, TABLE, prediction="epsilon", timestep=rule)
    assert denoise.time(1.0) == pytest.approx(t, abs=5e-3)
    x0 = denoise(torch.zeros(1, 4, 2, 2, dtype=torch.float64), 1.0)
    assert float(-x0[0, 0, 0, 0] / denoise.time(1.0)) == pytest.approx(used, abs=1e-6)


def test_the_network_may_compute_in_another_dtype():
    denoise = Denoiser(lambda x, t: x.to(torch.bfloat16), TABLE, prediction="epsilon", timestep="float")
    assert denoise(state(1, 4, 2, 2, dtype=torch.float32), 2.0).dtype == torch.float32


def test_equal_to_k_diffusions_wrapper():
    table = SigmaTable("float32")
    alphas_bar = 1 / (1 + table.sigmas.double() ** 2)

    class Wrapper(k_diffusion("external").DiscreteEpsDDPMDenoiser):
        def __init__(self):
            super().__init__(None, alphas_bar.float(), quantize=False)
            self.register_buffer("sigmas", table.sigmas)
            self.register_buffer("log_sigmas", table.log_sigmas)

        def get_eps(self, x, t):
            return torch.sin(x * 3 + t[0] / 100)

    denoise = Denoiser(lambda x, t: torch.sin(x * 3 + t / 100), table, prediction="epsilon", timestep="float")
    x = state(2, 4, 3, 3, scale=3, dtype=torch.float32)
    for sigma in (14.614642143249512, 3.25, 0.5):
        torch.testing.assert_close(denoise(x, sigma), Wrapper()(x, torch.full((2,), sigma)), rtol=1e-5, atol=1e-5)
