"""The sigma lists and the training steps of each profile, against the library that the profile follows: live, and as stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.diffusion import schedules, timesteps
from ldm.diffusion.profiles import load_profile, override
from ldm.diffusion.table import SigmaTable
from tests.diffusion import listed
from tests.diffusion.listed import COUNTS, KINDS, PROFILES, SCHEDULERS
from tests.diffusion.references import SPACINGS

GOLDEN = Path(__file__).parent.parent / "golden"
CLOSE = 1e-6  # relative
RULES = {name: load_profile(name) for name in PROFILES}


def ours(profile: str, schedule: str, steps: int, sampler: str, spacing: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    rules = RULES[profile] if spacing is None else override(RULES[profile], {"spacing": spacing})
    table = SigmaTable(rules.alphas)
    levels, rule = schedules.sigmas(schedule, steps, table, rules, sampler), timesteps.rule(rules, schedule, sampler)
    return np.array(levels), np.array([table.locate(sigma, rule)[0] for sigma in levels[:steps]])


def split(key: str) -> tuple[str, str | None, str]:
    """(sampler, spacing, schedule) of a stored list."""
    parts = key.split("/")
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("euler", None, parts[0])


@pytest.mark.parametrize("profile", PROFILES)
def test_stored_lists(profile):
    golden = np.load(GOLDEN / f"{profile}.npz")
    names = sorted({name.rpartition("/")[0] for name in golden.files})
    assert len(names) == {"diffusers": 24, "sgm": 1}.get(profile, 4)
    for name in names:
        sampler, spacing, schedule = split(name)
        parts = [ours(profile, schedule, steps, sampler, spacing) for steps in COUNTS]
        np.testing.assert_allclose(np.concatenate([a for a, _ in parts]), golden[f"{name}/sigmas"], rtol=CLOSE, err_msg=name)
        np.testing.assert_allclose(np.concatenate([b for _, b in parts]), golden[f"{name}/timesteps"], rtol=CLOSE, atol=CLOSE, err_msg=name)


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != "diffusers"])
def test_lists_are_k_diffusions(profile):
    for schedule in ["karras"] if profile == "sgm" else ["karras", "exponential", "polyexponential", "normal"]:
        for steps in COUNTS:
            sigmas, times = listed.k_listed(profile, schedule, steps)
            mine = ours(profile, schedule, steps, "euler")
            np.testing.assert_allclose(mine[0], sigmas, rtol=CLOSE)
            np.testing.assert_allclose(mine[1], times, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_lists_are_diffusers(sampler, spacing):
    pytest.importorskip("diffusers", reason="the lists are diffusers' own (extra: parity)")
    for schedule in KINDS:
        for steps in COUNTS if sampler in ("euler", "dpmpp_2m") else (20,):
            sigmas, times = listed.scheduled(sampler, spacing, schedule, steps)
            mine = ours("diffusers", schedule, steps, sampler, spacing)
            count = len(mine[0])  # one less where their last step goes from a sigma to itself
            np.testing.assert_allclose(mine[0], sigmas[:count], rtol=CLOSE)
            assert count == steps + 1 or sigmas[-1] == sigmas[-2]
            if (sampler, schedule) != ("dpm2", "karras"):  # there it rounds the steps at a list's own sigmas, but not between them
                np.testing.assert_allclose(mine[1], times, rtol=CLOSE, atol=CLOSE)


def test_sgms_own_steps():
    """Its LegacyDDPM: whole steps, evenly from 999 down, cut off; the network sees each as it is."""
    for steps in COUNTS:
        whole = np.linspace(999, 0, steps, endpoint=False).astype(int)
        sigmas, times = ours("sgm", "normal", steps, "euler")
        np.testing.assert_allclose(sigmas, [*listed.numpys_table("float64")[whole], 0], rtol=CLOSE)
        assert times.tolist() == whole.tolist()
    assert ours("sgm", "normal", 30, "euler")[1][[0, 1, 2, 3, -1]].tolist() == [999, 965, 932, 899, 33]


@pytest.mark.parametrize(
    ("profile", "low", "high"),
    [
        ("comfyui", 0.02916716, 14.6146412),
        ("forge", 0.02916716, 14.6146412),
        ("sgm", 0.02916716, 14.6146412),
        ("a1111", 0.02916753, 14.6146421),
        ("diffusers", 0.02916753, 14.6146469),
    ],
)
def test_ends_of_the_tables(profile, low, high):
    table = SigmaTable(RULES[profile].alphas)
    assert (table.low, table.high) == (pytest.approx(low, abs=6e-9), pytest.approx(high, abs=1e-6))
