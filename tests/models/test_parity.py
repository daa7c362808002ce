"""Every stage at tiny width and float32, beside diffusers and transformers: live, and against their stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.measure import relative_error
from tests.models import cases

GOLDEN = Path(__file__).parent.parent / "golden" / "models.npz"
GATE = 1e-5


@pytest.mark.parametrize("name", cases.FAMILIES)
def test_live(name: str) -> None:
    pytest.importorskip("diffusers", reason="the parity extra is not installed")
    ours, theirs = cases.ours(name), cases.theirs(name)
    assert ours.keys() == theirs.keys()
    errors = {stage: relative_error(ours[stage], theirs[stage]) for stage in ours}
    assert max(errors.values()) <= GATE, errors


@pytest.mark.parametrize("name", cases.FAMILIES)
def test_golden(name: str) -> None:
    stored = np.load(GOLDEN)
    ours = cases.ours(name)
    assert {f"{name}/{stage}" for stage in ours} == {key for key in stored if key.startswith(f"{name}/")}
    errors = {stage: relative_error(ours[stage], torch.from_numpy(stored[f"{name}/{stage}"])) for stage in ours}
    assert max(errors.values()) <= GATE, errors
