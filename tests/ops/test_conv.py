"""The 3x3 convolution is torch's, along every path, with bits that do not depend on the number of threads."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops import conv
from ldm.ops.conv import Conv3x3, winograd_pays

WINOGRAD = [(2, 128, 128, 16, 16), (1, 128, 192, 13, 31), (3, 256, 128, 8, 12), (2, 640, 128, 8, 8)]  # rows, before, after, height, width
DIRECT = [(2, 48, 96, 16, 16), (1, 4, 32, 9, 7), (1, 32, 3, 20, 20), (2, 128, 128, 4, 4), (2, 128, 128, 5, 21)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(before: int, after: int, seed: int = 0, **kind: int) -> Conv3x3:
    layer = Conv3x3(before, after, **kind).requires_grad_(False)
    torch.nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    return layer


def plain(layer: Conv3x3, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), layer.stride, layer.padding)


@pytest.mark.parametrize(("case", "fast"), [*((case, True) for case in WINOGRAD), *((case, False) for case in DIRECT)])
def test_every_path_is_the_convolution_with_the_same_bits_for_any_threads(case: tuple[int, ...], fast: bool) -> None:
    rows, before, after, height, width = case
    layer, x = make(before, after), torch.randn(rows, before, height, width)
    assert winograd_pays(x.shape, layer.weight.shape) is fast
    torch.set_num_threads(1)
    alone = layer(x)
    assert relative_error(alone, plain(layer, x)) < (1.5e-6 if fast else 1.2e-6)
    assert alone.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), alone)
    for count in (2, 3, 4, 7):
        torch.set_num_threads(count)
        assert torch.equal(layer(x), alone)


@pytest.mark.parametrize("kind", [{"stride": 2}, {"stride": 2, "padding": 0}])
@pytest.mark.parametrize("side", [16, 9])
def test_the_way_down(kind: dict[str, int], side: int) -> None:
    layer, x = make(128, 128, **kind), torch.randn(2, 128, side, side)
    torch.set_num_threads(1)
    alone = layer(x)
    assert relative_error(alone, plain(layer, x)) < 1.5e-6
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        assert torch.equal(layer(x), alone)


def test_winograd_in_exact_numbers() -> None:
    """Whole numbers, and the irrational points' rounding is all that is left; each tap and each edge by itself."""
    layer, x = make(128, 128), torch.zeros(1, 128, 8, 8)
    x[0, 5, 0, 0] = x[0, 7, 7, 7] = x[0, 9, 3, 4] = 1.0
    torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(layer(x).double(), plain(layer, x), rtol=0, atol=2e-7)


def test_the_choice_is_by_shape() -> None:
    pays = {(2, 320, 320, 32): True, (2, 640, 640, 16): True, (1, 512, 512, 128): True, (1, 128, 128, 256): True}
    for (rows, before, after, side), wanted in (pays | {(2, 1280, 1280, 16): False, (2, 640, 640, 4): False}).items():
        assert winograd_pays(torch.Size([rows, before, side, side]), torch.Size([after, before, 3, 3])) is wanted


@pytest.mark.parametrize(("before", "side"), [(128, 16), (32, 16)])
def test_what_is_kept_follows_the_weight(before: int, side: int) -> None:
    layer, x = make(before, 128), torch.randn(2, before, side, side)
    first = layer(x)
    layer.weight.mul_(2)  # as a LoRA does
    assert relative_error(layer(x), plain(layer, x)) < 2.5e-6 and not torch.equal(layer(x), first)
    layer.weight.data = torch.randn(128, before, 3, 3)
    assert relative_error(layer(x), plain(layer, x)) < 2.5e-6
    layer.weight = torch.nn.Parameter(torch.randn(128, before, 3, 3), requires_grad=False)
    assert relative_error(layer(x), plain(layer, x)) < 2.5e-6
    other = copy.deepcopy(layer)
    other.weight.neg_()
    assert relative_error(other(x), plain(other, x)) < 2.5e-6 and relative_error(layer(x), plain(layer, x)) < 2.5e-6


@pytest.mark.parametrize(("before", "side"), [(128, 16), (32, 16)])
def test_what_is_kept_can_be_made_at_every_call(before: int, side: int) -> None:
    """The bits are the same, and no byte stays; nor of what was made of a weight as it had been."""
    layer, x = make(before, 128), torch.randn(2, before, side, side)
    wanted, weights = layer(x), [*layer.parameters()]
    assert conv.held(weights) == conv.kept_bytes(x.shape, layer.weight.shape)
    with conv.anew():
        assert torch.equal(layer(x), wanted) and conv.held(weights) > 0  # what is there is used
    conv.let_go(weights)
    with conv.anew():
        assert torch.equal(layer(x), wanted) and conv.held(weights) == 0
    layer(x)
    layer.weight.mul_(2)
    with conv.anew():
        assert not torch.equal(layer(x), wanted) and conv.held(weights) == 0


@pytest.mark.parametrize("case", [*WINOGRAD, *DIRECT, (2, 320, 320, 32, 32), (2, 1280, 1280, 8, 8), (2, 960, 320, 8, 16)])
def test_nor_on_the_threads_and_the_size_that_a_weight_was_laid_out_for(case: tuple[int, ...]) -> None:
    rows, before, after, height, width = case
    layer, x = make(before, after), torch.randn(rows, before, height, width)
    torch.set_num_threads(1)
    alone = layer(x)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        conv.let_go(layer.parameters())
        assert torch.equal(layer(x), alone)
    conv.let_go(layer.parameters())
    layer(torch.zeros(1, before, 4 * height, 4 * width))
    assert torch.equal(layer(x), alone)


def test_the_module_stays_torchs() -> None:
    layer, x = make(128, 128), torch.randn(1, 128, 16, 16)
    layer(x)
    assert [*layer.state_dict()] == ["weight", "bias"] and isinstance(layer, torch.nn.Conv2d)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    assert file.tell() < 2 * layer.weight.nbytes
    kept = len(conv._transformed)
    del layer
    gc.collect()
    assert len(conv._transformed) == kept - 1
    half, meta = make(128, 128).bfloat16(), make(128, 128).to("meta")
    assert half(x.bfloat16()).dtype == torch.bfloat16 and meta(x.to("meta")).shape == x.shape


def test_gradients_references_and_inference_mode_take_torchs_path() -> None:
    layer, x = make(128, 128), torch.randn(1, 128, 16, 16)
    with ops.reference():
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    learner, source = copy.deepcopy(layer).requires_grad_(True), x.clone().requires_grad_(True)
    learner(source).sum().backward()
    assert learner.weight.grad is not None and source.grad is not None
    with torch.inference_mode():
        copied = copy.deepcopy(layer)
        assert relative_error(copied(x), plain(layer, x)) < 2.5e-6 and relative_error(layer(x), plain(layer, x)) < 2.5e-6


def test_the_bytes_are_those_of_the_tensors() -> None:
    for before, after, side in ((128, 128, 32), (640, 128, 16), (32, 48, 16)):
        layer, x = make(before, after), torch.randn(2, before, side, side)
        layer(x)
        made: Any = conv._transformed if winograd_pays(x.shape, layer.weight.shape) else conv._laid_out
        held = made._made[layer.weight][1]
        tensors = held if isinstance(held, list) else [held]
        assert conv.kept_bytes(x.shape, layer.weight.shape) == sum(each.element_size() * each.numel() for each in tensors)
