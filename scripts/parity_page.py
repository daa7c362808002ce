"""docs/parity.md from the tests' machinery: `python -m scripts.parity page` writes it, tests/parity/test_page.py holds it to the code.

Every sampler, schedule and profile has a row; one without a figure has a reason. The block of the full size run is kept as it stands, or
taken from the lines of `ldm parity --json` that are given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.diffusion import samplers, schedules, timesteps
from ldm.diffusion.profiles import Profile, load_profile, override
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.schedules import SCHEDULES
from ldm.diffusion.table import SigmaTable
from ldm.measure import relative_error
from ldm.parity import schedulers
from tests.diffusion import cases, references

ROOT = Path(__file__).parents[1]
PATH, GOLDEN = ROOT / "docs" / "parity.md", ROOT / "tests" / "golden"
ENGINES = ("comfyui", "a1111", "forge", "diffusers", "invokeai", "sgm")
COUNTS = (4, 20, 30, 50)
SAMPLER_HEAD = ("sampler", "k-diffusion", "diffusers, a step", "diffusers, normal", "diffusers, karras", "beside or instead")
GATES = {"k-diffusion": 1e-10, "step": 1e-5, "run": 2e-6, "list": 1e-6}

_UNGUIDED = ", without guidance; with it: test_cfg_pp_renoises_with_the_unconditional_prediction (test_first_tier)"
# What stands behind a sampler that no package on the index has, or beside one that has a figure: a test of tests/diffusion.
SECOND = {
    **dict.fromkeys(("heunpp2",), "order of convergence, and its formula written a second time (test_first_tier)"),
    **dict.fromkeys(("restart",), "its legs by the paper's table, each leg heun, which is compared (test_first_tier)"),
    **dict.fromkeys(("ipndm_v",), "order of convergence, and ipndm on an even list (test_first_tier)"),
    **dict.fromkeys(("res_multistep", "gradient_estimation", "er_sde"), "order of convergence, and a second derivation (test_second_tier)"),
    **dict.fromkeys(("seeds_2", "seeds_3"), "order of convergence, and the paper's tableaus (test_second_tier)"),
    **dict.fromkeys(("ddim",), "k-diffusion: its sample_euler, whose points are DDIM's at eta 0"),
    **dict.fromkeys(("euler_cfg_pp",), f"k-diffusion: its sample_euler{_UNGUIDED}"),
    **dict.fromkeys(("euler_a_cfg_pp",), f"k-diffusion: its sample_euler_ancestral{_UNGUIDED}"),
    **dict.fromkeys(("unipc",), "ComfyUI's order 3 is diffusers' down to 0.001 (test_first_tier)"),
}
# The same of a schedule: what the list was held against.
MADE = {
    "sgm_uniform": "formula, by hand (test_schedules)",
    "simple": "formula, by hand (test_schedules)",
    "trailing": "diffusers' Euler, live (test_trailing_is_diffusers)",
    "ddim_uniform": "counts and ends by hand (test_schedules)",
    "beta": "scipy's quantiles, live (test_beta_is_scipys)",
    "kl_optimal": "even in the arctangent, by hand (test_schedules)",
    "align_your_steps": "the published list (test_align_your_steps)",
    "align_your_steps_sd15": "the published list (test_align_your_steps)",
    "linear_quadratic": "formula, by hand (test_linear_quadratic)",
    "normal": "for sgm: its LegacyDDPM in numpy (test_sgms_own_steps)",
}
# Where the rules of a profile were read, and what of them was held against running code.
SOURCES = {
    "comfyui": ("ComfyUI, autumn 2025: `comfy/samplers.py`, `comfy/model_sampling.py`, `comfy/sd1_clip.py`", "lists and t: k-diffusion"),
    "a1111": (
        "stable-diffusion-webui 1.10: `modules/rng.py`, `modules/sd_samplers_kdiffusion.py`, `modules/sd_samplers_timesteps.py`",
        "lists and t: k-diffusion",
    ),
    "forge": (
        "stable-diffusion-webui-forge: `backend/modules/k_prediction.py`, `modules/sd_samplers_kdiffusion.py`",
        "lists and t: k-diffusion",
    ),
    "diffusers": ("diffusers 0.42, the installed package", "lists, t, start noise, noise on the way and whole runs: diffusers"),
    "invokeai": ("InvokeAI 5: `invokeai/app/invocations/denoise_latents.py`, `compel.py`", "what it shares with diffusers: diffusers"),
    "sgm": (
        "generative-models: `sgm/modules/diffusionmodules/discretizer.py`, `sampling.py`, `sgm/inference/api.py`",
        "karras: k-diffusion",
    ),
}


def figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "-"
    return str(value)


def profile_rows() -> list[list[str]]:
    """A row a rule, a column a profile: what the files in configs/profiles say."""
    loaded = [load_profile(name) for name in ENGINES]
    rules = [each.name for each in fields(Profile) if each.name != "name"]
    return [[f"`{rule}`", *(shown(getattr(profile, rule)) for profile in loaded)] for rule in rules]


def k_diffusion(name: str) -> float | None:
    """The largest difference from k-diffusion over the three lists of the tests, float64, of values of size 1."""
    golden = np.load(GOLDEN / "diffusion.npz")
    keys = {kind: f"sampler/{name}/{kind}" for kind in cases.LISTS}
    if keys["karras"] not in golden.files:
        return None
    ours = {kind: cases.ours(name, cases.A1111, levels) for kind, levels in cases.LISTS.items()}
    return max(float((ours[kind] - torch.from_numpy(golden[key])).abs().max()) for kind, key in keys.items())


def stepped(name: str) -> float | None:
    """The relative error beside diffusers' scheduler given the same 20 steps and the same noise, float32."""
    golden = np.load(GOLDEN / "diffusion.npz")
    if f"scheduler/{name}" not in golden.files:
        return None
    run, x = samplers.get(name, load_profile("diffusers")).run, cases.state(2, 4, 3, 3, dtype=torch.float32)
    mine = cases.final(run, cases.mixture, x, references.trained(name), references.draws)
    return relative_error(mine, torch.from_numpy(golden[f"scheduler/{name}"]))


