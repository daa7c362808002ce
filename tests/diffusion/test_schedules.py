"""The sigma table, the schedules and the timestep rules, against k-diffusion, diffusers and published figures."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion import beta, schedules, timesteps
from ldm.diffusion.profiles import load_profile, override
from ldm.diffusion.rounding import log_trip, midpoint, nearest
from ldm.diffusion.schedules import SCHEDULES, SigmaTable
from ldm.errors import InputError
from tests.diffusion.cases import A1111, COMFYUI, TABLE
from tests.diffusion.foreign import k_diffusion

TABLE_ERROR = 1e-5  # diffusers cumulates its alphas in float32
DIFFUSERS = load_profile("diffusers")
FROM_THE_TOP = [name for name in SCHEDULES if name not in ("ddim_uniform", "align_your_steps", "align_your_steps_sd15")]
GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "diffusion.npz")


def make(schedule, steps, profile=COMFYUI, sampler="euler", table=TABLE):
    return schedules.sigmas(schedule, steps, table, profile, sampler)


# Ends of the table as ComfyUI and sgm (float64), A1111 (float32) and A1111 with "Downcast alphas_cumprod" have them.
@pytest.mark.parametrize(
    ("alphas", "low", "high"), [("float64", 0.02916716, 14.6146412), ("float32", 0.02916753, 14.6146421), ("float16", 0.03125, 14.609375)]
)
def test_table_ends(alphas, low, high):
    table = SigmaTable(alphas)
    assert table.low == pytest.approx(low, abs=6e-9)
    assert table.high == pytest.approx(high, abs=1e-6)
    assert table.sigmas.shape == table.log_sigmas.shape == (1000,)
    assert table.sigmas.dtype == torch.float32


def test_zero_terminal_ends():
    """ComfyUI's last alpha, and the sigma that it gives; the table's other end stays."""
    for alphas, low in (("float64", 0.02916716), ("float32", 0.02916753)):
        table = SigmaTable(alphas, zero_terminal=True)
        assert table.zero_terminal and not SigmaTable(alphas).zero_terminal
        assert table.high == pytest.approx(math.sqrt(1 / 4.8973451890853435e-08 - 1), rel=1e-6) == pytest.approx(4518.76, abs=0.01)
        assert table.low == pytest.approx(low, abs=6e-9)
        assert table.sigmas.isfinite().all() and table.log_sigmas.isfinite().all() and bool((table.sigmas.diff() > 0).all())
    with pytest.raises(InputError, match=r"float16.*zero terminal.*--set alphas=float32"):
        SigmaTable("float16", zero_terminal=True)


def test_zero_terminal_is_the_papers_rule():
    """Shifted and scaled in sqrt(alpha): the first stays, the last but for LAST_ALPHA is 0, what lies between keeps its ratios."""
    plain, table = ((1 + SigmaTable(zero_terminal=zero).sigmas.double() ** 2) ** -0.5 for zero in (False, True))
    expected = (plain - plain[-1]) / (plain[0] - plain[-1]) * plain[0]
    torch.testing.assert_close(table[:-1], expected[:-1], rtol=2e-6, atol=2e-9)  # the two tables are float32


def test_zero_terminal_is_diffusers():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim", reason="the rule is compared with diffusers' (extra: parity)")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = (1 - scheduling.rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = 1 / (1 + SigmaTable(zero_terminal=True).sigmas.double() ** 2)
    assert float(theirs[-1]) == 0.0  # theirs is then patched to 2^-24, sigma 4096; ours follows ComfyUI
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-6, atol=0)
    single = 1 / (1 + SigmaTable("float32", zero_terminal=True).sigmas.double() ** 2)
    torch.testing.assert_close(single[:-1], theirs[:-1], rtol=2e-3, atol=0)  # float32 near zero terminal has few digits left


@pytest.mark.parametrize("alphas", ["float64", "float32"])
@pytest.mark.parametrize("schedule", FROM_THE_TOP)
def test_lists_of_zero_terminal_tables(schedule, alphas):
    table = SigmaTable(alphas, zero_terminal=True)
    for steps in (1, 2, 20, 1000):
        values = make(schedule, steps, table=table)
        near = 1e-3 if schedule == "kl_optimal" else 1e-6  # its arctangent is within 2e-4 of a right angle's, in float32
        assert values[0] == pytest.approx(table.high, rel=near) and values[-1] == 0.0 and all(map(math.isfinite, values))


def test_timestep_rules_of_zero_terminal_tables():
    table = SigmaTable(zero_terminal=True)
    for t in (0, 500, 998, 999):
        sigma = float(table.sigmas[t])
        assert table.locate(sigma, "nearest-log") == table.locate(sigma, "nearest-snap") == (t, sigma)
        assert table.locate(sigma, "float")[0] == pytest.approx(t, abs=1e-3)
    wide = math.sqrt(table.sigmas[998] * table.sigmas[999])  # half way up the last step, in log sigma
    assert table.locate(nearest(wide), "float")[0] == pytest.approx(998.5, abs=1e-3)
    assert table.locate(nearest(wide * 0.9), "nearest-log")[0] == 998 and table.locate(nearest(wide * 1.03), "nearest-log")[0] == 999
    assert table.locate(nearest(wide * 1.03), "nearest-snap")[0] == 998  # nearer in sigma
    assert table.locate(1e6, "float")[0] == 999


# First three and last of 30 steps: published by the engines' users, or computed from the rule by hand.
@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        ("karras", (14.6146, 12.6606, 10.9349), 0.02917),
        ("exponential", (14.6146, 11.7947, 9.5189), 0.02917),
        ("normal", (14.6146, 11.9175, 9.8142), 0.02917),
        ("sgm_uniform", (14.6146, 11.9969, 9.9391), 0.18013),
        ("simple", (14.6146, 12.0177, 9.9720), 0.17926),
        ("trailing", (14.6146, 12.0177, 9.9172), 0.17632),
        ("polyexponential", (14.6146, 11.7947, 9.5189), 0.02917),
        ("linear_quadratic", (14.6146, 14.5903, 14.5659), 1.81384),
        ("kl_optimal", (14.6146, 8.3550, 5.8282), 0.02917),
    ],
)
def test_thirty_steps(schedule, first, last):
    values = make(schedule, 30)
    assert len(values) == 31 and values[-1] == 0.0
    assert values[:3] == pytest.approx(first, abs=6e-5)
    assert values[-2] == pytest.approx(last, abs=6e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("profile", [COMFYUI, A1111])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 150])
def test_lists_are_exact_floats_that_fall_to_zero(schedule, profile, steps):
    values = make(schedule, steps, profile, table=SigmaTable(profile.alphas))
    assert len(values) == steps + 1 or schedule in ("ddim_uniform", "beta")
    low = schedule == "kl_optimal" and profile is A1111
    assert values[-1] == (pytest.approx(0.0291675, abs=1e-7) if low else 0.0)
    assert all(type(v) is float and float(np.float32(v)) == v for v in values)
    assert all(a > b for a, b in pairwise(values))
    assert values[0] == pytest.approx(14.6146, abs=5e-4) or schedule == "ddim_uniform"


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20, 30, 77])
def test_karras_exponential_and_normal_have_k_diffusions_bits(steps):
    sampling, external = k_diffusion("sampling"), k_diffusion("external")
    for table in (TABLE, SigmaTable("float32")):
        assert make("karras", steps, table=table) == sampling.get_sigmas_karras(steps, table.low, table.high).tolist()
        assert make("exponential", steps, table=table) == sampling.get_sigmas_exponential(steps, table.low, table.high).tolist()
        assert make("polyexponential", steps, table=table) == sampling.get_sigmas_polyexponential(steps, table.low, table.high).tolist()
    table = SigmaTable("float32")
    assert make("normal", steps, table=table) == external.DiscreteSchedule(table.sigmas, quantize=False).get_sigmas(steps).tolist()


@pytest.mark.parametrize("key", [key for key in GOLDEN.files if key.startswith("schedule/")])
def test_stored_lists(key):
    _, source, schedule, spacing, steps = key.split("/")
    profile = override(COMFYUI, {"spacing": spacing, "karras_range": "spaced" if source == "diffusers" else "model"})
    values = make(schedule, int(steps), profile, table=SigmaTable("float32"))
    np.testing.assert_allclose(values, GOLDEN[key], rtol=TABLE_ERROR if source == "diffusers" else 5e-7)


@pytest.mark.parametrize("spacing", ["linspace-linear", "leading", "trailing"])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", [5, 30, 47])
def test_spacings_are_diffusers(spacing, karras, steps):
    pytest.importorskip("diffusers", reason="the spacings are diffusers' own (extra: parity)")
    from tests.diffusion.references import diffusers_sigmas

    profile = override(COMFYUI, {"spacing": spacing, "karras_range": "spaced"})
    values = make("karras" if karras else "normal", steps, profile, table=SigmaTable("float32"))
    np.testing.assert_allclose(values, diffusers_sigmas(steps, spacing, karras=karras), rtol=TABLE_ERROR)


def test_spaced_steps_by_hand():
    def steps(spacing):
        table, profile = SigmaTable("float32"), override(COMFYUI, {"spacing": spacing})
        return [table.locate(sigma, "nearest-log")[0] for sigma in make("normal", 30, profile, table=table)[:-1]]

    assert steps("leading")[:2] + steps("leading")[-2:] == [958, 925, 34, 1]
    assert steps("trailing")[:4] + steps("trailing")[-1:] == [999, 966, 932, 899, 32]
    assert steps("legacy")[:4] + steps("legacy")[-1:] == [999, 965, 932, 899, 33]


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 30, 500, 999, 1000])
def test_trailing_is_diffusers(steps):
    """The list of models made for few steps: their Euler scheduler with timestep_spacing="trailing", whatever the profile."""
    pytest.importorskip("diffusers", reason="the list is diffusers' own (extra: parity)")
    from tests.diffusion.references import diffusers_sigmas

    for profile in (COMFYUI, A1111, override(COMFYUI, {"spacing": "leading"})):
        values = make("trailing", steps, profile, table=SigmaTable("float32"))
        np.testing.assert_allclose(values, diffusers_sigmas(steps, "trailing", karras=False), rtol=TABLE_ERROR)


def test_trailing_takes_whole_training_steps():
    assert make("trailing", 1) == [float(TABLE.sigmas[999]), 0.0]
    assert make("trailing", 4) == [*(float(TABLE.sigmas[t]) for t in (999, 749, 499, 249)), 0.0]
    stored = GOLDEN["schedule/diffusers/normal/trailing/30"]
    np.testing.assert_allclose(make("trailing", 30, table=SigmaTable("float32")), stored, rtol=TABLE_ERROR)
    for steps in range(1, 1001):
        t = schedules.timesteps(steps, "trailing")
        assert t[0] == 999 and t[-1] >= 0 and bool((t.diff() < 0).all())


# Counts and first steps as users of the engines see them (facts of the dialects, not of this code).
@pytest.mark.parametrize(
    ("steps", "count", "first"), [(20, 20, 951), (13, 14, 989), (30, 31, 991), (60, 63, 993), (1, 1, 1), (1000, 999, 999)]
)
def test_ddim_uniform_takes_what_fits(steps, count, first):
    values = make("ddim_uniform", steps)
    assert len(values) == count + 1
    assert values[0] == float(TABLE.sigmas[first]) and values[-2:] == [float(TABLE.sigmas[1]), 0.0]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 500, 1000])
def test_beta_is_scipys(steps):
    stats = pytest.importorskip("scipy.stats", reason="the quantiles are compared with scipy's (extra: parity)")
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    entries = TABLE.sigmas.numpy()[np.unique(np.rint(quantiles * 999).astype(int))[::-1]]
    assert make("beta", steps) == [*entries.astype(float), 0.0]
    whole = stats.beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    table = SigmaTable("float32")
    np.testing.assert_allclose(make("beta", steps, A1111, table=table)[:-1], table.low + whole * (table.high - table.low), rtol=1e-6)


def test_beta_quantiles():
    stats = pytest.importorskip("scipy.stats", reason="the quantiles are compared with scipy's (extra: parity)")
    for shape in ((0.6, 0.6), (0.5, 0.7), (1, 1), (2, 3), (0.3, 5.0), (1.2, 0.6)):
        for p in (0.0, 1e-9, 1e-4, *np.linspace(0.01, 0.99, 33), 1 - 1e-6, 1.0):
            x = beta.quantile(float(p), *shape)
            assert x == pytest.approx(stats.beta.ppf(p, *shape), abs=1e-12)
            assert not 0 < x < 1 or beta.distribution(x, *shape) == pytest.approx(p, abs=1e-12)


def test_beta_quantiles_without_scipy():
    """The arcsine law and the uniform one in closed form, and the symmetry."""
    for p in np.linspace(0, 1, 41):
        assert beta.quantile(float(p), 0.5, 0.5) == pytest.approx(math.sin(math.pi * p / 2) ** 2, abs=1e-13)
        assert beta.quantile(float(p), 1, 1) == pytest.approx(p, abs=1e-14)
        assert beta.quantile(float(p), 0.6, 0.6) == pytest.approx(1 - beta.quantile(1 - float(p), 0.6, 0.6), abs=1e-13)


def test_kl_optimal_is_even_in_the_arctangent():
    for profile, count in ((COMFYUI, 20), (A1111, 21)):
        values = make("kl_optimal", 20, profile)
        above = [value for value in values if value]
        assert len(above) == count and len(values) == 21
        assert (above[0], above[-1]) == (pytest.approx(TABLE.high, rel=1e-6), pytest.approx(TABLE.low, rel=1e-6))
        np.testing.assert_allclose(np.diff(np.arctan(above)), np.diff(np.arctan(above)).mean(), atol=5e-7)
    assert make("kl_optimal", 1) == [pytest.approx(TABLE.high, rel=1e-6), 0.0]


PUBLISHED = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
FULL = [14.6146412, 6.3184485, 3.7681790, 2.1811481, 1.3405245, 0.8620721, 0.5550693, 0.3798541, 0.2332364, 0.1114188]


def test_align_your_steps():
    assert make("align_your_steps", 11, A1111) == pytest.approx([*PUBLISHED, 0])
    assert make("align_your_steps", 10, A1111)[:3] == pytest.approx([14.615, 5.963, 3.339], abs=5e-4)
    assert make("align_your_steps", 10, COMFYUI) == pytest.approx([*FULL, 0], abs=2e-7)
    for steps in (2, 4, 20, 30, 50):
        for profile, values, count in ((A1111, PUBLISHED, steps), (COMFYUI, [*FULL, 0.0291671582], steps + 1)):
            logs = np.interp(np.linspace(0, 10, count), np.arange(11), np.log(values))
            np.testing.assert_allclose(make("align_your_steps", steps, profile), [*np.exp(logs)[:steps], 0], rtol=1e-6)
    assert make("align_your_steps_sd15", 11, A1111)[1:4] == pytest.approx([6.475, 3.861, 2.697])
    assert make("align_your_steps_sd15", 10, COMFYUI)[1:4] == pytest.approx([6.4745761, 3.8636746, 2.6946152])


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 11, 30])
@pytest.mark.parametrize("sampler", ["ddim", "deis", "sa_solver"])
@pytest.mark.parametrize("name", ["align_your_steps", "align_your_steps_sd15"])
def test_a_list_that_goes_below_the_tables_end_stops_there(name, sampler, steps):
    """The published lists end at 0.029, the table at 0.0291675."""
    rules = load_profile("diffusers")
    table = schedules.SigmaTable(rules.alphas)
    levels = make(name, steps, rules, sampler, table)
    plain = make(name, steps, rules, "euler", table)
    above = [sigma for sigma in plain if sigma > table.low]
    assert levels == [*above, table.low] and len(above) == max(steps - 1, 1)


def test_a_list_made_from_steps_keeps_them():
    """The table's own entry for a sigma that is one; on a table made in float64 the interpolated t is a rounding beside it."""
    rules = override(load_profile("diffusers"), {"alphas": "float64"})
    table, rule = schedules.SigmaTable(rules.alphas), timesteps.rule(rules, "normal", "euler")
    levels = schedules.sigmas("normal", 30, table, rules, "euler")[:-1]
    assert [table.locate(sigma, rule)[0] for sigma in levels] == list(range(958, 0, -33))
    assert [table.locate(sigma, "float")[0] for sigma in levels] != list(range(958, 0, -33))
    assert timesteps.rule(rules, "karras", "euler") == timesteps.rule(rules, None, "euler") == "float"


