"""Seed laws: what a picture's noise may depend on, and what each engine's habit is."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ldm.diffusion import noise, philox, samplers, schedules
from ldm.diffusion.profiles import override
from ldm.diffusion.rounding import log_trip, midpoint, nearest
from ldm.diffusion.samplers import SAMPLERS
from ldm.errors import InputError
from tests.diffusion.cases import A1111, COMFYUI, TABLE, final, mixture
from tests.diffusion.foreign import k_diffusion

LEVELS = schedules.sigmas("karras", 6, TABLE, COMFYUI, "euler")
IMAGE = (4, 8, 8)
PROFILES = {
    "comfyui": COMFYUI,
    "a1111": A1111,
    "a1111-cpu-ensd": override(A1111, {"rng": "cpu", "ensd": "31337"}),
    "flipped": override(A1111, {"ancestral_rng": "flipped", "rng": "cpu"}),
    "next-seed": override(COMFYUI, {"ancestral_rng": "next-seed", "rng": "philox"}),
}


def make(profile, seeds, name, levels=LEVELS):
    return noise.make_noise(profile, seeds, IMAGE, levels, samplers.get(name, profile))


def cpu(seed, draws=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *IMAGE, generator=generator) for _ in range(draws)]


def run(profile, seeds, name, denoise=mixture):
    random = make(profile, seeds, name)
    return final(samplers.get(name, profile).run, denoise, noise.start(random, LEVELS, TABLE, profile), LEVELS, random)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_image_of_a_batch_is_its_seed_alone(name, profile):
    batch = run(profile, [70, 71, 72], name)
    for k in range(3):
        assert torch.equal(batch[k : k + 1], run(profile, [70 + k], name))
    assert not torch.equal(batch[0], batch[1])


def test_a_gpu_is_not_waited_for(monkeypatch):
    """A copy from memory that is not pinned would wait for all that was asked of the device before."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *words, **more: calls.append((words, more)) or self)
    random = noise.make_noise(COMFYUI, [5], IMAGE, LEVELS, samplers.get("euler_a", COMFYUI), "cuda:1")
    assert torch.equal(random.first(), cpu(5)[0]) and torch.equal(random(0, *LEVELS[:2]), cpu(5)[0])
    assert calls == ["pinned", ((torch.device("cuda:1"),), {"non_blocking": True})] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["euler_a", "dpmpp_sde"])
def test_on_a_device_too(name):
    intervals = [(i, LEVELS[i], LEVELS[i + 1]) for i in range(5)]
    here, there = (noise.make_noise(COMFYUI, [5, 6], IMAGE, LEVELS, samplers.get(name, COMFYUI), place) for place in ("cpu", "cuda"))
    answers = [there.first(), *(there(*asked) for asked in intervals)]
    torch.cuda.synchronize()
    wanted = [here.first(), *(here(*asked) for asked in intervals)]
    assert all(torch.equal(one.cpu(), two) for one, two in zip(answers, wanted, strict=True))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("name", ["euler_a", "dpmpp_sde", "dpmpp_2m_sde"])
def test_noise_does_not_depend_on_the_order_of_questions(name, profile):
    intervals = [(i, LEVELS[i], end) for i in range(5) for end in (midpoint(LEVELS[i], LEVELS[i + 1]), LEVELS[i + 1])]
    forward, backward = make(profile, [5, 6], name), make(profile, [5, 6], name)
    first, answers = forward.first(), {asked: forward(*asked) for asked in intervals}
    for asked in reversed(intervals):
        assert torch.equal(backward(*asked), answers[asked])
    assert torch.equal(backward.first(), first)


def test_two_threads_share_everything():
    shared = [(profile, name) for profile in PROFILES.values() for name in SAMPLERS] * 2
    alone = [run(profile, [9, 10], name) for profile, name in shared]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda job: run(job[0], [9, 10], job[1]), shared))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_one_sampler_in_two_interleaved_runs():
    for name in SAMPLERS:
        noises = [make(COMFYUI, [1], name), make(COMFYUI, [2], name)]
        runs = [SAMPLERS[name].run(mixture, random.first() * LEVELS[0], LEVELS, random) for random in noises]
        steps = list(zip(*runs, strict=True))
        for k in range(2):
            alone = make(COMFYUI, [k + 1], name)
            assert torch.equal(steps[-1][k].x, final(SAMPLERS[name].run, mixture, alone.first() * LEVELS[0], LEVELS, alone))


