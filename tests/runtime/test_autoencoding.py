"""The VAE in wider dtypes: the result of float32, and nothing of the VAE changed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ldm.errors import NumericError
from ldm.measure import relative_error
from ldm.models.vae import VAE
from ldm.runtime import autoencoding
from ldm.runtime.tracking import Tracker
from scripts.faults import memory as faults


@pytest.fixture
def vae() -> VAE:
    """In float16, and overflowing there."""
    made = faults.small_vae()
    return faults.stretch(made, 70_000 / faults.peak(made, faults.latents(0))).half()


def test_a_copy_is_wider_and_goes_again(vae: VAE) -> None:
    before = faults.fingerprint(vae)
    with Tracker() as tracker:
        with autoencoding.widened(vae, torch.float32) as copied:
            assert tracker.peak == sum(4 * each.numel() for each in vae.parameters())  # no tensor is there twice
            assert {each.dtype for each in copied.parameters()} == {torch.float32}
            assert torch.equal(copied.decoder.conv_in.weight, vae.decoder.conv_in.weight.float())
            assert copied is not vae and copied.shape == vae.shape
        assert {each.device.type for each in copied.parameters()} == {"meta"}  # it holds nothing, though it is still a name here
        with pytest.raises(KeyError), autoencoding.widened(vae, torch.bfloat16) as copied:
            raise KeyError("x")
        assert {each.device.type for each in copied.parameters()} == {"meta"}
        del copied
        assert tracker.live == 0
    with autoencoding.widened(vae, torch.float16) as same:
        assert same is vae
    assert faults.fingerprint(vae) == before


def test_tries_go_from_float16_to_float32(vae: VAE) -> None:
    z = faults.latents(0)
    with pytest.warns(RuntimeWarning, match="VAE decode: values that are not finite in float16: decoding again in bfloat16") as seen:
        image = autoencoding.decode(vae, z)[0]
    assert len(seen) == 1 and seen[0].filename == __file__
    with autoencoding.widened(vae, torch.float32) as full:
        exact = autoencoding.decode(full, z)[0]
    assert 0 < (image - exact).abs().max() * faults.LEVEL < 3
    vae.decoder.conv_out.register_forward_pre_hook(lambda module, args: args[0] * float("inf") if args[0].dtype != torch.float32 else None)
    with pytest.warns(RuntimeWarning) as seen:
        assert torch.equal(autoencoding.decode(vae, z)[0], exact)
    assert [str(each.message).partition("finite ")[2] for each in seen] == [
        "in float16: decoding again in bfloat16",
        "in bfloat16: decoding again in float32",
    ]


def test_what_float32_cannot_do_is_an_error(vae: VAE) -> None:
    vae.decoder.conv_in.bias[0] = float("nan")
    with pytest.raises(NumericError, match="VAE decode: values that are not finite in float32") as caught, pytest.warns(RuntimeWarning):
        autoencoding.decode(vae, faults.latents(0))
    assert caught.value.code == "E6002"
    full = faults.small_vae()
    with pytest.raises(NumericError, match="VAE encode") as caught:
        autoencoding.encode(full, torch.full((1, 3, 8, 8), float("inf")))
    assert caught.value.code == "E6002"


def test_encoding_is_tried_again_too(vae: VAE) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    faults.stretch(vae, 5e4, vae.encoder)
    with pytest.warns(RuntimeWarning, match="VAE encode: values that are not finite in float16: encoding again"):
        z = autoencoding.encode(vae, image)
    with autoencoding.widened(vae, torch.float32) as full:
        assert relative_error(z, autoencoding.encode(full, image)) < 0.05


@pytest.mark.filterwarnings("ignore:VAE decode")
def test_threads_do_not_see_each_others_tries(vae: VAE) -> None:
    before, gate = faults.fingerprint(vae), threading.Barrier(2, timeout=60)

    def run(seed: int) -> torch.Tensor:
        gate.wait()
        return autoencoding.decode(vae, faults.latents(seed))[0]

    with torch.no_grad():
        alone = [autoencoding.decode(vae, faults.latents(seed))[0] for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, range(8)))
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))
    assert faults.fingerprint(vae) == before
