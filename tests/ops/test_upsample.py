"""The enlarging convolution: four phases equal the nine taps, by every path, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ldm import ops
from ldm.measure import relative_error
from ldm.ops import upsample
from ldm.ops.upsample import upsample_conv, upsample_phases, upsample_reference, upsample_triton
from tests.ops.kernels import TARGETS, compiled, interpreted

SHAPES = [(2, 24, 20, 3, 5), (3, 17, 9, 1, 3), (1, 8, 8, 1, 1)]  # rows, before, after, height, width
SMALL = {"PIXELS": 16, "COLUMNS": 16, "DEPTH": 16}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def given(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    rows, before, after, height, wide = shape
    random = torch.Generator().manual_seed(sum(shape))
    sides = ((rows, before, height, wide), (after, before, 3, 3), (after,))
    h, weight, bias = (torch.randn(*each, generator=random).to(dtype) for each in sides)
    return h, weight, bias


def twice(h: Tensor) -> tuple[int, int]:
    return 2 * h.shape[2], 2 * h.shape[3]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_phases_are_the_convolution_of_the_enlarged_map(shape: tuple[int, ...]) -> None:
    h, weight, bias = (each.double() for each in given(shape))
    sums = upsample.phases_reference(weight.float()).double()
    assert sums.shape == (2, 2, *weight.shape[:2], 2, 2)
    for each in (bias, None):
        plain = upsample_reference(h, weight, each, twice(h))
        assert relative_error(upsample_phases(h.float(), weight.float(), None if each is None else each.float()), plain) < 1e-6


@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 16, 8, 8), (2, 320, 320, 16, 16), (1, 96, 96, 33, 20), (2, 128, 128, 8, 8)])
def test_the_cpu_path_has_the_same_bits_for_any_threads(shape: tuple[int, ...]) -> None:
    h, weight, bias = given(shape)
    torch.set_num_threads(1)
    alone = upsample_conv(h, weight, bias, twice(h))
    assert relative_error(alone, upsample_reference(h.double(), weight.double(), bias.double(), twice(h))) < 2.5e-6
    assert alone.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(upsample_conv(h.contiguous(memory_format=torch.channels_last), weight, bias, twice(h)), alone)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        assert torch.equal(upsample_conv(h, weight, bias, twice(h)), alone)


def test_an_odd_size_gradients_and_references_take_the_plain_path() -> None:
    h, weight, bias = given((1, 8, 8, 4, 4))
    assert relative_error(upsample_conv(h, weight, bias, (7, 8)), upsample_reference(h, weight, bias, (7, 8))) < 1e-6
    with ops.reference():
        assert torch.equal(upsample_conv(h, weight, bias, (8, 8)), upsample_reference(h, weight, bias, (8, 8)))
    weight.requires_grad_(True)
    upsample_conv(h, weight, bias, (8, 8)).sum().backward()
    assert weight.grad is not None
    assert upsample_conv(h.to("meta"), weight.to("meta"), bias.to("meta"), (8, 8)).shape == (1, 8, 8, 8)


def test_a_changed_weight_is_seen() -> None:
    h, weight, bias = given((1, 8, 8, 4, 4))
    upsample_conv(h, weight, bias, (8, 8))
    weight.mul_(3)
    assert relative_error(upsample_conv(h, weight, bias, (8, 8)), upsample_reference(h, weight, bias, (8, 8))) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_at_most_twice_as_far_from_float32_as_plain(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    h, weight, bias = given(shape, dtype)
    judge = upsample_reference(h.float(), weight.float(), bias.float(), twice(h))
    for each, layout in ((bias, torch.channels_last), (None, torch.contiguous_format)):
        plain = upsample_reference(h, weight, each, twice(h))
        judge = upsample_reference(h.float(), weight.float(), None if each is None else each.float(), twice(h))
        with interpreted(upsample._kernel):
            out = upsample_triton(h.contiguous(memory_format=layout), weight, each, SMALL)
        limit = max(2 * relative_error(plain, judge), 1e-6)
        assert relative_error(out, judge) <= limit and out.dtype == dtype
        assert relative_error(upsample_phases(h, weight, each), judge) <= limit


@pytest.mark.parametrize("target", TARGETS)
def test_it_compiles_ahead_of_time_without_spills(target: int) -> None:
    pytest.importorskip("triton")
    types = dict.fromkeys(("h", "taps", "bias", "out"), "*bf16") | dict.fromkeys(("pixels", "height", "wide", "C", "D"), "i32")
    constants = {"BIASED": True, **upsample.BLOCKS}
    aligned = ("h", "taps", "bias", "out", "C", "D")
    usage = compiled(upsample._kernel(), types, constants, target, aligned, num_warps=upsample.WARPS, num_stages=upsample.STAGES)
    assert usage.spilled <= 64 and usage.shared <= (160 if target == 80 else 200) * 1024
