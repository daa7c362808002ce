"""The decoder in bands: the picture of the plain one within rounding, in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ldm.measure import relative_error
from ldm.models.shapes import load_family
from ldm.models.vae import VAE
from ldm.runtime import need, tiles
from ldm.runtime.need import Plan
from ldm.runtime.tracking import Tracker
from scripts import synthetic
from scripts.faults import memory as faults


@pytest.fixture(autouse=True)
def _plain() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vae() -> VAE:
    """All levels, narrow."""
    return faults.drawn(VAE(replace(load_family("sdxl-base").vae, ch=16, norm_groups=8))).eval()


def latents(*shape: int) -> Tensor:
    """Whose rows are unlike each other, so that statistics of a band are not those of the map."""
    rows = torch.linspace(-2, 3, shape[2]).view(1, 1, -1, 1)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * rows.exp() + rows


def in_bands(monkeypatch: pytest.MonkeyPatch, nbytes: int, least: int = 1) -> None:
    monkeypatch.setattr(tiles, "BAND", nbytes)
    monkeypatch.setattr(tiles, "LEAST", least)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 13, 5), (2, 4, 9, 3), (1, 4, 1, 7)])
@pytest.mark.parametrize("nbytes", [1, 2**13, 2**16])
def test_the_picture_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, vae: VAE, shape: tuple[int, ...], nbytes: int) -> None:
    """No further from float64 than twice what the plain decode is; a row at a time, and more."""
    in_bands(monkeypatch, nbytes)
    z = latents(*shape)
    exact = VAE(vae.shape).double()
    exact.load_state_dict(vae.state_dict())
    reference = exact.decode(z.double())
    plain, banded = vae.decode(z), tiles.decode(vae, z)
    assert banded.shape == plain.shape and banded.dtype == plain.dtype
    assert relative_error(banded, reference) < 2 * relative_error(plain, reference) < 1e-5


def test_one_band_is_the_plain_decode_to_the_bit(vae: VAE) -> None:
    z = latents(1, 4, 6, 6)
    assert torch.equal(tiles.decode(vae, z), vae.decode(z))


def test_half_precision(monkeypatch: pytest.MonkeyPatch, vae: VAE) -> None:
    in_bands(monkeypatch, 2**12)
    half, z = faults.drawn(VAE(vae.shape)).bfloat16(), latents(1, 4, 8, 8)
    banded, plain, exact = tiles.decode(half, z.bfloat16()), half.decode(z.bfloat16()), vae.decode(z)
    assert banded.dtype == torch.bfloat16
    assert relative_error(banded.float(), exact) < 2 * relative_error(plain.float(), exact)


def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch, vae: VAE) -> None:
    in_bands(monkeypatch, 2**15)
    z, before = latents(1, 4, 8, 16), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(tiles.decode(vae, z))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_the_peak_is_a_fraction(monkeypatch: pytest.MonkeyPatch, vae: VAE) -> None:
    """By the bytes that tensors really hold; nothing of them stays."""
    in_bands(monkeypatch, 2**18)
    z, peaks = latents(1, 4, 32, 32), []
    vae.decode(z)  # so that what is kept beside weights is there
    for decode in (vae.decode, lambda z: tiles.decode(vae, z)):
        with Tracker() as tracker:
            image = decode(z)
        peaks.append(tracker.peak)
        assert tracker.live == image.untyped_storage().nbytes()
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.5), ("cuda", 0.42)])
def test_the_count_at_full_size(device: str, share: float) -> None:
    """1024x1024 by SDXL's own VAE in float32, on the meta device."""
    plan = Plan(replace(synthetic.tiny(), vae=load_family("sdxl-base").vae), 1024, 1024, 2, torch.float32, torch.float32, device)
    assert need.bands(plan).bare < share * need.need(plan).parts[2].bare