@pytest.mark.parametrize("steps", [2, 3, 4, 20, 31, 500])
def test_linear_quadratic(steps):
    """Even steps that go down by 0.025 of the range in all, then second differences that are all the same, and 0 at the end."""
    gone = 1 - np.array(make("linear_quadratic", steps)) / TABLE.high
    half, paces = steps // 2, np.diff(gone)
    assert gone[half] == pytest.approx(0.025, abs=1e-6) and gone[-1] == 1
    np.testing.assert_allclose(paces[:half], 0.025 / half, atol=2e-7)
    bend = np.diff(paces[half:])
    np.testing.assert_allclose(bend, bend.mean() if len(bend) else 0, atol=3e-7)
    first = 0.025 / half  # the parabola starts with the line's slope
    assert paces[half] - first == pytest.approx(bend.mean() / 2 if len(bend) else paces[half] - first, abs=1e-6)


def test_ends_of_the_range_by_profile():
    """As users publish them: A1111's Karras over the model's range, diffusers' over its spaced steps, sgm's with rounded ends."""
    table = SigmaTable("float32-betas")
    assert make("karras", 30, A1111)[:3] == pytest.approx([14.6146, 12.6606, 10.9349], abs=6e-5)
    assert make("karras", 30, DIFFUSERS, table=table)[:3] == pytest.approx([11.47685, 10.0313, 8.7447], abs=6e-5)
    assert make("karras", 30, DIFFUSERS, table=table)[-2] == pytest.approx(0.04131, abs=6e-6)
    trailing = override(DIFFUSERS, {"spacing": "trailing"})
    assert make("karras", 30, trailing, table=table)[-2] == pytest.approx(0.1763, abs=6e-5)
    for spacing in ("leading", "trailing"):
        whole = make("karras", 30, override(DIFFUSERS, {"spacing": spacing}), "dpmpp_2m", table)
        assert [*whole[:3], whole[-2]] == pytest.approx([14.6146, 12.6606, 10.9349, 0.02917], abs=6e-5)
    assert make("karras", 30, override(DIFFUSERS, {"karras_range": "rounded"}), table=table)[0] == pytest.approx(14.6146, rel=1e-7)


