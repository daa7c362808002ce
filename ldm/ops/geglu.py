"""GEGLU: x gelu(gate), both from one projection, x first (Shazeer 2020); the GELU is the exact one, by the error function.

Three ways on a GPU: "triton", the product with the gate done before anything is written, so that the 2 D columns never reach memory;
"pointwise", the vendor's product and a kernel for the rest; "plain", torch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm import ops
from ldm.ops import choice
from ldm.ops.activation import gelu
from ldm.ops.linear import Linear, by_onednn, linear, plain
from ldm.ops.product import Blocks, product, takes
from ldm.ops.rows import rows


def geglu(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """h (..., C), weight (2 D, C), bias (2 D) -> (..., D)."""
    if by_onednn(h, weight, bias):
        return geglu_onednn(h, weight, bias)
    if not ops.fast(h, weight, bias):
        return geglu_reference(h, weight, bias)
    shape = f"{h.numel() // h.shape[-1]} {len(weight) // 2} {h.shape[-1]}"
    ways: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
        "triton": geglu_triton if fits(h, weight) else geglu_pointwise,
        "pointwise": geglu_pointwise,
        "plain": geglu_reference,
    }
    return ways[choice.chosen("geglu", shape, h.device, default(h.device))](h, weight, bias)


def gated(h: Tensor, proj: nn.Module) -> Tensor:
    """`geglu` by a layer's weights; where it is more than a linear layer, what it makes of h with the gate applied."""
    if plain(proj, Linear):
        return geglu(h, proj.weight, proj.bias)
    x, gate = proj(h).chunk(2, dim=-1)
    return x * gelu(gate)


def geglu_reference(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, gate = linear(h, weight, bias).chunk(2, dim=-1)
    return x * gelu(gate)


def geglu_onednn(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """On the CPU: the gate's product with the GELU at its end, and that of x with the gate at its end."""
    product: Any = torch.ops.mkldnn._linear_pointwise
    (w, w_gate), (b, b_gate) = weight.chunk(2), (None, None) if bias is None else bias.chunk(2)
    gate = product(h, w_gate, b_gate, "gelu", [], "none")  # "none": by the error function, not by tanh
    out: Tensor = product.binary(h, gate, w, b, "mul")
    return out


def geglu_triton(h: Tensor, weight: Tensor, bias: Tensor | None, *, blocks: Blocks | None = None) -> Tensor:
    return product(h, weight, bias, h.dtype, gated=True, blocks=blocks)


def geglu_pointwise(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return rows(linear(h, weight, bias), gated=True)[1]


def default(device: torch.device) -> str:
    """What runs where nothing was measured: our product needs the unit that copies blocks, which came with compute capability 9."""
    return "triton" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "pointwise"


def fits(h: Tensor, weight: Tensor) -> bool:
    """Whether our product takes them: in half precision (float32 would lose digits to tensor cores), at addresses it can copy from."""
    return h.dtype in (torch.bfloat16, torch.float16) and takes(h, weight)
