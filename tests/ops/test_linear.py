"""The linear layer is torch's, with bits that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops.linear import Linear, linear


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [*((rows,) for rows in range(28)), (2, 5), (1, 77), (2, 77), (3, 1, 2), (2, 64)])
@pytest.mark.parametrize(("before", "width"), [(192, 192), (80, 96), (320, 1280)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], before: int, width: int) -> None:
    layer, x = Linear(before, width).requires_grad_(False), torch.randn(*shape, before)
    torch.set_num_threads(1)
    alone = layer(x)
    assert alone.shape == (*shape, width)
    if alone.numel():
        assert relative_error(alone, F.linear(x.double(), layer.weight.double(), layer.bias.double())) < 1e-6
    for count in (2, 3, 4, 5, 7, 12, 16):
        torch.set_num_threads(count)
        assert torch.equal(layer(x), alone)


def test_it_is_torchs_layer() -> None:
    layer, x = Linear(8, 3, bias=False), torch.randn(2, 3, 8, requires_grad=True)
    assert isinstance(layer, torch.nn.Linear) and [*layer.state_dict()] == ["weight"]
    with ops.reference():
        assert torch.equal(layer(x), F.linear(x, layer.weight))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 3, 8))
    assert layer.to("meta")(torch.empty(5, 8, device="meta")).shape == (5, 3)


def test_a_strided_weight() -> None:
    x, projection = torch.randn(5, 8), torch.randn(8, 6)
    torch.testing.assert_close(linear(x, projection.T), x @ projection)
