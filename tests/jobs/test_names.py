"""What other engines call our samplers and schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.schedules import SCHEDULES
from ldm.errors import InputError
from ldm.jobs import names


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
        ("dpm++2m", ("dpmpp_2m", None)),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("DPM++ SDE SGM Uniform", ("dpmpp_sde", "sgm_uniform")),
        ("dpmpp_sde_gpu karras", ("dpmpp_sde", "karras")),
        ("dpmsolver++", ("dpmpp_2m", None)),
        ("DDIM", ("ddim", None)),
        ("heun", ("heun", None)),
        ("Euler Automatic", ("euler", None)),
    ],
)
def test_samplers(theirs: str, ours: tuple[str, str | None]) -> None:
    assert names.sampler(theirs) == ours


@pytest.mark.parametrize(
    "name", ["DPM++ 2M SDE Heun", "dpmsolver", "UniPC", "DPM2 a", "karras", "", "gpu gpu", "k_", "euler gpu gpu", "x" * 100_000]
)
def test_what_we_do_not_have_is_not_bent_to_something_near(name: str) -> None:
    with pytest.raises(InputError, match="unknown sampler"):
        names.sampler(name)


def test_a_near_name_is_told() -> None:
    with pytest.raises(InputError, match=r"unknown sampler 'DPM\+\+ 2N Karas': did you mean dpmpp_2m"):
        names.sampler("DPM++ 2N Karas")
    with pytest.raises(InputError, match="did you mean karras"):
        names.schedule("Karas")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("Uniform", "normal"),
        ("discrete", "normal"),
        ("Automatic", None),
        ("simple", "simple"),
    ],
)
def test_schedules(theirs: str, ours: str | None) -> None:
    assert names.schedule(theirs) == ours


def test_the_table_is_what_the_engine_has() -> None:
    assert {names.sampler(name) for name in SAMPLERS} == {(name, None) for name in SAMPLERS}
    assert {names.schedule(name) for name in SCHEDULES} == set(SCHEDULES)


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    for read in (names.sampler, names.schedule):
        try:
            read(text)
        except InputError as error:
            assert "\n" not in str(error)
