"""The norms: on the CPU torch's own bits; the kernels at most twice as far from float32 as torch in half precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops import norm, rows
from ldm.ops.activation import silu as plain_silu
from ldm.ops.norm import AddNorm, GroupNorm, add_norm, group_norm
from tests.ops.kernels import TARGETS, interpreted, launched

Layout = Callable[[Tensor], Tensor]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def limit(plain: Tensor, judge: Tensor) -> float:
    """Twice the error of plain torch, or a few units in the last place of float32."""
    return max(2 * relative_error(plain, judge), 1e-6)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    """With a gap after every line."""
    return F.pad(x, (0, 3))[..., :-3]


CASES = [  # channels and groups such that groups are 10, 30, 80, 2 and 4 wide, and begin where blocks do not
    ((2, 70, 7, 5), 7, last),
    ((1, 120, 8, 9), 4, Tensor.contiguous),
    ((1, 160, 7, 5), 2, last),
    ((1, 4, 1, 1), 2, last),
    ((3, 12, 1, 5), 3, sliced),
    ((1, 12, 6, 11), 3, sliced),
    ((1, 36, 10, 33), 9, last),
]


@pytest.mark.parametrize(("sides", "groups", "layout"), CASES)
def test_group_norm_by_many_blocks(sides: tuple[int, ...], groups: int, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "PIECES", 8)
    with interpreted(norm._kernels):
        for dtype in DTYPES:
            x, weight, bias = (normal(*each, seed=i).to(dtype) + 1 for i, each in enumerate([sides, sides[1:2], sides[1:2]]))
            x = layout(x)
            for silu in (False, True):
                out = norm.group_norm_triton(x, groups, weight, bias, 1e-5, silu=silu)
                judge = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
                judge, plain = F.silu(judge) if silu else judge, norm.group_norm_reference(x, groups, weight, bias, 1e-5, silu=silu)
                assert relative_error(out, judge) <= limit(plain, judge)
                assert out.dtype == dtype and out.shape == x.shape
            if layout is last:
                assert out.is_contiguous(memory_format=torch.channels_last)


def test_a_mean_far_from_zero_cancels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = last(normal(1, 64, 16, 16) + 1000)
    weight, bias = torch.ones(64), torch.zeros(64)
    monkeypatch.setattr(norm, "PIECES", 4)
    with interpreted(norm._kernels):
        out = norm.group_norm_triton(x, 8, weight, bias, 1e-6)
    judge = F.group_norm(x.double(), 8, eps=1e-6)
    assert relative_error(out, judge) < 1e-4  # a unit in the last place of 1000 is 6e-5


def test_pieces_cover_all_positions() -> None:
    for positions in (1, 31, 32, 33, 1024, 16_384, 1_048_576):
        for blocks in (1, 2, 10, 80, 5000):
            length, pieces = norm.cut(positions, blocks)
            assert length % norm.ROWS == 0 and (pieces - 1) * length < positions <= pieces * length
            assert pieces == 1 or pieces * blocks <= 1.1 * norm.PIECES


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("layout", [last, Tensor.contiguous])
def test_on_the_cpu_the_bits_are_torchs(layout: Layout, silu: bool) -> None:
    x, layer = layout(normal(2, 96, 17, 23)), GroupNorm(32, 96, 1e-6, silu=silu).requires_grad_(False)
    layer.weight.copy_(normal(96)), layer.bias.copy_(normal(96, seed=1))
    expected = F.group_norm(x, 32, layer.weight, layer.bias, 1e-6)
    expected = plain_silu(expected) if silu else expected
    assert torch.equal(layer(x), expected) and torch.equal(group_norm(x, 32, layer.weight, layer.bias, 1e-6, silu=silu), expected)
    assert isinstance(layer, nn.GroupNorm) and [*layer.state_dict()] == ["weight", "bias"]
    h, delta, normed = normal(2, 5, 96), normal(2, 5, 96, seed=1), AddNorm(96).requires_grad_(False)
    normed.weight.copy_(normal(96))
    assert all(map(torch.equal, normed(h, delta), (h + delta, nn.LayerNorm.forward(normed, h + delta))))
    total, out = normed(h)
    assert total is h and torch.equal(out, nn.LayerNorm.forward(normed, h)) and [*normed.state_dict()] == ["weight", "bias"]


def test_gradients_are_torchs() -> None:
    layer, x = GroupNorm(4, 8, silu=True), normal(1, 8, 3, 3).requires_grad_()
    layer(x).sum().backward()
    grad, x.grad = x.grad, None
    F.silu(nn.GroupNorm(4, 8)(x)).sum().backward()
    assert grad is not None and torch.allclose(grad, x.grad, atol=1e-6)
    assert layer.to("meta")(torch.empty(1, 8, 3, 3, device="meta")).shape == (1, 8, 3, 3)


@pytest.mark.parametrize("added", [False, True])
def test_residual_and_layer_norm(added: bool) -> None:
    with interpreted(rows._kernel):
        for width in (320, 640, 1280, 1024, 2048, 100):
            for dtype in DTYPES:
                h, weight, bias = ((normal(*each, seed=i) + 3).to(dtype) for i, each in enumerate([(2, 3, width), (width,), (width,)]))
                delta = normal(3, 2, width, seed=5).to(dtype).transpose(0, 1) if added else None
                total, out = norm.add_norm_triton(h, delta, weight, bias)
                expected, plain = add_norm(h, delta, weight, bias)
                judge = F.layer_norm(expected.double(), (width,), weight.double(), bias.double())
                assert torch.equal(total, expected) and out.dtype == dtype and relative_error(out, judge) <= limit(plain, judge)
                with ops.reference():
                    assert torch.equal(add_norm(h, delta, weight, bias)[1], plain)


@pytest.mark.parametrize("target", TARGETS)
def test_the_kernels_compile(target: int) -> None:
    """At sizes that blocks are chosen from as at those of a picture."""
    with launched(target) as usages:
        for sides, groups in [((2, 320, 128, 128), 32), ((1, 12, 1, 1), 12)] if target == 90 else [((2, 1280, 32, 32), 32)]:
            x, weight = torch.ones(sides, dtype=torch.bfloat16), torch.ones(sides[1], dtype=torch.bfloat16)
            norm.group_norm_triton(last(x), groups, weight, weight, silu=True)
        for width in (640, 1280) if target == 90 else (1280,):
            h, weight = torch.ones(3, width, dtype=torch.bfloat16), torch.ones(width, dtype=torch.bfloat16)
            norm.add_norm_triton(h, h, weight, weight)
    assert len(usages) == (8 if target == 90 else 4)
    assert all(usage.spilled == 0 and usage.registers <= 128 for usage in usages)
