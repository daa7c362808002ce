"""Weights of full size: files in the official layouts with drawn values, and the same work by other people's code. Run with --full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(("name", "what"), [("sd_xl_base_1.0", "picture"), ("sd_xl_refiner_1.0", "refiner")])
def test_parity(name: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    subprocess.run([sys.executable, "-m", "scripts.synthetic", name, "--out", str(path)], check=True)
    words = [sys.executable, "-m", "scripts.parity", what, "--checkpoint", str(path)]
    done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
    path.unlink()
    assert done.returncode == 0, done.stdout
