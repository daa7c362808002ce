"""The wheel carries what a run needs: the code, configs/ and weights/, and nothing of the tests."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"]))
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.mark.parametrize("folder", ["ldm", "configs", "weights"])
def test_every_file_of_the_folder_is_in_it(names: set[str], folder: str) -> None:
    inside = "ldm" if folder == "ldm" else f"ldm/{folder}"
    files = [each.relative_to(ROOT / folder) for each in (ROOT / folder).rglob("*") if each.is_file() and each.suffix != ".pyc"]
    assert files
    assert {f"{inside}/{each.as_posix()}" for each in files} <= names


def test_nothing_else_is_in_it(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"ldm"}
    assert "ldm/py.typed" in names
