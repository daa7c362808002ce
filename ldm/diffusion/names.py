"""What engines call the samplers and the schedules: "DPM++ 2M Karras", "k_euler_a", "dpmpp_2m_sde_gpu", "EulerAncestralDiscreteScheduler".

Case, spaces, dashes and underscores do not count. A1111 up to 1.8, and people since, write the schedule behind the sampler: it is split
off. A name of something that we do not have is never bent to a near one. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from ldm.errors import InputError

_SHOWN = 80  # characters of a name that an error quotes
_LONGEST = 4  # words of a schedule's name
_SPACED = {"leading": "leading", "linspace": "linspace-linear"}  # what is no schedule here but a rule of `normal`, by diffusers' names
_ALIKE = 0.5  # of a near match, as errors.near_matches has it


class Solver(NamedTuple):
    """A sampler: our name, those of others (in quotes the values of a class's options), and what `ldm.diffusion.samplers` has it do."""

    name: str
    a1111: str  # and Forge and its kin; "" where none has it
    comfyui: str
    diffusers: str
    evaluations: int  # of the network a step
    noise: str  # "none", "ancestral" or "brownian"
    minimum: int  # of steps
    also: tuple[str, ...] = ()  # further spellings
    rules: str = ""  # fields of a profile that decide where one name means different formulas, beside those that list samplers


class Spacing(NamedTuple):
    """A schedule, likewise; what begins with --set is that flag, and no name."""

    name: str
    a1111: str
    comfyui: str
    diffusers: str
    also: tuple[str, ...] = ()
    rules: str = ""


_SOLVERS = (
    Solver("euler", "Euler", "euler", "EulerDiscreteScheduler", 1, "none", 9),
    Solver("euler_a", "Euler a", "euler_ancestral", "EulerAncestralDiscreteScheduler", 1, "ancestral", 15, ("ddpm", "DDPMScheduler")),
    Solver("heun", "Heun", "heun", "HeunDiscreteScheduler", 2, "none", 7),
    Solver("heunpp2", "HeunPP2", "heunpp2", "", 3, "none", 8, ("heun++2",)),
    Solver("lms", "LMS", "lms", "LMSDiscreteScheduler", 1, "none", 6, rules="multistep_last"),
    Solver("dpm2", "DPM2", "dpm_2", "KDPM2DiscreteScheduler", 2, "none", 3, ("kdpm_2",)),
    Solver("dpm2_a", "DPM2 a", "dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", 2, "ancestral", 9, ("kdpm_2_a",)),
    Solver("dpmpp_2s_a", "DPM++ 2S a", "dpmpp_2s_ancestral", "", 2, "ancestral", 7),
    Solver("dpmpp_2m", "DPM++ 2M", "dpmpp_2m", "DPMSolverMultistepScheduler", 1, "none", 4, ("dpmsolver++",)),
    Solver("dpmpp_sde", "DPM++ SDE", "dpmpp_sde", "DPMSolverSDEScheduler", 2, "brownian", 5, rules="brownian, brownian_ends"),
    Solver(
        *("dpmpp_2m_sde", "DPM++ 2M SDE", "dpmpp_2m_sde", 'DPMSolverMultistepScheduler "sde-dpmsolver++"', 1, "brownian", 4),
        ("sde-dpmsolver++",),
        "brownian",
    ),
    Solver(
        *("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", 'DPMSolverMultistepScheduler "sde-dpmsolver++", "heun"'),
        *(1, "brownian", 13),
        rules="brownian",
    ),
    Solver("dpmpp_3m_sde", "DPM++ 3M SDE", "dpmpp_3m_sde", "", 1, "brownian", 12, rules="brownian"),
    Solver("dpm_fast", "DPM fast", "dpm_fast", "", 1, "none", 10, rules="singlestep_noise"),
    Solver("dpm_adaptive", "DPM adaptive", "dpm_adaptive", "", 3, "none", 1, ("dpm_ad",), "singlestep_noise"),
    Solver("restart", "Restart", "", "", 2, "ancestral", 7),
    Solver("ddim", "DDIM", "ddim", "DDIMScheduler", 1, "none", 9, ("ddim_v3",)),
    Solver("unipc", "UniPC", "uni_pc", 'UniPCMultistepScheduler "bh1"', 1, "none", 4, ("unipc_bh1",), "multistep_orders"),
    Solver("unipc_bh2", "", "uni_pc_bh2", "UniPCMultistepScheduler", 1, "none", 4, rules="multistep_orders"),
    Solver("deis", "DEIS", "deis", "DEISMultistepScheduler", 1, "none", 5, rules="multistep_orders"),
    Solver("ipndm", "IPNDM", "ipndm", "IPNDMScheduler", 1, "none", 4, rules="multistep_last"),
    Solver("ipndm_v", "IPNDM_V", "ipndm_v", "", 1, "none", 4, rules="multistep_last"),
    Solver("lcm", "LCM", "lcm", "LCMScheduler", 1, "ancestral", 1),
    Solver("tcd", "TCD", "tcd", "TCDScheduler", 1, "ancestral", 1),
    Solver("sa_solver", "SA Solver", "sa_solver", "SASolverScheduler", 1, "ancestral", 9, rules="multistep_orders"),
    Solver("euler_cfg_pp", "Euler CFG++", "euler_cfg_pp", "", 1, "none", 9),
    Solver("euler_a_cfg_pp", "Euler a CFG++", "euler_ancestral_cfg_pp", "", 1, "ancestral", 15),
    Solver("er_sde", "ER SDE", "er_sde", "", 1, "ancestral", 6),
    Solver("res_multistep", "Res Multistep", "res_multistep", "", 1, "none", 3),
    Solver("gradient_estimation", "Gradient Estimation", "gradient_estimation", "", 1, "none", 3),
    Solver("seeds_2", "SEEDS 2", "seeds_2", "", 2, "ancestral", 7),
    Solver("seeds_3", "SEEDS 3", "seeds_3", "", 3, "ancestral", 2),
)  # fmt: skip
_SPACINGS = (
    Spacing("karras", "Karras", "karras", "use_karras_sigmas", ("ka", "k"), "karras_range, karras_rho"),
    Spacing("exponential", "Exponential", "exponential", "use_exponential_sigmas", ("exp",), "karras_range"),
    Spacing("polyexponential", "Polyexponential", "", "", rules="karras_range"),
    Spacing("normal", "Uniform", "normal", "--set spacing=leading, linspace-linear", ("discrete", "native"), "spacing"),
    Spacing("sgm_uniform", "SGM Uniform", "sgm_uniform", ""),
    Spacing("simple", "Simple", "simple", ""),
    Spacing("trailing", "", "", 'timestep_spacing "trailing"'),
    Spacing("ddim_uniform", "DDIM", "ddim_uniform", ""),
    Spacing("beta", "Beta", "beta", "use_beta_sigmas", rules="beta, karras_range"),
    Spacing("kl_optimal", "KL Optimal", "kl_optimal", "", rules="kl_optimal, karras_range"),
    Spacing("align_your_steps", "Align Your Steps", "", "StableDiffusionXLSigmas", ("AYS", "AYS SDXL"), "align_your_steps"),
    Spacing("align_your_steps_sd15", "", "", "StableDiffusionTimesteps", ("AYS SD1",), "align_your_steps"),
    Spacing("linear_quadratic", "", "linear_quadratic", ""),
)  # fmt: skip
SOLVERS: Mapping[str, Solver] = {each.name: each for each in _SOLVERS}
SPACINGS: Mapping[str, Spacing] = {each.name: each for each in _SPACINGS}
AUTOMATIC: Mapping[str, str] = {  # A1111 1.9 and later, for "Automatic" (modules/sd_samplers_kdiffusion.py); elsewhere "normal"
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a", "restart"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"), "exponential"),
}


