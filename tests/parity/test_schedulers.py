"""The profile "diffusers" as a whole: list, timesteps, start noise, noise on the way, solver and last step, beside its own schedulers."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("diffusers", reason="parity with diffusers (extra: parity)")

from ldm.diffusion import noise, samplers, schedules, timesteps
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.profiles import Profile, load_profile, override
from ldm.measure import relative_error
from ldm.parity import schedulers

SEED, SHAPE = 5, (1, 4, 8, 8)
MIXED = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 0.3
SPACINGS = {"leading": "leading", "trailing": "trailing", "linspace": "linspace-linear"}
CASES = [(name, "normal") for name in schedulers.shared(False)] + [(name, "karras") for name in schedulers.shared(True)]


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """A smooth function of x and t, far from linear."""
    return torch.tanh(torch.einsum("ij,bjhw->bihw", MIXED, x) + 0.9 * x + math.sin(t / 300)) * (1 + t / 2000)


class Watched:
    def __init__(self) -> None:
        self.ts: list[float] = []

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.ts.append(t)
        return network(x, t)


def ours(rules: Profile, name: str, schedule: str, steps: int, model: Watched) -> torch.Tensor:
    table, sampler = schedules.SigmaTable(rules.alphas), samplers.get(name, rules)
    levels = schedules.sigmas(schedule, steps, table, rules, name)
    random = noise.make_noise(rules, [SEED], SHAPE, levels, sampler)
    x = noise.start(random, levels, table, rules, name)
    denoise = Denoiser(model, table, "epsilon", timesteps.rule(rules, schedule, name))
    for step in sampler.run(denoise, x, levels, random):
        x = step.x
    return noise.leave(x, levels, rules, name)


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_a_whole_run(name, schedule, steps):
    """Float32 on both sides."""
    mine, their = Watched(), Watched()
    scheduler = schedulers.make(name, karras=schedule == "karras", prediction="epsilon", seed=SEED)
    theirs = schedulers.run(scheduler, their, SHAPE, steps, SEED)
    z = ours(load_profile("diffusers"), name, schedule, steps, mine)
    assert relative_error(z, theirs) < 2e-6
    assert len(mine.ts) == len(their.ts)
    assert max(abs(a - b) for a, b in zip(mine.ts, their.ts, strict=True)) < 2e-4


@pytest.mark.parametrize("name", ["euler", "euler_a", "heun", "dpmpp_2m", "unipc_bh2"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_its_other_spacings(name, spacing):
    rules = override(load_profile("diffusers"), {"spacing": SPACINGS[spacing]})
    mine, their = Watched(), Watched()
    scheduler = schedulers.make(name, karras=False, prediction="epsilon", seed=SEED, spacing=spacing)
    theirs = schedulers.run(scheduler, their, SHAPE, 20, SEED)
    assert relative_error(ours(rules, name, "normal", 20, mine), theirs) < 2e-6
    assert max(abs(a - b) for a, b in zip(mine.ts, their.ts, strict=True)) < 2e-4


def test_invokeais_noise_on_the_way():
    """Its first noise is the seed's, its steps' that of a generator whose seed has the low 32 bits inverted."""
    mine, scheduler = Watched(), schedulers.make("euler_a", karras=False, prediction="epsilon", seed=SEED)
    scheduler.set_timesteps(8)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(SEED)) * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(SEED ^ 0xFFFFFFFF)
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x, generator=generator, return_dict=False)[0]
    assert relative_error(ours(load_profile("invokeai"), "euler_a", "normal", 8, mine), x) < 2e-6


def test_start_noise_by_spacing():
    """At 30 steps the Euler family starts from noise of std 11.5203 under "leading", of the first sigma itself under the others."""
    rules = load_profile("diffusers")
    table = schedules.SigmaTable(rules.alphas)
    scales = []
    for spacing in SPACINGS.values():
        rules = override(rules, {"spacing": spacing})
        levels = schedules.sigmas("normal", 30, table, rules, "euler")
        random = noise.make_noise(rules, [SEED], SHAPE, levels, samplers.get("euler", rules))
        scales.append(float((noise.start(random, levels, table, rules, "euler") / random.first()).median()))
    assert scales == pytest.approx([11.5203, 14.6146, 14.6146], abs=1e-4)
    assert float((noise.start(random, [2.0, 0.0], table, rules, "dpmpp_2m") / random.first()).median()) == pytest.approx(math.sqrt(5))


def test_what_is_not_compared_has_a_reason():
    known = set(schedulers.shared(False)) | set(schedulers.APART)
    import diffusers

    for name in samplers.SAMPLERS:
        kind = {"lcm": "LCMScheduler", "tcd": "TCDScheduler", "ipndm": "IPNDMScheduler"}.get(name)
        assert kind is None or (hasattr(diffusers, kind) and name in known)
    assert all(reason for reason in schedulers.APART.values())
