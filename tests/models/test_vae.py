"""The VAE's numeric facts (generative-models `model.py`): eps, one head, padding right and bottom, sizes."""

from __future__ import annotations

import torch
from torch import nn

from ldm.measure import relative_error
from ldm.models.shapes import load_family
from ldm.models.vae import VAE, AttentionBlock, Downsample
from tests.models.tiny import drawn, tiny


def test_norms() -> None:
    with torch.device("meta"):
        vae = VAE(load_family("sdxl-base").vae)
    norms = [module for module in vae.modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.eps, norm.num_groups) for norm in norms} == {(1e-6, 32)}
    assert sum(isinstance(module, AttentionBlock) for module in vae.modules()) == 2
    assert vae.encoder.mid.attn_1.q.weight.shape == (512, 512, 1, 1)


def test_downsampling_pads_right_and_bottom() -> None:
    unit = Downsample(1)
    with torch.no_grad():
        unit.conv.weight.zero_()
        unit.conv.weight[0, 0, 0, 0] = 1.0  # the kernel's top left corner sees the pixel itself: nothing was padded there
        unit.conv.bias.zero_()
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(unit(image), image[:, :, ::2, ::2])


@torch.no_grad()
def test_sizes_and_clamp() -> None:
    vae = drawn(VAE(tiny("sdxl-base").vae))
    mean, logvar = vae.encode(torch.rand(1, 3, 32, 48) * 2 - 1)
    assert mean.shape == logvar.shape == (1, 4, 4, 6)
    assert vae.decode(mean).shape == (1, 3, 32, 48)
    for bias, end in ((1e6, 20.0), (-1e6, -30.0)):
        vae.quant_conv.bias[4:] = bias
        assert torch.equal(vae.encode(torch.zeros(1, 3, 32, 32))[1], torch.full((1, 4, 4, 4), end))


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch() -> None:
    vae = drawn(VAE(tiny("sdxl-base").vae))
    z = torch.randn(3, 4, 4, 4)
    assert relative_error(vae.decode(z)[1:2], vae.decode(z[1:2])) < 1e-5


def test_official_numbers() -> None:
    for name in ("sdxl-base", "sdxl-refiner"):
        assert load_family(name).vae.scale == 0.13025
        assert load_family(name).downscale == 8
        assert load_family(name).vae_dtype == "float32"
