"""The UNet of latent diffusion models: SDXL base and refiner, and by its numbers SD 1.x and 2.x; names are the checkpoint's.

Source: Rombach et al. 2022, Podell et al. 2023; generative-models `sgm/modules/diffusionmodules/openaimodel.py`.
GroupNorm eps is 1e-5 in residual blocks and `out`, 1e-6 in the spatial transformers; LayerNorm eps 1e-5; the GELU is the exact one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.prepared import Keys, Prepared, Shifts, Text, worded
from ldm.models.shapes import UNetShape
from ldm.ops.activation import SiLU
from ldm.ops.attention import attention
from ldm.ops.conv import Conv3x3
from ldm.ops.embedding import sinusoid
from ldm.ops.geglu import gated
from ldm.ops.linear import Linear, linears
from ldm.ops.norm import AddNorm, GroupNorm
from ldm.ops.pointwise import Pointwise
from ldm.ops.upsample import upsampled


class UNet(nn.Module):
    """x (R, C, H/8, W/8), text and sizes -> the prediction (epsilon or v), of x's shape."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        wide = 4 * shape.model_channels
        self.time_embed = mlp(shape.model_channels, wide)
        if shape.vector_dim:
            self.label_emb = nn.Sequential(mlp(shape.vector_dim, wide))
        self.input_blocks, skips = build_input(shape)
        self.middle_block = build_middle(shape, skips[-1])
        self.output_blocks = build_output(shape, skips)
        width = shape.model_channels * shape.channel_mult[0]
        self.out = nn.Sequential(GroupNorm(shape.norm_groups, width, silu=True), nn.Identity(), Conv3x3(width, shape.out_channels))

    def prepare(self, context: Tensor, vector: Tensor | None, ts: Sequence[float]) -> Prepared:
        """context (R, S, D), vector (R, V), training step indices -> the text's keys and values, and the shifts of all steps."""
        return Prepared(self.keys(context), self.shifts(vector, ts), worded(context))

    def keys(self, context: Tensor) -> Keys:
        """Keys and values of context (R, S, D) for every cross-attention."""
        return [block.keys(context) for block in self.modules() if isinstance(block, CrossAttention)]

    def shifts(self, vector: Tensor | None, ts: Sequence[float]) -> list[Shifts]:
        """What each residual block adds at each of the steps `ts`; vector is (R, V)."""
        weight = next(self.parameters())
        t = torch.tensor(ts, dtype=torch.float32, device=weight.device)
        emb = self.embed(t, None)[:, None]  # (T, 1, E)
        if vector is not None:
            emb = emb + self.label_emb(vector.to(weight.dtype))  # (T, R, E)
        blocks = [block.emb_layers(emb) for block in self.modules() if isinstance(block, ResBlock)]
        return [[block[i] for block in blocks] for i in range(len(ts))]

    def embed(self, t: Tensor, vector: Tensor | None) -> Tensor:
        """t (B,), vector (B, V) -> (B, E)."""
        emb: Tensor = self.time_embed(sinusoid(t, self.shape.model_channels).to(next(self.parameters()).dtype))
        return emb if vector is None else emb + self.label_emb(vector)

    def forward(self, x: Tensor, prepared: Prepared, i: int) -> Tensor:
        """One evaluation at step i of those prepared."""
        shifts, texts = iter(prepared.shifts[i]), prepared.texts()
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, shifts, texts)
            skips.append(h)
        h = self.middle_block(h, shifts, texts)
        for stage in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            h = stage(h, shifts, texts, skips[-1].shape[2:] if skips else None)
        return self.out(h).contiguous()

    def denoise(self, x: Tensor, t: Tensor, context: Tensor, vector: Tensor | None) -> Tensor:
        """One evaluation with a step of its own for each row, t (B,), as training needs it."""
        emb = self.embed(t, vector)
        shifts = [block.emb_layers(emb) for block in self.modules() if isinstance(block, ResBlock)]
        return self.forward(x, Prepared(self.keys(context), [shifts], (True,) * len(context)), 0)


def build_input(shape: UNetShape) -> tuple[nn.ModuleList, list[int]]:
    """The descending half, and the widths of its skip connections."""
    width = shape.model_channels
    stages, skips = [Stage(Conv3x3(shape.in_channels, width))], [width]
    for level, mult in enumerate(shape.channel_mult):
        for _ in range(shape.num_res_blocks):
            before, width = width, shape.model_channels * mult
            stages.append(Stage(ResBlock(shape, before, width), *transformer(shape, width, shape.transformer_depth[level])))
            skips.append(width)
        if level < len(shape.channel_mult) - 1:
            stages.append(Stage(Downsample(width)))
            skips.append(width)
    return nn.ModuleList(stages), skips


def build_middle(shape: UNetShape, width: int) -> Stage:
    return Stage(ResBlock(shape, width, width), *transformer(shape, width, shape.middle_depth), ResBlock(shape, width, width))


def build_output(shape: UNetShape, skips: Sequence[int]) -> nn.ModuleList:
    """The ascending half: one block more a level, each after a concatenation with a skip."""
    stages, width, waiting = [], skips[-1], list(skips)
    for level, mult in reversed(list(enumerate(shape.channel_mult))):
        for block in range(shape.num_res_blocks + 1):
            before, width = width + waiting.pop(), shape.model_channels * mult
            layers: list[nn.Module] = [ResBlock(shape, before, width), *transformer(shape, width, shape.transformer_depth[level])]
            if level and block == shape.num_res_blocks:
                layers.append(Upsample(width))
            stages.append(Stage(*layers))
    return nn.ModuleList(stages)


