"""The 8-bit linear layer is its specification to the bit, whatever the number of threads, and near the layer it is made of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ldm.measure import relative_error
from ldm.ops.int8 import LinearInt8, linear_int8, linear_reference, quantise_rows
from ldm.ops.linear import Linear


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 77), (2, 64), (5, 1, 7), (333,)])
@pytest.mark.parametrize(("before", "width"), [(192, 192), (80, 97), (17, 33), (320, 2560)])
def test_the_specification_with_the_same_bits_for_any_threads(shape: tuple[int, ...], before: int, width: int) -> None:
    random = torch.Generator().manual_seed(before)
    layer, x = Linear(before, width).requires_grad_(False), torch.randn(*shape, before, generator=random)
    x *= torch.rand(*shape, 1, generator=random) * 100  # rows of very different size
    torch.set_num_threads(1)
    reduced = LinearInt8.of(layer)
    alone = reduced(x)
    assert torch.equal(alone, linear_reference(x, reduced.weight_q, reduced.weight_scale, reduced.bias))
    assert relative_error(alone, layer(x)) < 0.02
    for count in (2, 3, 4, 7):
        torch.set_num_threads(count)
        assert torch.equal(reduced(x), alone)
        assert torch.equal(LinearInt8.of(layer).weight_q, reduced.weight_q)


def test_rows_fill_the_range() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 1e-3, -1e-3]])
    values, scale = quantise_rows(x)
    assert values.dtype == torch.int8 and values.tolist() == [[64, -127, 32], [0, 0, 0], [127, 127, -127]]
    assert relative_error(values * scale, x) < 0.005


def test_a_row_does_not_depend_on_its_batch() -> None:
    reduced, x = LinearInt8.of(Linear(64, 48).requires_grad_(False)), torch.randn(9, 64)
    assert torch.equal(torch.cat([reduced(row) for row in x.split(1)]), reduced(x))


def test_the_largest_sums_fit() -> None:
    """Longer than any of SDXL's, all at the ends of the range."""
    x, weight = torch.full((2, 5120), -1.0), torch.full((3, 5120), 127, dtype=torch.int8)
    assert torch.equal(linear_int8(x, weight, torch.ones(3)), torch.full((2, 3), -127.0 * 127 * 5120) * (1 / torch.tensor(127.0)))


def test_the_module() -> None:
    layer = Linear(32, 16, bias=False)
    reduced = LinearInt8.of(layer)
    assert reduced.bias is None and reduced.weight_q.nbytes * 4 == layer.weight.nbytes and not list(reduced.parameters())
    assert reduced(torch.randn(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert reduced.to("meta")(torch.empty(2, 5, 32, device="meta")).shape == (2, 5, 16)
