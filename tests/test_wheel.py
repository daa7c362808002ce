"""The wheel carries what a run needs: the code, configs/ and weights/, and nothing of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.wheel import WheelBuilder

    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
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


def test_the_archive_of_sources_has_what_the_tests_read(tmp_path: Path) -> None:
    from hatchling.builders.sdist import SdistBuilder

    with tarfile.open(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for folder in ("docs", "configs", "scripts", "tests", "weights"):
        files = [each for each in (ROOT / folder).rglob("*") if each.is_file() and each.suffix != ".pyc"]
        assert {each.relative_to(ROOT).as_posix() for each in files} <= names
    assert {"Makefile", "README.md", "pyproject.toml"} <= names


def test_it_makes_the_same_picture_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    pixels = []
    for home in (ROOT, tmp_path / "site"):
        out = tmp_path / f"{len(pixels)}.png"
        program = "import sys, ldm.commands; print(ldm.__file__); sys.exit(ldm.commands.main(sys.argv[1:]))"
        words = [
            sys.executable,
            "-P",
            "-c",
            program,
            "sample",
            "-p",
            "a red apple on a blue background",
            "-s",
            "3",
            "--steps",
            "4",
            "-o",
            str(out),
        ]
        done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(home)}, check=True, capture_output=True, text=True)
        assert done.stdout.splitlines() == [str(home / "ldm" / "__init__.py"), str(out)]
        with Image.open(out) as picture:
            pixels.append(picture.tobytes())
    assert pixels[0] == pixels[1]
