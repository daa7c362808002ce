"""docs/parity.md: its tables are the code's, every row has a figure or a reason, and every figure is within its gate."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("scipy", reason="the page's figures come from the parity tests' machinery (extra: parity)")

from ldm.diffusion.profiles import names
from ldm.diffusion.samplers import SAMPLERS
from ldm.diffusion.schedules import SCHEDULES
from scripts import parity_page

PAGE = parity_page.PATH.read_text(encoding="utf-8")


def rows(name: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    block = parity_page.kept(name)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


def test_profiles_are_the_files():
    assert set(parity_page.ENGINES) == set(names()) == set(parity_page.SOURCES)
    assert rows("profiles") == parity_page.profile_rows(), "python -m scripts.parity page"


def test_every_sampler_has_a_figure_or_a_reason_and_figures_meet_their_gates():
    found = {row[0].strip("`"): row[1:] for row in rows("samplers")}
    assert list(found) == list(SAMPLERS), "python -m scripts.parity page"
    gates = (parity_page.GATES["k-diffusion"], parity_page.GATES["step"], *[parity_page.GATES["run"]] * 2)
    for name, (*figures, words) in found.items():
        assert any(figures) or words, name
        assert all(float(value) <= gate for value, gate in zip(figures, gates, strict=True) if value), name


def test_k_diffusions_column_is_what_is_measured_here():
    """Not the last digits, which are the machine's: where there is a figure, and its size."""
    for name, value, *_ in rows("samplers"):
        measured = parity_page.k_diffusion(name.strip("`"))
        assert (measured is None) == (value == ""), name
        assert measured is None or measured <= max(100 * float(value), 1e-12), name


def test_every_schedule_has_a_figure_or_a_reason():
    found = {row[0].strip("`"): row[1:] for row in rows("schedules")}
    assert list(found) == list(SCHEDULES), "python -m scripts.parity page"
    for name, (*figures, words) in found.items():
        assert any(figures) or words, name
        assert all(float(value) <= parity_page.GATES["list"] for value in figures if value), name
    assert [row for row in parity_page.schedule_rows() if any(float(value) > 1e-6 for value in row[1:-1] if value)] == []


def test_the_reasons_name_tests_that_there_are():
    reasons = [*parity_page.SECOND.values(), *parity_page.MADE.values()]
    tests = "".join(path.read_text() + path.stem for path in (parity_page.ROOT / "tests" / "diffusion").glob("test_*.py"))
    for name in re.findall(r"test_\w+", " ".join([*reasons, PAGE])):
        assert name in tests or (parity_page.ROOT / "tests" / "parity" / f"{name}.py").is_file(), name
    assert set(parity_page.SECOND) <= set(SAMPLERS) and set(parity_page.MADE) <= set(SCHEDULES)


@pytest.mark.parametrize("name", ["box", "synthetic"])
def test_the_stages(name):
    found = {stage: float(error) for stage, error in rows(name)}
    for stage in ("tower 1, hidden", "tower 2, pooled", "UNet at t 999", "UNet at t 1", "VAE encode", "VAE decode", "picture"):
        assert stage in found
    assert all(error <= (1e-3 if stage.startswith(("run", "picture")) else 1e-4) for stage, error in found.items())
    assert sum(stage.startswith("UNet") for stage in found) == 5 and sum(stage.startswith("run") for stage in found) >= 7
