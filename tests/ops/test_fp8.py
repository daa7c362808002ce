"""Quantising by rows and the product of rows: the kernels against the references, and what e4m3 costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product as product_of

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops import choice, fp8, product, rows
from ldm.ops.fp8 import LARGEST, LinearFP8
from ldm.ops.geglu import geglu_reference
from ldm.ops.norm import AddNorm
from tests.ops.kernels import FP8_TARGETS, interpreted, launched

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_row_fills_the_range_and_comes_back() -> None:
    x = normal(3, 7, 320) * torch.logspace(-6, 6, 7)[:, None]
    got = fp8.quantise_rows(x)
    assert got.values.dtype == torch.float8_e4m3fn and got.values.shape == x.shape and got.scale.shape == (3, 7, 1)
    assert (got.values.float().abs().amax(-1) == LARGEST).all()
    assert (got.dequantise() - x).abs().max() <= (got.scale * 16).max()
    assert ((got.dequantise() - x).abs() <= torch.maximum(x.abs() / 16, got.scale * 2**-10)).all()  # half a step of three bits


def test_zeros_stay_zeros_and_what_is_not_a_number_is_not_hidden() -> None:
    assert (fp8.quantise_rows(torch.zeros(2, 32)).dequantise() == 0).all()
    for bad in (float("nan"), float("inf")):
        x = torch.ones(2, 32)
        x[1, 3] = bad
        assert [row.isnan().any().item() for row in fp8.quantise_rows(x).dequantise()] == [False, True]


def test_the_kernel_quantises_to_the_same_bits() -> None:
    with interpreted(rows._kernel):
        for (*shape, width), dtype in product_of([(2, 9, 320), (3, 1280), (5, 16)], DTYPES):
            x = normal(*shape, 2 * width).to(dtype)[..., :width]  # rows with a gap
            x[0] = 0
            expected, got = fp8.quantise_reference(x), fp8.quantise_triton(x)
            assert torch.equal(got.scale, expected.scale) and torch.equal(got.values, expected.values)


@pytest.mark.parametrize("added", [False, True])
def test_the_norm_before_it(added: bool) -> None:
    with interpreted(rows._kernel):
        for width, dtype in product_of([320, 640, 1024], DTYPES):
            h, weight, bias = ((normal(*each, seed=i) + i).to(dtype) for i, each in enumerate([(2, 5, width), (width,), (width,)]))
            delta = normal(5, 2, width, seed=5).to(dtype).transpose(0, 1) if added else None
            total, expected = fp8.norm_quantise(h, delta, weight, bias)
            ours, got = fp8.norm_quantise_triton(h, delta, weight, bias)
            assert torch.equal(ours, total)
            judge = F.layer_norm(total.double(), (width,), weight.double(), bias.double())
            assert relative_error(got.dequantise(), judge) <= 1.02 * relative_error(expected.dequantise(), judge)
            assert relative_error(got.scale, expected.scale) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_the_gate_before_it() -> None:
    with interpreted(rows._kernel):
        for width, dtype in product_of([80, 640], DTYPES):
            projected = (normal(2, 4, 2 * width) * 2).to(dtype)
            x, gate = projected.double().chunk(2, -1)
            judge, plain, got = x * F.gelu(gate), fp8.gate_quantise(projected), fp8.gate_quantise_triton(projected)
            assert got.shape == (2, 4, width)
            assert relative_error(got.dequantise(), judge) <= 1.02 * relative_error(plain.dequantise(), judge)


@pytest.mark.parametrize(("shape", "width", "depth"), [((2, 19), 48, 80), ((1,), 16, 16), ((70,), 96, 64)])
def test_the_product_of_rows(shape: tuple[int, ...], width: int, depth: int) -> None:
    with interpreted(product._kernel):
        for gated, dtype in product_of([False, True], DTYPES):
            got, weight = fp8.quantise_rows(normal(*shape, depth)), fp8.quantise_rows(normal(2 * width if gated else width, depth, seed=1))
            bias = normal(len(weight), seed=2).bfloat16()
            judge = F.linear(got.dequantise().double(), weight.dequantise().double(), bias.double())
            plain = fp8.linear_fp8_reference(got, weight, bias, dtype)
            if gated:
                (x, gate), (a, b) = judge.chunk(2, -1), plain.chunk(2, -1)
                judge, plain = x * F.gelu(gate), a * F.gelu(b)
            out = fp8.linear_fp8_triton(got, weight, bias, dtype, gated=gated, blocks=product.Blocks(32, 32, 32, 4, 2))
            assert out.dtype == dtype and out.shape == (*shape, width)
            assert relative_error(out, judge) <= max(2 * relative_error(plain, judge), 1e-6)


def test_layers_hand_on_rows() -> None:
    """A feed-forward and the norm before it, in e4m3 throughout."""
    norm, first, second = (each.requires_grad_(False).bfloat16() for each in (AddNorm(64), nn.Linear(64, 512), nn.Linear(256, 64)))
    h, delta = normal(2, 7, 64).bfloat16(), normal(2, 7, 64, seed=1).bfloat16()
    both = fp8.AddNormFP8.of(norm)
    total, got = both(h, delta)
    assert both.weight is norm.weight and [*both.state_dict()] == [*norm.state_dict()]
    inner = fp8.GEGLUFP8(LinearFP8.of(first))(got)
    assert torch.equal(total, h + delta) and isinstance(inner, fp8.Rows) and inner.shape == (2, 7, 256)
    out = LinearFP8.of(second)(inner)
    expected = second(geglu_reference(norm(h, delta)[1], first.weight, first.bias))
    assert out.dtype == torch.bfloat16 and 0.01 < relative_error(out, expected) < 0.08
    assert torch.equal(inner[1:].dequantise(), inner.dequantise()[1:]) and len(inner) == 2


def test_our_product_is_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, bool]] = []
    x, weight = fp8.quantise_rows(normal(3, 64)), fp8.quantise_rows(normal(64, 64, seed=1))

    def instead(name: str) -> Callable[..., Tensor]:
        return lambda x, weight, bias, dtype, gated=False: taken.append((name, gated)) or torch.ones(3, 64)

    monkeypatch.setattr(ops, "fast", lambda *tensors: tensors[0].dtype == torch.float8_e4m3fn)
    for name in ("linear_fp8_vendor", "linear_fp8_triton"):
        monkeypatch.setattr(fp8, name, instead(name))
    for named in ("vendor", "triton"):
        with choice.using(fp8=named, fp8_geglu=named):
            fp8.linear_fp8(x, weight, None, torch.bfloat16)
            fp8.geglu_fp8(x, weight, None, torch.bfloat16)
    ours, theirs = "linear_fp8_triton", "linear_fp8_vendor"
    assert taken == [(theirs, False), (theirs, False), (ours, False), (ours, True)]


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer(bias: bool) -> None:
    layer, x = nn.Linear(320, 640, bias=bias).bfloat16(), normal(2, 77, 320).bfloat16()
    quantised = LinearFP8.of(layer)
    out = quantised(x)
    assert out.dtype == torch.bfloat16 and not out.requires_grad
    assert 0.01 < relative_error(out, layer(x)) < 0.05
    assert torch.equal(quantised(fp8.quantise_rows(x)), out)
    assert sum(each.nbytes for each in quantised.state_dict().values()) < 0.52 * sum(each.nbytes for each in layer.state_dict().values())
    with ops.reference():
        assert relative_error(quantised(x), out) < 1e-3  # sums in another order, then rounded to bfloat16
    assert LinearFP8.fits(layer) and not LinearFP8.fits(nn.Linear(320, 4)) and not fp8.supported(x.device)


def test_the_vendors_product_is_called_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales by row are for GPUs alone: here only what it is given is looked at."""
    given = {}

    def scaled(a: Tensor, b: Tensor, **named: Tensor) -> Tensor:
        given.update(named, a=a, b=b)
        out = (a.float() * named["scale_a"]) @ (b.float() * named["scale_b"]) + named["bias"]
        return out.to(named["out_dtype"])

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    got, weight, bias = fp8.quantise_rows(normal(2, 3, 32)), fp8.quantise_rows(normal(48, 32, seed=1)), normal(48, seed=2).half()
    out = fp8.linear_fp8_vendor(got, weight, bias, torch.float16)
    assert (out.shape, out.dtype) == ((2, 3, 48), torch.float16)
    assert relative_error(out, fp8.linear_fp8_reference(got, weight, bias, torch.float32)) < 1e-2
    assert given["a"].is_contiguous() and given["b"].stride() == (1, 32)  # the second by columns
    assert (given["scale_a"].shape, given["scale_b"].shape) == ((6, 1), (1, 48))
    assert given["scale_a"].is_contiguous() and given["scale_b"].is_contiguous()
    meta = [each.to("meta") for each in (given["a"], weight.values, given["scale_a"], weight.scale)]
    monkeypatch.undo()
    assert torch._scaled_mm(meta[0], meta[1].t(), scale_a=meta[2], scale_b=meta[3].t(), out_dtype=torch.bfloat16).shape == (6, 48)


@pytest.mark.parametrize("target", FP8_TARGETS)
def test_the_kernels_compile(target: int) -> None:
    h, weight = torch.ones(3, 1280, dtype=torch.bfloat16), torch.ones(1280, dtype=torch.bfloat16)
    x, wide = (fp8.Rows(torch.ones(count, 1280).to(torch.float8_e4m3fn), torch.ones(count, 1)) for count in (64, 2560))
    with launched(target) as usages:
        fp8.norm_quantise_triton(h, h, weight, weight)
        fp8.gate_quantise_triton(torch.ones(3, 10_240, dtype=torch.bfloat16))
        assert all(usage.spilled <= 16 and usage.registers <= 128 for usage in usages)
        for gated in (False, True):
            cut = product.blocks_for(target // 10, 1, gated=gated)
            fp8.linear_fp8_triton(x, wide, torch.ones(2560, dtype=torch.bfloat16), torch.bfloat16, gated=gated, blocks=cut)
    assert len(usages) == 4
    assert all(usage.spilled <= 64 and usage.shared <= (232_448 if target >= 90 else 101_376) for usage in usages)