def test_some_schedulers_end_at_the_tables_least():
    table = SigmaTable("float32-betas")
    values = make("normal", 20, DIFFUSERS, "deis", table)
    assert len(values) == 21 and values[-1] == table.low == pytest.approx(0.02916753, abs=1e-8)
    assert (
        make("karras", 20, DIFFUSERS, "deis", table) == make("karras", 20, DIFFUSERS, "dpmpp_2m", table)[:-1]
    )  # its last step goes nowhere


def test_some_samplers_lose_the_last_but_one():
    whole = make("karras", 21)
    assert make("karras", 20, COMFYUI, "dpm2") == whole[:-2] + whole[-1:]
    assert make("karras", 20, COMFYUI, "dpmpp_3m_sde") == make("karras", 20)
    assert make("karras", 20, A1111, "dpmpp_3m_sde") == whole[:-2] + whole[-1:]
    longer = make("kl_optimal", 21, A1111)
    assert make("kl_optimal", 20, A1111, "dpm2") == longer[:-2] + longer[-1:]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(InputError, match=f"{steps}: give 1 to 1000"):
        make("karras", steps)


def test_a_schedule_that_repeats_itself_is_refused():
    with pytest.raises(InputError, match="fewer steps"):
        make("normal", 1000, override(COMFYUI, {"spacing": "leading"}))  # t = 1000 does not exist
    with pytest.raises(InputError, match="did you mean karras"):
        make("karas", 20)


