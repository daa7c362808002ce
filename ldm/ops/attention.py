"""Scaled dot-product attention: softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, equation 1).

On a GPU there are several implementations, by name: PyTorch's own choice ("sdpa"), the vendor's kernels that it chooses among ("cudnn",
"flash", "efficient"), and ours ("triton", or "triton ROWSxKEYS" with one of its BLOCKS). A tuned table or `choice.using` takes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm import ops
from ldm.errors import InputError, near_matches
from ldm.ops import choice


def attention_reference(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The specification: q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D)."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, T, S)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """As `attention_reference`, by fused kernels."""
    if ops.use_reference():
        return attention_reference(q, k, v, causal=causal)
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))  # or torch forms all T x S scores
    if q.is_meta:  # shapes alone, as when memory is counted: the fused kernels hold no scores
        return torch.empty_like(q)
    if ops.fast(q, k, v):
        return implementation(choice.chosen("attention", key(q, k, causal=causal), q.device, "sdpa"))(q, k, v, causal)
    return sdpa(q, k, v, causal)


def key(q: Tensor, k: Tensor, *, causal: bool = False) -> str:
    """The shape in the words of the tables: "self 1024 64" (to the next power of two), "cross 77 64", "causal 77 64"; float32 apart."""
    kind = "causal" if causal else "self" if q.shape[2] == k.shape[2] else "cross"
    count = 1 << (k.shape[2] - 1).bit_length() if kind == "self" else k.shape[2]
    return f"{kind} {count} {q.shape[3]}" + (" float32" if q.dtype == torch.float32 else "")


Implementation = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def candidates(q: Tensor, k: Tensor, v: Tensor) -> list[str]:
    """The names of what may run here, to be measured; what a vendor's kernel does not support it refuses when it is called."""
    return [*VENDORS, *(f"triton {each.rows}x{each.keys}" for each in BLOCKS[way(q, k, v)].get(padded(q.shape[3]), ()))]


def implementation(name: str) -> Implementation:
    """What is called so."""
    kind, _, cut = name.partition(" ")
    if kind != "triton" and name in VENDORS:
        return VENDORS[name]
    if kind != "triton":
        raise InputError(f"unknown attention {name!r}: {near_matches(name, [*VENDORS, 'triton'])}")
    return lambda q, k, v, causal: attention_triton(q, k, v, causal=causal, cut=cut)


# Queries that torch's kernel for the CPU takes at once. With fewer, where a thread's own buffer begins, and so the last bits of the
# products in it, would depend on the thread; a single block leaves the products to as many threads as there are.
WHOLE = 32


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """PyTorch's choice; halves that are learned on a CPU in float32, whose way back takes two fifths of theirs."""
    if q.is_cpu and q.dtype != torch.float32 and q.requires_grad and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal).to(q.dtype)
    short = WHOLE * (1 + (q.shape[:2].numel() == 1)) - q.shape[2] if q.is_cpu else 0
    if short <= 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return F.scaled_dot_product_attention(F.pad(q, (0, 0, 0, short)), k, v, is_causal=causal)[:, :, : q.shape[2]]


# The kernels behind `scaled_dot_product_attention`, called by themselves: the switches that choose among them belong to the whole process.


def cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return torch.ops.aten._scaled_dot_product_cudnn_attention.default(q, k, v, None, False, is_causal=causal)[0]


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention.default(q, k, v, is_causal=causal)[0]


