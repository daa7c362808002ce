"""The CLIP text transformer, one class for every tower; names are those of transformers' CLIPTextModel, as the official files have CLIP-L.

Source: Radford et al. 2021; generative-models `sgm/modules/encoders/modules.py`. LayerNorm eps 1e-5, pre-norm, causal.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.models.shapes import TowerShape
from ldm.ops.activation import gelu, sigmoid
from ldm.ops.attention import attention
from ldm.ops.linear import Linear, linear
from ldm.ops.norm import AddNorm


class TextOutput(NamedTuple):
    penultimate: Tensor  # (B, 77, W): after the last layer but one, or the one asked for, without the final norm: SDXL's context
    last: Tensor  # (B, 77, W): after the last layer, without the final norm
    pooled: Tensor | None  # (B, P): final norm at the first end token, projected


class CLIPText(nn.Module):
    """Token ids (B, 77) -> TextOutput."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self.text_model = TextModel(shape)
        self.text_projection = nn.Parameter(torch.empty(shape.width, shape.projection)) if shape.projection else None
        if self.text_projection is not None and not self.text_projection.is_meta:
            nn.init.normal_(self.text_projection, std=shape.width**-0.5)

    def forward(self, ids: Tensor, depth: int = 2) -> TextOutput:
        """`depth`: which state is the context, counted from the end; 1 is that after the last layer."""
        penultimate, last = self.text_model(ids, depth)
        return TextOutput(penultimate, last, self._pool(ids, last))

    def _pool(self, ids: Tensor, last: Tensor) -> Tensor | None:
        return None if self.text_projection is None else linear(self.summary(ids, last), self.text_projection.T)

    def summary(self, ids: Tensor, last: Tensor) -> Tensor:
        """The last layer (B, 77, W) at the first end token, which padding may repeat, normed: (B, W)."""
        end = (ids == self.shape.vocab - 1).int().argmax(-1)
        return self.text_model.final_layer_norm(last[torch.arange(ids.shape[0], device=ids.device), end])


class TextModel(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder = Encoder(shape)
        self.final_layer_norm = nn.LayerNorm(shape.width, eps=1e-5)

    def forward(self, ids: Tensor, depth: int = 2) -> tuple[Tensor, Tensor]:
        states = deque([self.embeddings(ids)], maxlen=depth)  # (B, 77, W) each
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return states[0], states[-1]


class Embeddings(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.token_embedding = embedding(shape.vocab, shape.width)
        self.position_embedding = embedding(shape.length, shape.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


def embedding(count: int, width: int) -> nn.Embedding:
    """Drawn, but on the meta device only shaped: to draw there, torch imports its compiler, which takes longer than a second."""
    weight = torch.empty(count, width)
    return nn.Embedding.from_pretrained(weight, freeze=False) if weight.is_meta else nn.Embedding(count, width)


class Encoder(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))


class Layer(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.layer_norm1 = AddNorm(shape.width, eps=1e-5)
        self.self_attn = SelfAttention(shape)
        self.layer_norm2 = AddNorm(shape.width, eps=1e-5)
        self.mlp = MLP(shape)

    def forward(self, h: Tensor) -> Tensor:
        _, n = self.layer_norm1(h)
        h, n = self.layer_norm2(h, self.self_attn(n))
        return h + self.mlp(n)


class SelfAttention(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj = Linear(shape.width, shape.width)
        self.k_proj = Linear(shape.width, shape.width)
        self.v_proj = Linear(shape.width, shape.width)
        self.out_proj = Linear(shape.width, shape.width)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (rearrange(proj(h), "B T (H D) -> B H T D", H=self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(rearrange(attention(q, k, v, causal=True), "B H T D -> B T (H D)"))


class MLP(nn.Module):
    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.activation = quick_gelu if shape.activation == "quick_gelu" else gelu
        self.fc1 = Linear(shape.width, shape.mlp)
        self.fc2 = Linear(shape.mlp, shape.width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(h)))


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): OpenAI's CLIP was trained with this approximation, OpenCLIP's bigG with the exact GELU."""
    return x * sigmoid(1.702 * x)