def sampler(text: str) -> tuple[str, str | None]:
    """(sampler, schedule, if the name says one) of any engine's name; InputError with the near matches."""
    words = _words(text)
    words = words[words[:1] in (["k"], ["sample"]) :]  # k-diffusion's functions are sample_euler and so on
    found, schedules = _samplers(), _schedules()
    for tail in range(min(_LONGEST, len(words)), -1, -1):
        head, last = words[: len(words) - tail], "".join(words[len(words) - tail :])
        name = found.get("".join(head[:-1] if head[-1:] == ["gpu"] else head))
        if name is not None and (tail == 0 or last in schedules):
            return name, schedules[last] if tail else None
    raise InputError(f"unknown sampler {text[:_SHOWN]!r}: {_near(words, found)}")


def schedule(text: str) -> str | None:
    """Our name of a schedule; None for "Automatic"; InputError with the near matches."""
    words, known = _words(text), _schedules()
    spaced = _SPACED.get("".join(words).removeprefix("timestepspacing"))
    if spaced:
        raise InputError(f"schedule {text[:_SHOWN]!r} is a spacing of the schedule normal: give --schedule normal --set spacing={spaced}")
    if "".join(words) not in known:
        raise InputError(f"unknown schedule {text[:_SHOWN]!r}: {_near(words, {key: name for key, name in known.items() if name})}")
    return known["".join(words)]