def test_a_schedule_by_any_engines_name():
    assert make("SGM Uniform", 20) == make("sgm_uniform", 20) and make("Uniform", 20) == make("normal", 20)
    for sampler, schedule in (("dpmpp_2m", "karras"), ("dpmpp_3m_sde", "exponential"), ("euler", "normal")):
        assert make("Automatic", 20, A1111, sampler) == make(schedule, 20, A1111, sampler)


def test_custom_list():
    assert schedules.custom([14, 7.1, 0.3, 0]) == [14.0, float(np.float32(7.1)), float(np.float32(0.3)), 0.0]
    assert schedules.custom([2, 1]) == [2.0, 1.0]
    assert math.copysign(1, schedules.custom([1, -0.0])[-1]) == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "cannot have 0 values"),
        ([1.0], "cannot have 1 values"),
        ([3, math.nan, 0], "sigma 2 cannot be nan"),
        ([math.inf, 1], "sigma 1 cannot be inf"),
        ([1e39, 1], "sigma 1 cannot be 1e"),
        ([3, 1, -1], "sigma 3 cannot be -1"),
        ([3, 4, 0], "sigma 2 .* is not below"),
        ([3, 3, 0], "sigma 2 .* is not below"),
        ([1.00000001, 1, 0], "is not below"),
        ([0, 0], "is not below"),
        ([2.0 - k / 2000 for k in range(1500)], "cannot have 1500 values"),
    ],
)
def test_custom_refuses(values, says):
    with pytest.raises(InputError, match=says):
        schedules.custom(values)


