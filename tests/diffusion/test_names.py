"""What engines call our samplers and schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion import names, samplers
from ldm.diffusion.profiles import load_profile, override
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.samplers.rules import RULES
from ldm.diffusion.schedules import SCHEDULES
from ldm.errors import InputError
from ldm.models.shapes import load_family
from ldm.options import Job
from ldm.resolve import resolve
from ldm.resources import read_toml


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Euler", ("euler", None)),
        ("Euler a", ("euler_a", None)),
        ("euler_ancestral", ("euler_a", None)),
        ("k_euler_a", ("euler_a", None)),
        ("K_LMS", ("lms", None)),
        ("LMS Karras", ("lms", "karras")),
        ("DPM++ 2M", ("dpmpp_2m", None)),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("k_dpmpp_2m_ka", ("dpmpp_2m", "karras")),  # A1111's alias
        ("dpmpp_2m_k", ("dpmpp_2m", "karras")),  # InvokeAI
        ("dpm++2m", ("dpmpp_2m", None)),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M SDE Heun Exponential", ("dpmpp_2m_sde_heun", "exponential")),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("dpmpp_2m_sde_heun_gpu", ("dpmpp_2m_sde_heun", None)),
        ("DPM++ SDE SGM Uniform", ("dpmpp_sde", "sgm_uniform")),
        ("DPM++ 3M SDE Align Your Steps", ("dpmpp_3m_sde", "align_your_steps")),
        ("dpmpp_sde_gpu karras", ("dpmpp_sde", "karras")),
        ("dpmsolver++", ("dpmpp_2m", None)),
        ("DDIM", ("ddim", None)),
        ("ddim_trailing", ("ddim", "trailing")),  # stable-diffusion.cpp
        ("heun", ("heun", None)),
        ("Heun++2", ("heunpp2", None)),
        ("Euler Automatic", ("euler", None)),
        ("DPM2 a Karras", ("dpm2_a", "karras")),
        ("kdpm_2_a", ("dpm2_a", None)),
        ("dpm_2_ancestral", ("dpm2_a", None)),
        ("uni_pc", ("unipc", None)),
        ("ddpm", ("euler_a", None)),  # the same points and noise
        ("EulerAncestralDiscreteScheduler", ("euler_a", None)),
        ("eulerdiscretescheduler", ("euler", None)),
        ("KDPM2AncestralDiscrete", ("dpm2_a", None)),
        ("DPMSolverSDEScheduler", ("dpmpp_sde", None)),
        ("UniPCMultistepScheduler", ("unipc_bh2", None)),  # its default solver_type
        ('UniPCMultistepScheduler "bh1"', ("unipc", None)),
        ('DPMSolverMultistepScheduler "sde-dpmsolver++"', ("dpmpp_2m_sde", None)),
        ('DPMSolverMultistepScheduler "sde-dpmsolver++", "heun"', ("dpmpp_2m_sde_heun", None)),
        ("sample_euler_ancestral", ("euler_a", None)),  # k-diffusion's functions
        ("sample_dpmpp_2m_sde karras", ("dpmpp_2m_sde", "karras")),
    ],
)
def test_samplers(theirs: str, ours: tuple[str, str | None]) -> None:
    assert names.sampler(theirs) == ours


@pytest.mark.parametrize(
    "name",
    [
        *("DPM++ 4M SDE", "dpmsolver", "PLMS", "DPMSolverSinglestepScheduler", "res_multistep_ancestral", "dpmpp_2m_cfg_pp"),
        *("karras", "", "gpu gpu", "k_", "euler gpu gpu", "euler karras karras", "x" * 100_000),
    ],
)
def test_what_we_do_not_have_is_not_bent_to_something_near(name: str) -> None:
    with pytest.raises(InputError, match="unknown sampler"):
        names.sampler(name)


def test_a_near_name_is_told() -> None:
    with pytest.raises(InputError, match=r"unknown sampler 'DPM\+\+ 2N Karas': did you mean dpmpp_2m"):
        names.sampler("DPM++ 2N Karas")
    with pytest.raises(InputError, match="unknown sampler 'EulerAncestralScheduler': did you mean euler_a"):
        names.sampler("EulerAncestralScheduler")  # near a spelling that is not ours
    with pytest.raises(InputError, match="did you mean karras"):
        names.schedule("Karas")
    with pytest.raises(InputError, match=r"choose one of .*dpmpp_2m, .*unipc"):
        names.sampler("zzzzzz")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Karras", "karras"),
        ("use_karras_sigmas", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("SGMUniform", "sgm_uniform"),
        ("Uniform", "normal"),
        ("Normal", "normal"),
        ("discrete", "normal"),
        ("DDIM", "ddim_uniform"),
        ("KL Optimal", "kl_optimal"),
        ("Align Your Steps", "align_your_steps"),
        ("AlignYourSteps", "align_your_steps"),
        ("Automatic", None),
        ("simple", "simple"),
        ("native", "normal"),  # NovelAI's
        ("karras_sigmas", "karras"),
        ("use_beta_sigmas", "beta"),
        ("beta_sigmas", "beta"),
        ('timestep_spacing "trailing"', "trailing"),
    ],
)
def test_schedules(theirs: str, ours: str | None) -> None:
    assert names.schedule(theirs) == ours


# The lists that users choose from, in full but for what there is not here.
A1111 = (
    "DPM++ 2M|DPM++ SDE|DPM++ 2M SDE|DPM++ 2M SDE Heun|DPM++ 2S a|DPM++ 3M SDE|Euler a|Euler|LMS|Heun|DPM2|DPM2 a|DPM fast|DPM adaptive"
    "|Restart|DDIM|UniPC|LCM|k_dpmpp_2m|k_dpmpp_sde|k_dpmpp_2m_sde|k_dpmpp_2m_sde_heun|k_dpmpp_2s_a|k_dpmpp_3m_sde|k_euler_a|k_euler"
    "|k_euler_ancestral|k_lms|k_heun|k_dpm_2|k_dpm_2_a|k_dpm_fast|k_dpm_ad"
)
COMFYUI = (
    "euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive"
    " dpmpp_2s_ancestral dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu"
    " dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis res_multistep gradient_estimation er_sde seeds_2 seeds_3 sa_solver"
    " ddim uni_pc uni_pc_bh2"
)
DIFFUSERS = (
    "EulerDiscrete EulerAncestralDiscrete HeunDiscrete LMSDiscrete KDPM2Discrete KDPM2AncestralDiscrete DPMSolverMultistep DPMSolverSDE"
    " DDIM DDPM UniPCMultistep DEISMultistep LCM TCD SASolver IPNDM"
)
SCHEDULE_LISTS = (
    "Automatic|Uniform|Karras|Exponential|Polyexponential|SGM Uniform|KL Optimal|Align Your Steps|Simple|Normal|DDIM|Beta",
    "simple|sgm_uniform|karras|exponential|ddim_uniform|beta|normal|linear_quadratic|kl_optimal",
)


def test_the_lists_of_the_engines() -> None:
    for name in (*A1111.split("|"), *COMFYUI.split(), *DIFFUSERS.split(), *(f"{each}Scheduler" for each in DIFFUSERS.split())):
        for spelt in (name, name.upper(), f"{name} Karras"):
            assert names.sampler(spelt) == (names.sampler(name)[0], "karras" if spelt.endswith("Karras") else None)
        assert names.sampler(name)[0] in SAMPLERS, name
    for name in "|".join(SCHEDULE_LISTS).split("|"):
        assert names.schedule(name) in (*SCHEDULES, None), name


def test_every_name_of_the_table_is_understood() -> None:
    for row in names.SOLVERS.values():
        for each in filter(None, (row.name, row.a1111, row.comfyui, row.diffusers, *row.also)):
            assert names.sampler(each) == (row.name, None), each
    for spacing in names.SPACINGS.values():
        for each in filter(None, (spacing.name, spacing.a1111, spacing.comfyui, *spacing.also)):
            assert names.schedule(each) == spacing.name, each
        if not spacing.diffusers.startswith("--set "):
            assert not spacing.diffusers or names.schedule(spacing.diffusers) == spacing.name
            continue
        field, values = spacing.diffusers.removeprefix("--set ").split("=")
        for value in values.split(", "):
            assert getattr(override(load_profile("comfyui"), {field: value}), field) == value


@pytest.mark.parametrize(
    ("theirs", "spacing"), [("leading", "leading"), ("linspace", "linspace-linear"), ('timestep_spacing "leading"', "leading")]
)
def test_a_spacing_is_no_schedule_but_a_rule(theirs: str, spacing: str) -> None:
    with pytest.raises(InputError, match=f"give --schedule normal --set spacing={spacing}$"):
        names.schedule(theirs)


def test_the_table_is_what_the_engine_has() -> None:
    assert set(names.SOLVERS) == set(SAMPLERS) and set(names.SPACINGS) == set(SCHEDULES)
    assert {names.sampler(name) for name in SAMPLERS} == {(name, None) for name in SAMPLERS}
    assert {names.schedule(name) for name in SCHEDULES} == set(SCHEDULES)
    for name, row in SAMPLERS.items():
        told = names.SOLVERS[name]
        assert (told.evaluations, told.noise, told.minimum) == (row.evaluations, row.noise, row.minimum), name


def test_what_is_written_for_a1111_is_read_again() -> None:
    for name in names.SOLVERS:
        assert names.sampler(str(names.a1111_sampler(name))) == (name, None)
    for name in names.SPACINGS:
        assert names.schedule(str(names.a1111_schedule(name))) == name
    assert names.a1111_sampler("euler_a") == "Euler a" and names.a1111_schedule("normal") == "Uniform"
    assert names.a1111_sampler(None) is None and names.a1111_schedule("of tomorrow") == "of tomorrow"


def test_a1111s_automatic_names_what_there_is() -> None:
    assert set(names.AUTOMATIC) <= set(SAMPLERS) and set(names.AUTOMATIC.values()) <= set(SCHEDULES)


def test_the_rules_are_fields_of_the_profiles() -> None:
    fields = set(read_toml("profiles", "comfyui"))
    for row in (*names.SOLVERS.values(), *names.SPACINGS.values()):
        assert not row.rules or set(row.rules.split(", ")) <= fields, row
    told = {name for name, row in names.SOLVERS.items() if row.rules and not row.rules.startswith("brownian")}
    assert told == set(RULES) - {"tcd"}  # its rule is the table's, alike in all


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    for read in (names.sampler, names.schedule):
        try:
            read(text)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"sampler": "DPM++ 2M SDE Exponential"}, ("dpmpp_2m_sde", "exponential")),
        ({"sampler": "DPM++ 2M Karras", "schedule": "SGM Uniform"}, ("dpmpp_2m", "sgm_uniform")),
        ({"sampler": "EulerAncestralDiscreteScheduler", "schedule": "DDIM"}, ("euler_a", "ddim_uniform")),
        ({"sampler": "k_euler"}, ("euler", "karras")),  # the family's schedule
        ({"schedule": "Automatic"}, ("dpmpp_2m", "karras")),
    ],
)
def test_any_name_makes_a_job(asked: dict[str, str], made: tuple[str, str]) -> None:
    job = resolve(Job("x", **asked), load_family("emoji"))[0]
    assert (job.sampler, job.schedule) == made
    assert samplers.get(asked.get("sampler", "dpmpp_2m"), load_profile("comfyui")).name == made[0]


def test_a_job_of_an_unknown_name_says_the_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean euler or euler_a"):
        resolve(Job("x", sampler="Euler b"), load_family("emoji"))
    with pytest.raises(InputError, match="did you mean kl_optimal"):
        resolve(Job("x", schedule="KL Optimum"), load_family("emoji"))


def test_steps_stay_as_asked_where_the_list_has_more() -> None:
    job = resolve(Job("x", sampler="euler", schedule="ddim_uniform", steps=30), load_family("emoji"))[0]
    assert job.steps == 30 and len(job.sigmas or ()) == 32
