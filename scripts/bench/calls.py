"""What `scripts.bench.shapes` has of each operation: plain torch, ours, the libraries' own, drawn inputs, and the work that is in it.

What of ldm.ops is new to a machine is imported when it is called: an operation that is not there is a line that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.bench.operations import Make, Work

Dims = Sequence[int]
BYTES = 2  # an element, in bfloat16
LAST = torch.channels_last


def sdpa(backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's attention by one of its own kernels."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v)

    return call


def attention_plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from ldm.ops.attention import attention_reference

    return torch.cat([attention_reference(*each) for each in zip(q.split(1, 1), k.split(1, 1), v.split(1, 1), strict=True)], 1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from ldm.ops.attention import attention as public

    return public(q, k, v)


def attention_names(q: Tensor, k: Tensor, v: Tensor) -> Sequence[str]:
    from ldm.ops.attention import candidates

    return candidates(q, k, v)


def attention_key(q: Tensor, k: Tensor, v: Tensor) -> str:
    from ldm.ops.attention import key

    return key(q, k)


def attention_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    """Heads as the models have them: views of one projection, (B, T, H D)."""
    b, h, t, s, d = dims
    return tuple(make(b, n, h * d).unflatten(-1, (h, d)).transpose(1, 2) for n in (t, s, s))


def attention_work(dims: Dims) -> Work:
    b, h, t, s, d = dims
    return 4.0 * b * h * t * s * d, BYTES * b * h * d * (2.0 * t + 2 * s)


def group_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, group_count(x), weight, bias, 1e-5))


def group_count(x: Tensor) -> int:
    return min(32, x.shape[1] // 2)


def group(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from ldm.ops.norm import group_norm

    return group_norm(x, group_count(x), weight, bias, 1e-5, silu=True)


def group_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    b, c, side = dims
    return make(b, c, side, side).to(memory_format=LAST), make(c), make(c)


def group_work(dims: Dims) -> Work:
    b, c, side = dims
    return 10.0 * b * c * side**2, 2.0 * BYTES * b * c * side**2  # read once, written once


def added_plain(h: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(h + delta, h.shape[-1:], weight, bias)


def added(h: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from ldm.ops.norm import add_norm

    return add_norm(h, delta, weight, bias, 1e-5)[1]


def added_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    rows, width = dims
    return make(1, rows, width), make(1, rows, width), make(width), make(width)


def added_work(dims: Dims) -> Work:
    """Two tensors read, the sum and its norm written."""
    rows, width = dims
    return 9.0 * rows * width, 4.0 * BYTES * rows * width


def geglu_plain(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, gate = F.linear(h, weight, bias).chunk(2, -1)
    return x * F.gelu(gate)


def geglu(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from ldm.ops.geglu import geglu as public

    return public(h, weight, bias)


def geglu_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    m, n, k = dims
    return linear_inputs((m, 2 * n, k), make)


def geglu_work(dims: Dims) -> Work:
    m, n, k = dims
    return 4.0 * m * n * k, BYTES * (1.0 * m * k + 2 * n * k + m * n)


def linear_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    """M rows of K, a weight of N rows."""
    m, n, k = dims
    return make(m, k), make(n, k, scale=k**-0.5), make(n)


def linear_work(dims: Dims) -> Work:
    m, n, k = dims
    return 2.0 * m * n * k, BYTES * (1.0 * m * k + n * k + m * n)


def linear_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from ldm.ops.linear import linear as public

    return public(x, weight, bias)


def fp8(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The product alone takes quantised rows; here they are made in the same call."""
    from ldm.ops.fp8 import linear_fp8, quantise_rows

    return linear_fp8(quantise_rows(x), kept(weight), bias, x.dtype)


def geglu_fp8(h: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """Its rows come quantised from the norm before; here they are made in the same call."""
    from ldm.ops import fp8 as public

    return public.geglu_fp8(public.quantise_rows(h), kept(weight), bias, h.dtype)


def geglu_fp8_key(h: Tensor, weight: Tensor, bias: Tensor) -> str:
    return f"{len(h)} {len(weight)} {h.shape[1]}"


@lru_cache(maxsize=1)
def kept(weight: Tensor) -> Any:
    """The quantised weight, once for each: tensors are told apart by identity."""
    from ldm.ops.fp8 import quantise_rows

    return quantise_rows(weight)


def conv_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def conv_first(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Channels before rows, as diffusers has them unless told otherwise; the copies are part of neither engine, and of this call."""
    return F.conv2d(x.contiguous(), weight.contiguous(), bias, padding=1)


def conv_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    b, c, d, side = dims
    weight = make(d, c, 3, 3, scale=(9 * c) ** -0.5).to(memory_format=LAST)
    return make(b, c, side, side).to(memory_format=LAST), weight, make(d)


def conv_work(dims: Dims) -> Work:
    b, c, d, side = dims
    return 18.0 * b * c * d * side**2, BYTES * (b * (c + d) * side**2 + 9.0 * c * d)


def upsample_inputs(dims: Dims, make: Make) -> tuple[Tensor, ...]:
    b, c, side = dims
    return conv_inputs((b, c, c, side), make)


def upsample_plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def upsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from ldm.ops.upsample import upsample_conv

    return upsample_conv(x, weight, bias, torch.Size(2 * each for each in x.shape[2:]))


def upsample_key(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    return " ".join(map(str, (*x.shape[:2], len(weight), *x.shape[2:])))


def upsample_work(dims: Dims) -> Work:
    """As one convolution over the doubled picture: what is saved counts as done."""
    b, c, side = dims
    return 72.0 * b * c * c * side**2, BYTES * (5.0 * b * c * side**2 + 9 * c * c)