@pytest.mark.parametrize("alphas", ["float64", "float32"])
def test_every_table_entry_is_its_own_step(alphas):
    table = SigmaTable(alphas)
    for t in range(0, 1000, 37):
        sigma = float(table.sigmas[t])
        assert table.locate(sigma, "float")[0] == pytest.approx(t, abs=1e-3)
        assert table.locate(sigma, "nearest-log") == (t, sigma)
        assert table.locate(sigma, "nearest-snap") == (t, sigma)


@given(st.floats(0.02, 20))
def test_timestep_rules(sigma):
    sigma = nearest(sigma)
    table = TABLE.sigmas.double()
    t, kept = TABLE.locate(sigma, "nearest-log")
    assert kept == sigma
    assert abs(math.log(table[int(t)]) - math.log(sigma)) == pytest.approx(float((table.log() - math.log(sigma)).abs().min()), abs=1e-6)
    t, snapped = TABLE.locate(sigma, "nearest-snap")
    assert snapped == table[int(t)]
    assert abs(snapped - sigma) == pytest.approx(float((table - sigma).abs().min()), abs=1e-6)
    t, kept = TABLE.locate(sigma, "float")
    assert kept == sigma and 0 <= t <= 999
    expected = np.interp(math.log(sigma), table.log().numpy(), np.arange(1000))
    assert t == pytest.approx(expected, abs=2e-3)


def test_float_and_nearest_steps_have_k_diffusions_bits():
    table = SigmaTable("float32")
    schedule = k_diffusion("external").DiscreteSchedule(table.sigmas, quantize=False)
    for sigma in [*make("karras", 50)[:-1], 0.01, 20.0]:
        assert table.locate(sigma, "float")[0] == float(schedule.sigma_to_t(torch.tensor(sigma)))
        assert table.locate(sigma, "nearest-log")[0] == float(schedule.sigma_to_t(torch.tensor([sigma]), quantize=True))


def test_midpoint_is_the_geometric_mean():
    values = make("karras", 40)
    for a, b in pairwise(values[:-1]):
        assert midpoint(a, b) == pytest.approx(math.sqrt(a * b), rel=1e-6)
        assert nearest(midpoint(a, b)) == midpoint(a, b)
        assert midpoint(a, b, torch.float64) == pytest.approx(math.sqrt(a * b), rel=1e-14)
        assert log_trip(a) == pytest.approx(a, rel=5e-7)
    assert log_trip(0.0) == 0.0
