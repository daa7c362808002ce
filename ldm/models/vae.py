"""The KL autoencoder of latent diffusion: pixels to latents of an eighth of the size, and back.

Source: Rombach et al. 2022; generative-models `sgm/modules/diffusionmodules/model.py`. All GroupNorms have eps 1e-6; the one
attention has a single head; downsampling pads right and bottom only.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.shapes import VAEShape
from ldm.ops.attention import attention
from ldm.ops.conv import Conv3x3
from ldm.ops.norm import GroupNorm
from ldm.ops.pointwise import Pointwise
from ldm.ops.upsample import upsampled


class VAE(nn.Module):
    """image (B, 3, H, W) in [-1, 1] <-> unscaled latents (B, 4, H/8, W/8); the factor 0.13025 is the caller's."""

    def __init__(self, shape: VAEShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.quant_conv = Pointwise(2 * shape.z_channels, 2 * shape.z_channels)
        self.post_quant_conv = Pointwise(shape.z_channels, shape.z_channels)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (which is the mode) and log-variance, clamped to [-30, 20]."""
        mean, logvar = self.quant_conv(self.encoder(image)).contiguous().chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """The image, not clamped."""
        image: Tensor = self.decoder(self.post_quant_conv(z))
        return image


class Encoder(nn.Module):
    def __init__(self, shape: VAEShape) -> None:
        super().__init__()
        widths = [shape.ch * mult for mult in shape.ch_mult]
        self.conv_in = Conv3x3(3, shape.ch)
        self.down = nn.ModuleList(
            Level(before, width, shape.num_res_blocks, shape.norm_groups, downsample=i < len(widths) - 1)
            for i, (before, width) in enumerate(zip([shape.ch, *widths], widths, strict=False))
        )
        self.mid = Middle(widths[-1], shape.norm_groups)
        self.norm_out = norm(widths[-1], shape.norm_groups)
        self.conv_out = Conv3x3(widths[-1], 2 * shape.z_channels)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        moments: Tensor = self.conv_out(self.norm_out(self.mid(h)))
        return moments


class Decoder(nn.Module):
    def __init__(self, shape: VAEShape) -> None:
        super().__init__()
        widths = [shape.ch * mult for mult in shape.ch_mult]
        self.conv_in = Conv3x3(shape.z_channels, widths[-1])
        self.mid = Middle(widths[-1], shape.norm_groups)
        self.up = nn.ModuleList(  # up.3 runs first, up.0 last and without an upsample
            Level(before, width, shape.num_res_blocks + 1, shape.norm_groups, upsample=i > 0)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = norm(shape.ch * shape.ch_mult[0], shape.norm_groups)
        self.conv_out = Conv3x3(shape.ch * shape.ch_mult[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        image: Tensor = self.conv_out(self.norm_out(h))
        return image


class Level(nn.Module):
    """Residual blocks at one resolution, then the step to the next."""

    def __init__(self, before: int, width: int, blocks: int, groups: int, *, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(width if i else before, width, groups) for i in range(blocks))
        self.downsample = Downsample(width) if downsample else nn.Identity()
        self.upsample = Upsample(width) if upsample else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        for block in self.block:
            h = block(h)
        return self.upsample(self.downsample(h))


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups)
        self.attn_1 = AttentionBlock(width, groups)
        self.block_2 = ResnetBlock(width, width, groups)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class ResnetBlock(nn.Module):
    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(before, groups)
        self.conv1 = Conv3x3(before, width)
        self.norm2 = norm(width, groups)
        self.conv2 = Conv3x3(width, width)
        self.nin_shortcut = Pointwise(before, width) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        return self.conv2(self.norm2(h)).add_(self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head attention over all positions; q, k and v are 1x1 convolutions in the files."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(width, groups, silu=False)
        self.q = Pointwise(width, width)
        self.k = Pointwise(width, width)
        self.v = Pointwise(width, width)
        self.proj_out = Pointwise(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(conv(h), "B C H W -> B 1 (H W) C") for conv in (self.q, self.k, self.v))
        h = rearrange(attention(q, k, v), "B 1 (H W) C -> B C H W", H=x.shape[2])
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv3x3(width, width, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only
        return h


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled(x, self.conv, (2 * x.shape[2], 2 * x.shape[3]))


def norm(width: int, groups: int, *, silu: bool = True) -> GroupNorm:
    """With the SiLU that follows each but the attention's."""
    return GroupNorm(groups, width, eps=1e-6, silu=silu)
