"""The VAE's decoder in bands of rows: a fraction of the memory, and the same picture.

Every GroupNorm sees the whole map: the statistics of all bands are joined before the first of them is normalised, so that no band differs
from what it is in the whole. Convolutions take a row of each neighbour along. The attention in the middle, at the smallest size, is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from ldm.models.vae import VAE, Level, ResnetBlock
from ldm.ops.activation import silu

BAND = 2**25  # bytes of a band, at most, where it has no fewer than LEAST rows
LEAST = 8

Bands = list[Tensor]  # a map (B, C, H, W), cut along H
Run = Callable[[Tensor], Tensor]


def decode(vae: VAE, z: Tensor) -> Tensor:
    """As `vae.decode`, within rounding."""
    decoder = vae.decoder
    bands = [decoder.mid(decoder.conv_in(vae.post_quant_conv(z)))]
    for level in (cast(Level, level) for level in reversed(decoder.up)):
        for block in level.block:
            bands = _block(cast(ResnetBlock, block), _cut(bands))
        if not isinstance(level.upsample, nn.Identity):
            bands = [out for _, out in _sweep(_cut(bands), level.upsample, 2)]
    bands = _cut(bands)
    run = _activated(decoder.norm_out, bands, decoder.conv_out)
    return torch.cat([out for _, out in _sweep(bands, run)], 2)


def _cut(bands: Bands) -> Bands:
    """The bands in pieces of BAND bytes; the given list is left empty, so that a band's memory goes with its last piece."""
    pieces = []
    while bands:
        band = bands.pop(0)
        pieces += band.split(max(LEAST, BAND // band[:, :, :1].nbytes), 2)
    return pieces


def _block(block: ResnetBlock, bands: Bands) -> Bands:
    """A residual block; the bands before it go as those after it come."""
    hidden, residual, made = [], [], []
    for band, out in _sweep(bands, _activated(block.norm1, bands, block.conv1)):
        hidden.append(out)
        residual.append(block.nin_shortcut(band))
        del band, out
    for _, out in _sweep(hidden, _activated(block.norm2, hidden, block.conv2)):
        made.append(out.add_(residual.pop(0)))
    return made


def _sweep(bands: Bands, run: Run, scale: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Each band and what `run` makes of it: `run` sees a row of each neighbour, and what it makes of them is cut off.

    The list is left empty. `scale`: rows of the result a row.
    """
    above = below = None
    while bands:
        band = bands.pop(0)
        below = bands[0][:, :, :1] if bands else None
        seen = [each for each in (above, band, below) if each is not None]
        out = run(torch.cat(seen, 2) if len(seen) > 1 else band)
        yield band, out.narrow(2, 0 if above is None else scale, scale * band.shape[2])
        above = band[:, :, -1:].clone()
        del band, out, seen


def _activated(norm: nn.GroupNorm, bands: Bands, conv: Run) -> Run:
    """GroupNorm by the statistics of all bands with the SiLU that is its own, and a convolution, of any of them."""
    if len(bands) == 1:
        return lambda x: conv(norm(x))
    scale, shift = _affine(norm, bands)

    def run(x: Tensor) -> Tensor:
        h = (x.float() * scale).add_(shift).to(x.dtype)
        return conv(silu(h))

    return run


def _affine(norm: nn.GroupNorm, bands: Bands) -> tuple[Tensor, Tensor]:
    """What a channel is multiplied with and what is added to it, (B, C, 1, 1) float32 each."""
    counts = torch.tensor([float(band[0, 0].numel()) for band in bands], dtype=torch.float64, device=bands[0].device)
    shares = (counts / counts.sum())[:, None, None]
    found = [torch.var_mean(band.float().unflatten(1, (norm.num_groups, -1)), (2, 3, 4), correction=0) for band in bands]
    variances, means = (torch.stack(each).double() for each in zip(*found, strict=True))  # (bands, B, G)
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean) ** 2)).sum(0)  # Chan et al. 1983, equation 2.1
    each = norm.num_channels // norm.num_groups
    mean, rstd = (part.repeat_interleave(each, 1) for part in (mean, (variance + norm.eps).rsqrt()))  # (B, C)
    scale = norm.weight.double() * rstd
    shift = norm.bias.double() - mean * scale
    return scale.float()[:, :, None, None], shift.float()[:, :, None, None]