def test_start_scales():
    unit, sigma = cpu(1)[0], LEVELS[0]

    def start(profile, levels=LEVELS):
        return noise.start(make(profile, [1], "euler", levels), levels, TABLE, profile)

    assert torch.allclose(start(COMFYUI), unit * math.sqrt(1 + sigma**2), rtol=1e-6)
    assert float((start(COMFYUI) / unit).median()) == pytest.approx(14.6488, abs=1e-4)
    assert torch.allclose(start(COMFYUI, LEVELS[1:]), unit * LEVELS[1], rtol=1e-6)  # not from the table's end: sigma
    cpu_a1111 = override(A1111, {"rng": "cpu"})
    assert torch.allclose(start(cpu_a1111), unit * sigma, rtol=1e-6)
    always = override(COMFYUI, {"start_noise": "sqrt1p"})
    assert torch.allclose(start(always, LEVELS[1:]), unit * math.sqrt(1 + LEVELS[1] ** 2), rtol=1e-6)


@pytest.mark.parametrize(("schedule", "more"), [(None, True), ("normal", True), ("trailing", False)])
def test_start_noise_by_spacing_asks_the_schedule(schedule, more):
    """The list "trailing" begins at the table's end whatever the profile spaces "normal" by."""
    rules = override(COMFYUI, {"start_noise": "by-spacing", "spacing": "leading"})
    wanted = math.sqrt(1 + LEVELS[0] ** 2) if more else LEVELS[0]
    assert torch.allclose(noise.start(make(rules, [1], "euler"), LEVELS, TABLE, rules, "euler", schedule), cpu(1)[0] * wanted, rtol=1e-6)


@pytest.mark.parametrize(("below", "full"), [(5e-5, False), (5e-6, True)])
def test_a_list_is_full_within_1e_5_of_the_tables_end(below, full):
    """Whether an image to image run at almost full strength begins as one from noise alone."""
    levels = [nearest(TABLE.high * (1 - below)), *LEVELS[1:]]
    unit, sigma = cpu(1)[0], levels[0]
    for profile, expected in ((COMFYUI, math.sqrt(1 + sigma**2) if full else sigma), (A1111, sigma)):
        random = make(override(profile, {"rng": "cpu"}), [1], "euler", levels)
        assert torch.allclose(noise.start(random, levels, TABLE, profile), unit * expected, rtol=1e-6, atol=0)


def test_start_noise_of_philox():
    assert torch.equal(make(A1111, [3, 4], "euler").first()[1], philox.randn(4, 0, IMAGE))


def test_ancestral_habits():
    def draws(profile):
        random = make(profile, [8], "euler_a")
        return [random(i, LEVELS[i], LEVELS[i + 1]) for i in range(2)]

    stream = cpu(8, 3)
    assert all(torch.equal(a, b) for a, b in zip(draws(COMFYUI), stream[:2], strict=True))  # the start noise again
    following = override(COMFYUI, {"ancestral_rng": "next-seed"})
    assert all(torch.equal(a, b) for a, b in zip(draws(following), cpu(9, 2), strict=True))
    continued = override(A1111, {"rng": "cpu"})
    assert all(torch.equal(a, b) for a, b in zip(draws(continued), stream[1:], strict=True))
    flipped = override(COMFYUI, {"ancestral_rng": "flipped"})
    assert all(torch.equal(a, b) for a, b in zip(draws(flipped), cpu(8 ^ 0xFFFFFFFF, 2), strict=True))
    ensd = override(continued, {"ensd": "31337"})
    assert all(torch.equal(a, b) for a, b in zip(draws(ensd), cpu(8 + 31337, 2), strict=True))
    for ensd, seed in ((-5, 3), (-11, 2**64 - 3)):  # below zero too, modulo 2^64
        assert all(torch.equal(a, b) for a, b in zip(draws(override(continued, {"ensd": str(ensd)})), cpu(seed, 2), strict=True))


def test_comfyuis_own_batch_is_one_draw():
    whole = override(COMFYUI, {"batch_noise": "one-draw", "brownian": "batch"})
    generator = torch.Generator().manual_seed(8)
    batch = torch.randn(3, *IMAGE, generator=generator)
    random = make(whole, [8, 9, 10], "euler_a")
    assert torch.equal(random.first(), batch)
    assert torch.equal(random(0, LEVELS[0], LEVELS[1]), batch)
    assert torch.equal(random.first()[:1], make(COMFYUI, [8], "euler_a").first())


