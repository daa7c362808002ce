"""Scaled dot-product attention: softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.ops import use_reference


def attention_reference(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The specification: q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, T, S)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """As `attention_reference`, by PyTorch's fused kernels."""
    if use_reference():
        return attention_reference(q, k, v, causal=causal)
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))  # or torch forms all T x S scores
    if q.is_meta:  # shapes alone, as when memory is counted: the fused kernels hold no scores
        return torch.empty_like(q)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
