"""What a machine can do at most, measured, and the operations that a picture takes, counted."""

from __future__ import annotations

import statistics
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm import ops
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from scripts.bench.measures import timed

TIMES = 11


def product(device: torch.device, side: int, dtype: torch.dtype) -> float:
    """TFLOP/s of a square matrix product of drawn numbers: zeros are faster than anything real."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    repeats = 10 if device.type == "cuda" else 1  # so that launching is no part of it

    def run() -> None:
        for _ in range(repeats):
            left @ right

    return 2e-12 * side**3 * repeats / _median(run, device)


def copy(device: torch.device, count: int) -> float:
    """GB/s of a copy on the device, bytes read and bytes written."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / _median(lambda: target.copy_(source), device)


def _median(call: object, device: torch.device) -> float:
    assert callable(call)
    for _ in range(3):
        call()
    return statistics.median(timed(call, device) for _ in range(TIMES))


@cache
def step(family: Family, side: int, rows: int) -> float:
    """TFLOP of the UNet for `rows` latents of a picture of side x side pixels, the text's keys and values in it.

    As the plain references compute it, one multiplication and one addition a term: what a faster way leaves out counts as done.
    """
    with torch.device("meta"):
        unet = UNet(family.unet)
        x = torch.empty(rows, family.unet.in_channels, side // family.downscale, side // family.downscale)
        context, vector = torch.empty(rows, 77, family.unet.context_dim), torch.empty(rows, family.unet.vector_dim)
        return _counted(lambda: unet(x, unet.prepare(context, vector, [0.0]), 0))


@cache
def decode(family: Family, side: int) -> float:
    """TFLOP of the VAE's decoder for one picture."""
    with torch.device("meta"):
        vae = VAE(family.vae)
        z = torch.empty(1, family.vae.z_channels, side // family.downscale, side // family.downscale)
        return _counted(lambda: vae.decode(z))


def picture(family: Family, side: int, steps: int, *, guided: bool, batch: int = 1) -> float:
    """TFLOP of pictures: the steps and the decoder; the text's part is under a thousandth."""
    return batch * (steps * step(family, side, 2 if guided else 1) + decode(family, side))


@torch.no_grad()
def _counted(call: object) -> float:
    assert callable(call)
    with ops.reference(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12