def transformer(shape: UNetShape, width: int, depth: int) -> list[nn.Module]:
    return [SpatialTransformer(shape, width, depth)] if depth else []


def mlp(before: int, width: int) -> nn.Sequential:
    return nn.Sequential(Linear(before, width), SiLU(), Linear(width, width))


class Stage(nn.Sequential):
    """Layers in a row; each takes from the prepared conditioning what is its own. `size` is that of the skip which comes next."""

    def forward(  # type: ignore[override]
        self, h: Tensor, shifts: Iterator[Tensor], texts: Iterator[Text], size: torch.Size | None = None
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                h = layer(h, next(shifts))
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, texts)
            elif isinstance(layer, Upsample):
                h = layer(h, size)
            else:
                h = layer(h)
        return h


class ResBlock(nn.Module):
    """The file numbers the SiLU after each norm, and a dropout, as layers of their own."""

    def __init__(self, shape: UNetShape, before: int, width: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(shape.norm_groups, before, silu=True), nn.Identity(), Conv3x3(before, width))
        self.emb_layers = nn.Sequential(SiLU(), Linear(4 * shape.model_channels, width))
        self.out_layers = nn.Sequential(GroupNorm(shape.norm_groups, width, silu=True), nn.Identity(), nn.Identity(), Conv3x3(width, width))
        self.skip_connection = Pointwise(before, width) if before != width else nn.Identity()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        h = self.in_layers(x).add_(rearrange(shift, "B C -> B C 1 1"))
        return self.out_layers(h).add_(self.skip_connection(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map."""

    def __init__(self, shape: UNetShape, width: int, depth: int) -> None:
        super().__init__()
        self.linear = shape.linear_proj
        self.norm = GroupNorm(shape.norm_groups, width, eps=1e-6)
        self.proj_in = Linear(width, width) if self.linear else Pointwise(width, width)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(shape, width) for _ in range(depth))
        self.proj_out = Linear(width, width) if self.linear else Pointwise(width, width)

    def forward(self, x: Tensor, texts: Iterator[Text]) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)
        h = h if self.linear else self.proj_in(h)
        h = rearrange(h, "B C H W -> B (H W) C")
        h = self.proj_in(h) if self.linear else h
        delta = None
        for block in self.transformer_blocks:
            h, delta = block(h, delta, next(texts))
        h = h if delta is None else h + delta
        h = self.proj_out(h) if self.linear else h
        h = rearrange(h, "B (H W) C -> B C H W", H=height)
        return x + (h if self.linear else self.proj_out(h))


class TransformerBlock(nn.Module):
    def __init__(self, shape: UNetShape, width: int) -> None:
        super().__init__()
        heads = shape.num_heads or width // shape.head_dim
        self.attn1 = SelfAttention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, shape.context_dim, heads)
        self.norm1 = AddNorm(width)
        self.norm2 = AddNorm(width)
        self.norm3 = AddNorm(width)

    def forward(self, h: Tensor, delta: Tensor | None, text: Text) -> tuple[Tensor, Tensor]:
        """A branch's result is added to h by the norm before the next branch; the last one's is returned beside h."""
        h, n = self.norm1(h, delta)
        h, n = self.norm2(h, self.attn1(n))
        h, n = self.norm3(h, self.attn2(n, text))
        return h, self.ff(n)


class Attention(nn.Module):
    """Projections of queries from h (B, T, C) and of keys and values from a source (B, S, D)."""

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=False)
        self.to_k = Linear(source, width, bias=False)
        self.to_v = Linear(source, width, bias=False)
        self.to_out = nn.Sequential(Linear(width, width))

    def split(self, h: Tensor) -> Tensor:
        return rearrange(h, "B T (H D) -> B H T D", H=self.heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self.to_out(rearrange(attention(q, k, v), "B H T D -> B T (H D)"))
        return out


class SelfAttention(Attention):
    def forward(self, h: Tensor) -> Tensor:
        return self.attend(*map(self.split, linears(h, self.to_q, self.to_k, self.to_v)))


class CrossAttention(Attention):
    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        k, v = map(self.split, linears(context, self.to_k, self.to_v))
        return k, v

    def forward(self, h: Tensor, text: Text) -> Tensor:
        """Rows without a text have zeros for values, so the bias is all that is left of them."""
        if len(text.k) == h.shape[0]:
            return self.attend(self.split(self.to_q(h)), text.k, text.v)
        bias: Any = self.to_out[0].bias
        out: Tensor = bias.repeat(*h.shape[:2], 1)
        if len(text.k):
            out[text.rows] = self.attend(self.split(self.to_q(h[text.rows])), text.k, text.v)
        return out


class GEGLU(nn.Module):
    """x * gelu(gate), both from one projection, x first (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, h: Tensor) -> Tensor:
        return gated(h, self.proj)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.net(h)
        return out


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = Conv3x3(width, width, stride=2)

    def forward(self, h: Tensor) -> Tensor:
        return self.op(h)


class Upsample(nn.Module):
    """To twice the size, or one less where the way down met an odd one: the rule of ComfyUI and diffusers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv3x3(width, width)

    def forward(self, h: Tensor, size: torch.Size) -> Tensor:
        return upsampled(h, self.conv, size)