def ours(solver: str | None, spacing: str | None) -> tuple[str | None, str | None]:
    """Our names of both. A sampler's name that says a schedule sets it, unless one is given."""
    name, implied = (None, None) if solver is None else sampler(solver)
    return name, implied if spacing is None else schedule(spacing)


def a1111_sampler(name: str | None) -> str | None:
    """What A1111 and its kin write for our sampler; our name where they have none."""
    return SOLVERS[name].a1111 or name if name is not None and name in SOLVERS else name


def a1111_schedule(name: str | None) -> str | None:
    """The same of a schedule."""
    return SPACINGS[name].a1111 or name if name is not None and name in SPACINGS else name


def _near(words: list[str], known: Mapping[str, str | None]) -> str:
    """The remedy: our names of the nearest spellings, or all of ours."""
    from difflib import SequenceMatcher

    asked = ["".join(part)[:_SHOWN] for part in (words, words[:-1]) if part]  # the last word may be a schedule's, misspelt
    likeness = {key: max((SequenceMatcher(None, key, each).ratio() for each in asked), default=0.0) for key in known}
    near = sorted((key for key in known if likeness[key] >= _ALIKE), key=lambda key: -likeness[key])
    found = list(dict.fromkeys(str(known[each]) for each in near))[:3]
    return f"did you mean {' or '.join(found)}?" if found else f"choose one of {', '.join(sorted(set(map(str, known.values()))))}"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text[: 2 * _SHOWN].lower().replace("++", "pp"))


def _key(name: str) -> str:
    return "".join(_words(name))


@cache
def _samplers() -> dict[str, str]:
    return _spellings(_SOLVERS, lambda key: [key.replace("scheduler", "")])


@cache
def _schedules() -> dict[str, str | None]:
    shorter = _spellings(_SPACINGS, lambda key: [key.removeprefix("use"), key.removeprefix("use").removesuffix("sigmas")])
    return {**shorter, "automatic": None}


def _spellings(rows: tuple[Solver, ...] | tuple[Spacing, ...], shorter: Callable[[str], list[str]]) -> dict[str, str]:
    """Key to our name. Of two rows that claim a key the first has it, and a row's own name comes before all."""
    made = {_key(row.name): row.name for row in rows}
    for row in rows:
        names = (row.a1111, row.comfyui, *row.also, row.diffusers * (not row.diffusers.startswith("--set")))
        for key in filter(None, map(_key, names)):
            for each in (key, *shorter(key)):
                made.setdefault(each, row.name)
    return made