def whole(name: str, schedule: str) -> float | None:
    """The relative error of a whole run of 20 steps under the profile diffusers beside its own scheduler, float32."""
    from tests.parity.test_schedulers import SEED, SHAPE, Watched, ours

    if name not in schedulers.shared(schedule == "karras"):
        return None
    made = schedulers.make(name, karras=schedule == "karras", prediction="epsilon", seed=SEED)
    theirs = schedulers.run(made, Watched(), SHAPE, 20, SEED)
    return relative_error(ours(load_profile("diffusers"), name, schedule, 20, Watched()), theirs)


def sampler_rows() -> Iterator[list[str]]:
    for name in SAMPLERS:
        figures = [k_diffusion(name), stepped(name), whole(name, "normal"), whole(name, "karras")]
        of_it = {key.removeprefix(name).strip(): reason for key, reason in schedulers.APART.items() if key.split()[0] == name}
        apart = [f"{what}: {reason}".removeprefix(": ") for what, reason in of_it.items()]
        words = [*([SECOND[name]] if name in SECOND else []), *apart]
        yield [f"`{name}`", *("" if value is None else figure(value) for value in figures), "; ".join(words)]


def listed(profile: str, key: str) -> tuple[float, float]:
    """The largest relative difference of sigmas, and the largest of t, from a stored list at 4, 20, 30 and 50 steps."""
    golden, parts = np.load(GOLDEN / f"{profile}.npz"), key.split("/")
    sampler, spacing, schedule = parts if len(parts) == 3 else ("euler", None, key)
    rules = load_profile(profile)
    if spacing is not None:
        rules = override(rules, {"spacing": spacing})
    made, rule = SigmaTable(rules.alphas), timesteps.rule(rules, schedule, sampler)
    levels = [schedules.sigmas(schedule, steps, made, rules, sampler) for steps in COUNTS]
    sigmas = np.array([sigma for each in levels for sigma in each])
    times = np.array([made.locate(sigma, rule)[0] for each, steps in zip(levels, COUNTS, strict=True) for sigma in each[:steps]])
    theirs = golden[f"{key}/sigmas"].astype(float)
    apart = np.abs(sigmas - theirs) / np.where(theirs == 0, 1, theirs)
    return float(apart.max()), float(np.abs(times - golden[f"{key}/timesteps"]).max())


def golden_keys(profile: str) -> list[str]:
    path = GOLDEN / f"{profile}.npz"
    return sorted({name.rpartition("/")[0] for name in np.load(path).files}) if path.is_file() else []


def schedule_rows() -> Iterator[list[str]]:
    """A row a schedule, a column a profile with stored lists: the largest relative difference of sigmas."""
    for schedule in SCHEDULES:
        cells = []
        for profile in ENGINES:
            keys = [key for key in golden_keys(profile) if key.split("/")[-1] == schedule]
            cells.append(figure(max(listed(profile, key)[0] for key in keys)) if keys else "")
        yield [f"`{schedule}`", *cells, MADE.get(schedule, "")]


def timestep_rows() -> Iterator[list[str]]:
    for profile in ENGINES:
        keys = golden_keys(profile)
        if keys:
            largest = max(listed(profile, key)[1] for key in keys)
            yield [f"`{profile}`", f"`{load_profile(profile).timestep}`", str(len(keys)), figure(largest)]


def full_block(lines: Sequence[str]) -> str:
    """The table of a run of `ldm parity --json`."""
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return table(["stage", "relative error"], [[row["stage"], f"{row['error']:.1e}"] for row in rows])


def kept(name: str) -> str:
    """A block of the page as it stands."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", PATH.read_text(encoding="utf-8"), re.DOTALL) if PATH.is_file() else None
    return found[1] if found else ""


def text(full: str, box: str) -> str:
    """The whole page; `full` and `box` are the tables of `ldm parity` on a file of full size and on the model in the box."""
    parts = {
        "profiles": table(["rule", *ENGINES], profile_rows()),
        "sources": table(["profile", "read in", "held against running code"], [[f"`{name}`", *SOURCES[name]] for name in ENGINES]),
        "samplers": table(SAMPLER_HEAD, sampler_rows()),
        "schedules": table(["schedule", *ENGINES, "beside or instead"], schedule_rows()),
        "timesteps": table(["profile", "rule", "lists", "largest difference of t"], timestep_rows()),
        "synthetic": full,
        "box": box,
    }
    page = TEXT.read_text(encoding="utf-8")
    for name, part in parts.items():
        assert f"<!-- {name} -->" in page, name
        page = page.replace(f"<!-- {name} -->\n", f"<!-- {name} -->\n{part}<!-- end -->\n")
    return page


TEXT = ROOT / "scripts" / "parity_page.md"


def write(full: Path | None, box: Path | None) -> None:
    given = {"synthetic": full, "box": box}
    blocks = [kept(name) if path is None else full_block(path.read_text().splitlines()) for name, path in given.items()]
    PATH.write_text(text(*blocks), encoding="utf-8")
