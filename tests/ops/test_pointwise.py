"""The 1x1 convolution is torch's, with bits that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ldm import ops
from ldm.measure import relative_error
from ldm.ops.pointwise import Pointwise


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "before", "width", "side"), [(2, 96, 48, 8), (1, 32, 16, 64), (2, 640, 320, 32), (17, 8, 4, 5)])
def test_any_number_of_threads_gives_the_same_bits(rows: int, before: int, width: int, side: int) -> None:
    layer, x = Pointwise(before, width).requires_grad_(False), torch.randn(rows, before, side, side)
    torch.set_num_threads(1)
    alone = layer(x)
    assert relative_error(alone, torch.einsum("dc,bchw->bdhw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]) < 1e-6
    with ops.reference():
        assert relative_error(layer(x), alone) < 1e-6
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        assert torch.equal(layer(x), alone)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(5, 2), (1, 1), (3, 5), (13, 11)])
def test_nor_of_a_single_small_map(size: tuple[int, int], layout: torch.memory_format) -> None:
    for before, width in ((32, 64), (4, 320), (128, 32)):
        layer, x = Pointwise(before, width).requires_grad_(False), torch.randn(1, before, *size).contiguous(memory_format=layout)
        torch.set_num_threads(1)
        alone = layer(x)
        with ops.reference():
            assert alone.shape == layer(x).shape and relative_error(layer(x), alone) < 1e-6
        for count in (2, 3, 4):
            torch.set_num_threads(count)
            assert torch.equal(layer(x), alone)


def test_it_is_a_convolution_of_torch() -> None:
    layer = Pointwise(3, 5)
    assert isinstance(layer, torch.nn.Conv2d) and [*layer.state_dict()] == ["weight", "bias"] and layer.weight.shape == (5, 3, 1, 1)
    layer(torch.randn(1, 3, 2, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.to("meta")(torch.empty(1, 3, 2, 2, device="meta")).shape == (1, 5, 2, 2)
    assert layer.to_empty(device="cpu").bfloat16()(torch.ones(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16