def efficient(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return torch.ops.aten._scaled_dot_product_efficient_attention.default(q, k, v, None, False, is_causal=causal)[0]


VENDORS: dict[str, Implementation] = {"sdpa": sdpa, "cudnn": cudnn, "flash": flash, "efficient": efficient}


class Blocks(NamedTuple):
    """How the work is cut: a program has `rows` queries, in registers, and takes `keys` keys and values at a time."""

    rows: int
    keys: int
    warps: int
    stages: int  # blocks of keys and values under way
    registers: int | None = None  # the most a thread may have, where fewer let one more program run beside


# By the way in which keys and values come and the head's padded width. The first is for few rows, the second for many; the rest have names
# only. Chosen by what the compiler says of sm_90 (65,536 registers and 227 KiB a multiprocessor, of which 163 KiB on sm_80): no registers
# spilled, and at width 64 two to four programs side by side, so that one's exponentials hide behind another's products.
BLOCKS: dict[str, dict[int, tuple[Blocks, ...]]] = {
    "copied": {
        64: (Blocks(64, 128, 4, 2), Blocks(128, 128, 8, 2, 128), Blocks(64, 64, 4, 3), Blocks(128, 64, 8, 3)),
        128: (Blocks(64, 64, 4, 2), Blocks(128, 64, 8, 2, 128), Blocks(128, 128, 8, 2)),
        512: (Blocks(128, 32, 8, 2),),
    },
    "loaded": {
        **dict.fromkeys((16, 32, 64), (Blocks(64, 64, 4, 3), Blocks(128, 64, 8, 3))),
        128: (Blocks(64, 32, 4, 2), Blocks(128, 64, 8, 2)),
        256: (Blocks(64, 32, 4, 2),),
        512: (Blocks(64, 16, 4, 2),),
    },
    "float32": {
        **dict.fromkeys((16, 32, 64), (Blocks(32, 32, 4, 2),)),
        **dict.fromkeys((128, 256, 512), (Blocks(16, 16, 4, 2),)),
    },
}
MANY = 512  # programs: several times what runs at once, so that the last few of them matter little
PART = 256  # columns of the result that one program has: more would not stay in registers


def padded(dim: int) -> int:
    """A head's width as the kernel has it."""
    return max(16, 1 << (dim - 1).bit_length())


def way(q: Tensor, k: Tensor, v: Tensor) -> str:
    """How keys and values come: "copied" by the unit that copies blocks (from sm_90 on), "loaded" by threads, or as "float32"."""
    if q.dtype == torch.float32:
        return "float32"
    aligned = all(each.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in _strides(each)) for each in (q, k, v))
    whole = q.shape[3] in BLOCKS["copied"]
    return "copied" if whole and aligned and (not q.is_cuda or torch.cuda.get_device_capability(q.device) >= (9, 0)) else "loaded"


def _strides(x: Tensor) -> list[int]:
    """Of all dimensions but the last; any will do where there is a single element."""
    return [8 if size == 1 else stride for size, stride in zip(x.shape[:3], x.stride(), strict=False)]


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def attend(
        q: tl.tensor,  # (B, H, T, D) each, as pointers or as descriptors
        k: tl.tensor,
        v: tl.tensor,
        out: tl.tensor,  # (B, T, H, D) in memory
        scale: tl.tensor,  # of scores whose exponentials are of base two
        T: tl.tensor,
        S: tl.tensor,
        H: tl.tensor,
        q_b: tl.tensor,
        q_h: tl.tensor,
        q_t: tl.tensor,
        k_b: tl.tensor,
        k_h: tl.tensor,
        k_s: tl.tensor,
        v_b: tl.tensor,
        v_h: tl.tensor,
        v_s: tl.tensor,
        D: tl.constexpr,
        WIDTH: tl.constexpr,  # of a head, padded
        PART: tl.constexpr,  # of it that this program writes
        ROWS: tl.constexpr,
        KEYS: tl.constexpr,
        COPIED: tl.constexpr,
        CAUSAL: tl.constexpr,
        TAIL: tl.constexpr,  # the last block of keys is not full, or some are hidden
    ) -> None:
        PARTS: tl.constexpr = WIDTH // PART
        places = tl.cdiv(T, ROWS) * PARTS
        place, head = tl.program_id(0) % places, tl.program_id(0) // places
        first, left = place // PARTS * ROWS, place % PARTS * PART
        b, h = head // H, head % H
        row, key, column, part = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, WIDTH), left + tl.arange(0, PART)
        inside = first + row < T
        if COPIED:
            queries = q.load([b, h, first, 0]).reshape(ROWS, WIDTH)
        else:
            q_row = q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h + first.to(tl.int64) * q_t
            queries = tl.load(q_row + row[:, None] * q_t + column[None, :], mask=inside[:, None] & (column < D)[None, :], other=0.0)
            k_head, k_block = k + b.to(tl.int64) * k_b + h.to(tl.int64) * k_h, key[None, :] * k_s + column[:, None]
            v_head, v_block = v + b.to(tl.int64) * v_b + h.to(tl.int64) * v_h, key[:, None] * v_s + part[None, :]
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, PART], tl.float32)
        last = tl.minimum(S, first + ROWS) if CAUSAL else S
        full = (tl.minimum(S, first + 1) if CAUSAL else S) // KEYS * KEYS  # keys in blocks that all rows see
        for masked in tl.static_range(2 if TAIL else 1):
            for at in range(full if masked else 0, last if masked else full, KEYS):
                there = at + key < S
                if COPIED:
                    keys = tl.trans(k.load([b, h, at, 0]).reshape(KEYS, WIDTH))
                elif masked:
                    keys = tl.load(k_head + tl.cast(at, tl.int64) * k_s + k_block, mask=(column < D)[:, None] & there[None, :], other=0.0)
                else:
                    keys = tl.load(k_head + tl.cast(at, tl.int64) * k_s + k_block, mask=(column < D)[:, None], other=0.0)
                scores = tl.dot(queries, keys, input_precision="ieee")
                if masked:
                    seen = there[None, :]
                    if CAUSAL:
                        seen = seen & (at + key[None, :] <= first + row[:, None])
                    scores = tl.where(seen, scores, float("-inf"))
                new = tl.maximum(top, tl.max(scores, 1) * scale)  # finite from the first block on: every row sees key 0
                weights = tl.math.exp2(scores * scale - new[:, None])
                shrink = tl.math.exp2(top - new)
                top = new
                total = total * shrink + tl.sum(weights, 1)
                if COPIED:
                    values = v.load([b, h, at, left]).reshape(KEYS, PART)
                elif masked:
                    values = tl.load(v_head + tl.cast(at, tl.int64) * v_s + v_block, mask=there[:, None] & (part < D)[None, :], other=0.0)
                else:
                    values = tl.load(v_head + tl.cast(at, tl.int64) * v_s + v_block, mask=(part < D)[None, :], other=0.0)
                sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None], input_precision="ieee")
        result = (sums / total[:, None]).to(out.dtype.element_ty)
        out_row = out + ((b.to(tl.int64) * T + first) * H + h) * D
        tl.store(out_row + row[:, None] * (H * D) + part[None, :], result, mask=inside[:, None] & (part < D)[None, :])

    return attend


