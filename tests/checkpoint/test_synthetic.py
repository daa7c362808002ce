"""scripts/synthetic.py: official layouts, values that depend on the name alone, activations of order one."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from ldm.checkpoint.families import recognise
from ldm.checkpoint.loading import fill
from ldm.checkpoint.safetensors import read_header
from ldm.checkpoint.writer import ordered
from ldm.models.shapes import load_family
from scripts import synthetic
from tests.checkpoint import builders

SMALL = "2cc4081c681172e3"  # of a.weight (300, 7) in F32


def test_full_size_layout_is_the_official_one() -> None:
    """Names, shapes, order and, but for the metadata, the header: only the values are not there."""
    family = load_family("sdxl-base")
    items = [synthetic._item(name, shape, "F16") for part in synthetic.parts(family) for name, shape in synthetic.file_shapes(part)]
    items = ordered(items + synthetic._extras(family, "F16", "F16", True))
    official = builders.manifests()["sd_xl_base_1.0.safetensors"]
    assert [item.name for item in items] == sorted(official["tensors"])
    assert {item.name: [item.dtype, *item.shape] for item in items} == official["tensors"]
    assert 402_444 + sum(2 * math.prod(item.shape) for item in items) == official["published_size"]


@pytest.mark.parametrize(
    ("file", "family", "official"), [("sd_xl_base_1.0", "sdxl-base", 2515), ("sd_xl_refiner_1.0", "sdxl-refiner", 1858)]
)
def test_command(file: str, family: str, official: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    synthetic.main([file, "--out", str(path), "--scale", "tiny", "--misaligned"])
    assert capsys.readouterr().out == f"{path}\n"
    header = read_header(path)
    assert len(header.tensors) == official and header.data_start == 402_444
    assert set(header.tensors) == set(builders.shapes(f"{file}.safetensors"))
    assert recognise(header) == synthetic.tiny(family)
    flags = ["--no-position-ids", "--no-logit-scale", "--dtype", "mixed", "--overwrite"]
    synthetic.main([file, "--out", str(path), "--scale", "tiny", *flags])
    header = read_header(path)
    assert {entry.dtype for entry in header.tensors.values()} == {"F16", "BF16", "F32"}
    assert not any(name.endswith(("position_ids", "logit_scale")) for name in header.tensors)


def test_values_depend_on_the_name_alone() -> None:
    one, two = (synthetic.values(name, (300, 700), "F32") for name in ("a.weight", "b.weight"))
    assert np.array_equal(one, synthetic.values("a.weight", (300, 700), "F32")) and not np.array_equal(one, two)
    assert np.array_equal(one.astype(np.float16), synthetic.values("a.weight", (300, 700), "F16"))
    bits = torch.from_numpy(synthetic.values("a.weight", (300, 700), "BF16").view(np.int16)).view(torch.bfloat16)
    assert torch.equal(bits, torch.from_numpy(one).bfloat16())
    assert abs(one.std() * 700**0.5 - 1) < 0.01 and abs(one.mean()) < 1e-3
    small = synthetic.values("a.weight", (300, 7), "F32")
    assert hashlib.sha256(small.tobytes()).hexdigest()[:16] == SMALL, "values changed: stored results made from them are void"


@pytest.mark.parametrize("name", ["sdxl-base", "sdxl-refiner"])
def test_activations_are_of_order_one(name: str, tmp_path: Path) -> None:
    family = synthetic.tiny(name)
    parts = synthetic.parts(family)
    fill(read_header(synthetic.write(tmp_path / "m.safetensors", family)), parts)
    *towers, vae, unet = (cast(Any, part.module) for part in parts)
    ids = torch.arange(77)[None]
    ids[0, -1] = 49407
    with torch.inference_mode():
        texts = [tower(ids) for tower in towers]
        context = torch.cat([text.penultimate for text in texts], dim=-1)
        vector = torch.zeros(1, family.unet.vector_dim)
        vector[:, : family.towers[-1].projection] = texts[-1].pooled
        prediction = unet(torch.randn(1, 4, 16, 16), unet.prepare(context, vector, [500.0]), 0)
        image = vae.decode(torch.randn(1, 4, 4, 4))
        mean, logvar = vae.encode(torch.randn(1, 3, 32, 32))
    for result in (context, texts[-1].pooled, prediction, image, mean, logvar):
        assert 0.05 < result.std() < 5, result.std()
