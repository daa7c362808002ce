"""GEGLU: on the CPU torch's own bits; the kernels at most twice as far from float32 as torch in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops import choice, product, rows
from ldm.ops import geglu as module
from ldm.ops.activation import gelu
from ldm.ops.geglu import geglu, geglu_pointwise, geglu_reference, geglu_triton
from ldm.ops.linear import linear
from ldm.ops.product import Blocks
from tests.ops.kernels import TARGETS, interpreted, launched


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def given(shape: tuple[int, ...], depth: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    sizes = ((*shape, depth), (2 * width, depth), (2 * width,))
    h, weight, bias = (normal(*each, seed=i).to(dtype) for i, each in enumerate(sizes))
    return h, weight / 8, bias


@pytest.mark.parametrize(("shape", "depth", "width"), [((2, 35), 80, 40), ((3,), 32, 16), ((1, 64), 64, 128)])
def test_both_kernels(shape: tuple[int, ...], depth: int, width: int) -> None:
    with interpreted(product._kernel, rows._kernel):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            h, weight, bias = given(shape, depth, width, dtype)
            x, gate = F.linear(h.double(), weight.double(), bias.double()).chunk(2, -1)
            judge, plain = x * F.gelu(gate), geglu_reference(h, weight, bias)
            limit = max(2 * relative_error(plain, judge), 1e-6)
            for out in (geglu_triton(h, weight, bias, blocks=Blocks(32, 32, 32, 4, 2)), geglu_pointwise(h, weight, bias)):
                assert out.dtype == dtype and out.shape == (*shape, width)
                assert relative_error(out, judge) <= limit


def test_the_order_of_blocks_covers_every_block_once() -> None:
    """More rows of blocks than run together, and a last band that is not full."""
    h, weight, bias = given((145,), 16, 48, torch.float32)
    with interpreted(product._kernel):
        out = geglu_triton(h, weight, bias, blocks=Blocks(16, 16, 16, 4, 2))
        alone = product.product(h, weight, None, torch.float32, blocks=Blocks(16, 32, 16, 4, 2))
    assert relative_error(out, geglu_reference(h, weight, bias)) < 1e-6
    assert relative_error(alone, F.linear(h, weight)) < 1e-6


def test_the_gate_far_out() -> None:
    """The kernel's error function is a formula of its own."""
    gate = torch.linspace(-12, 12, 385)
    h, weight = torch.stack([torch.ones_like(gate), gate], 1), torch.zeros(2, 2)
    h, weight = F.pad(h, (0, 2)), F.pad(torch.eye(2), (0, 2))
    with interpreted(product._kernel):
        out = geglu_triton(h, weight, None, blocks=Blocks(32, 16, 16, 4, 2))[:, 0]
    assert (out - F.gelu(gate.double())).abs().max() < 4e-7


def test_on_the_cpu_the_bits_are_torchs() -> None:
    h, weight, bias = given((2, 77), 96, 200, torch.float32)
    x, gate = linear(h, weight, bias).chunk(2, -1)
    assert torch.equal(geglu(h, weight, bias), x * gelu(gate))
    with ops.reference():
        assert torch.equal(geglu(h, weight, bias), geglu_reference(h, weight, bias))
    h.requires_grad_()
    geglu(h, weight, bias).sum().backward()
    assert h.grad is not None and geglu(h.to("meta"), weight.to("meta"), None).shape == (2, 77, 200)


def test_the_way_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    h, weight, bias = given((64,), 64, 64, torch.bfloat16)
    taken: list[str] = []
    monkeypatch.setattr(ops, "fast", lambda *tensors: True)
    monkeypatch.setattr(module, "default", lambda device: "triton")
    for name in ("geglu_triton", "geglu_pointwise", "geglu_reference"):
        monkeypatch.setattr(module, name, lambda *given, name=name: taken.append(name))
    for name in ("triton", "pointwise", "plain"):
        with choice.using(geglu=name):
            geglu(h, weight, bias)
    geglu(h, weight, bias)
    geglu(h.float(), weight.float(), bias)
    geglu(h[:, :60], weight[:, :60], bias)  # rows begin at multiples of 16 bytes
    geglu(h[:, 4:], weight[:, 4:], bias)  # but here the first does not
    assert taken == [f"geglu_{name}" for name in ("triton", "pointwise", "reference", "triton", "pointwise", "triton", "pointwise")]


@pytest.mark.parametrize(("target", "dtype"), [*((target, torch.bfloat16) for target in TARGETS), (90, torch.float16)])
def test_the_kernels_compile(target: int, dtype: torch.dtype) -> None:
    h, weight, bias = given((64,), 640, 2560, dtype)
    with launched(target) as usages:
        geglu_triton(h, weight, bias, blocks=product.blocks_for(target // 10, 2, gated=True))
        rows.rows(torch.ones(3, 10_240, dtype=dtype), gated=True)
    assert len(usages) == 2
    assert all(usage.spilled <= 64 and usage.shared <= 232_448 for usage in usages)