def attention_triton(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, cut: str = "") -> Tensor:
    """Attention with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): no score leaves the chip. `cut`: "ROWSxKEYS".

    The last dimensions are whole in memory. The result is (B, H, T, D) of (B, T, H, D) in memory: joining heads copies nothing.
    """
    (B, H, T, D), S = q.shape, k.shape[2]
    how = way(q, k, v)
    blocks = _blocks(BLOCKS[how][padded(D)], B * H * T, cut)
    settings = constants(D, blocks, copied=how == "copied", causal=causal, tail=causal or S % blocks.keys > 0)
    out = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device)
    given = (q, k, v) if how != "copied" else _described(q, k, v, settings)
    scale = D**-0.5 * math.log2(math.e)
    grid = (-(-T // blocks.rows) * (settings["WIDTH"] // settings["PART"]) * B * H,)
    strides = (stride for each in (q, k, v) for stride in _strides(each))
    with torch.cuda.device_of(q):
        _kernel()[grid](*given, out, scale, T, S, H, *strides, **settings, **options(blocks))
    return out.transpose(1, 2)


def _blocks(blocks: tuple[Blocks, ...], rows: int, cut: str) -> Blocks:
    """The one called `cut`, else the second where that makes many programs, else the first."""
    named = {f"{each.rows}x{each.keys}": each for each in blocks}
    if cut and cut not in named:
        raise InputError(f"unknown blocks {cut!r} of attention: choose from {', '.join(named)}")
    return named[cut] if cut else blocks[1] if len(blocks) > 1 and rows >= MANY * blocks[1].rows else blocks[0]


def _described(q: Tensor, k: Tensor, v: Tensor, settings: dict[str, Any]) -> tuple[Any, ...]:
    """What the unit that copies blocks reads."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    sides = ((q, "ROWS", "WIDTH"), (k, "KEYS", "WIDTH"), (v, "KEYS", "PART"))
    return tuple(
        TensorDescriptor(each, list(each.shape), [*_strides(each), 1], [1, 1, settings[rows], settings[width]])
        for each, rows, width in sides
    )


def constants(dim: int, blocks: Blocks, *, copied: bool, causal: bool, tail: bool) -> dict[str, Any]:
    """The kernel's constants."""
    sizes = {"D": dim, "WIDTH": padded(dim), "PART": min(padded(dim), PART), "ROWS": blocks.rows, "KEYS": blocks.keys}
    return sizes | {"COPIED": copied, "CAUSAL": causal, "TAIL": tail}


def options(blocks: Blocks) -> dict[str, int | bool]:
    """How it is compiled."""
    most = {} if blocks.registers is None else {"maxnreg": blocks.registers}
    return {"num_warps": blocks.warps, "num_stages": blocks.stages} | ops.FUSED | most