@pytest.mark.filterwarnings("ignore:Should have tb<=t1")
@pytest.mark.parametrize("mode", ["per-image", "batch"])
def test_brownian_noise_is_k_diffusions(mode):
    exact, seeds = torch.tensor(LEVELS), [8, 9]
    profile = override(COMFYUI, {"brownian": mode})
    x = torch.zeros(2, *IMAGE)
    theirs = k_diffusion("sampling").BrownianTreeNoiseSampler(x, exact[-2], exact[0], seed=seeds if mode == "per-image" else seeds[0])
    ours = make(profile, seeds, "dpmpp_2m_sde")
    for a, b in [(0, 1), (4, 5), (1, 2), (0, 5), (2, 4)]:
        assert torch.equal(ours(a, LEVELS[a], LEVELS[b]), theirs(exact[a], exact[b]))


def test_brownian_ends_in_log_time():
    trip = override(A1111, {"rng": "cpu"})
    exact = make(COMFYUI, [8], "dpmpp_sde")
    tripped, direct = make(trip, [8], "dpmpp_sde"), make(trip, [8], "dpmpp_2m_sde")
    changed = [i for i in range(5) if (log_trip(LEVELS[i]), log_trip(LEVELS[i + 1])) != (LEVELS[i], LEVELS[i + 1])]
    assert changed, "log_trip should move a last bit somewhere"
    for i in changed:
        assert torch.equal(tripped(i, LEVELS[i], LEVELS[i + 1]), exact(i, log_trip(LEVELS[i]), log_trip(LEVELS[i + 1])))
        assert torch.equal(direct(i, LEVELS[i], LEVELS[i + 1]), exact(i, LEVELS[i], LEVELS[i + 1]))


def test_brownian_path_takes_the_random_source():
    ours, cpu_noise = make(A1111, [8], "dpmpp_2m_sde"), make(override(A1111, {"rng": "cpu"}), [8], "dpmpp_2m_sde")
    assert not torch.allclose(ours(0, LEVELS[0], LEVELS[1]), cpu_noise(0, LEVELS[0], LEVELS[1]), atol=0.1)


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
def test_unit_variance(profile):
    for name in ("euler_a", "dpmpp_sde"):
        random = noise.make_noise(profile, [1], (4, 64, 64), LEVELS, samplers.get(name, profile))
        for i in range(5):
            out = random(i, LEVELS[i], LEVELS[i + 1])
            assert out.shape == (1, 4, 64, 64) and out.dtype == torch.float32
            assert float(out.std()) == pytest.approx(1, abs=0.02) and abs(float(out.mean())) < 0.03


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
def test_a_table_of_zero_terminal_snr(profile):
    """Paths over sigmas up to 4518, and a start of that size."""
    table = schedules.SigmaTable(profile.alphas, zero_terminal=True)
    levels = schedules.sigmas("normal", 8, table, profile, "dpmpp_sde")
    for name in ("dpmpp_sde", "dpmpp_2m_sde", "euler_a"):
        random = noise.make_noise(profile, [1, 2], (4, 64, 64), levels, samplers.get(name, profile))
        begin = noise.start(random, levels, table, profile)
        assert float(begin.std()) == pytest.approx(table.high, rel=0.02)
        for i in range(7):
            parts = [random(i, levels[i], end) for end in (midpoint(levels[i], levels[i + 1]), levels[i + 1])]
            assert all(part.isfinite().all() and float(part.std()) == pytest.approx(1, abs=0.03) for part in parts)


@pytest.mark.parametrize("profile", [COMFYUI, A1111], ids=["comfyui", "a1111"])
def test_no_time_between_two_ends_is_no_noise(profile):
    for levels in ([3.0, 2.999999999, 0.0], [90_000.000002, 90_000.0, 0.0]):  # each two are one number in float32
        random = make(profile, [1, 2], "dpmpp_2m_sde", levels)
        assert torch.equal(random(0, levels[0], levels[1]), torch.zeros(2, *IMAGE))


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("levels", [[], [1.0], [0.0, 0.0], [1.0, math.nan], [math.inf, 0.0], [1.0, 2.0], [-1.0, -2.0]])
def test_noise_of_an_impossible_list_is_refused(name, levels):
    with pytest.raises(InputError, match="strictly decreasing"):
        make(COMFYUI, [1], name, levels)


def test_seeds_up_to_the_last():
    for profile in PROFILES.values():
        for name in ("euler_a", "dpmpp_sde"):
            assert run(profile, [2**64 - 1], name).isfinite().all()
