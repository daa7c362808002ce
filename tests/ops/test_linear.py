"""The linear layer is torch's, with bits that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops.linear import Linear, filled, linear, linears, side_by_side

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [*((rows,) for rows in range(28)), (2, 5), (1, 77), (2, 77), (3, 1, 2), (2, 64)])
@pytest.mark.parametrize(("before", "width"), [(192, 192), (80, 96), (320, 1280)])
@pytest.mark.parametrize("product", [linear, filled])
def test_any_number_of_threads_gives_the_same_bits(product: Product, shape: tuple[int, ...], before: int, width: int) -> None:
    layer, x = Linear(before, width).requires_grad_(False), torch.randn(*shape, before)
    torch.set_num_threads(1)
    alone = product(x, layer.weight, layer.bias)
    assert alone.shape == (*shape, width)
    if alone.numel():
        assert relative_error(alone, F.linear(x.double(), layer.weight.double(), layer.bias.double())) < 1e-6
    for count in (2, 3, 4, 5, 7, 12, 16):
        torch.set_num_threads(count)
        assert torch.equal(product(x, layer.weight, layer.bias), alone)


def test_what_takes_which_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a gradient is asked for torch's own, which copies no rows; oneDNN's knows none, and is for float32 alone."""
    taken: list[str] = []
    monkeypatch.setattr(ops.linear, "filled", lambda x, weight, bias: taken.append("MKL") or F.linear(x, weight, bias))
    monkeypatch.setattr(F, "linear", lambda x, weight, bias: taken.append("torch") or x @ weight.T)
    layer, x = Linear(8, 3, bias=False), torch.randn(5, 8)
    layer(x)
    with torch.no_grad():
        layer(x)
        layer.double()(x.double())
        with ops.reference():
            layer(x.double())
    assert taken == ["torch", "MKL", "torch", "torch"]


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


def neighbours(count: int = 3, width: int = 24, before: int = 16) -> list[Linear]:
    """Layers whose weights are views of one allocation, as the loader leaves them."""
    flat, layers = torch.randn(count * width * before + 64), []
    for n in range(count):
        layer = Linear(before, width, bias=False).requires_grad_(False)
        layer.weight.set_(flat[64 + n * width * before :][: width * before].view(width, before))
        layers.append(layer)
    return layers


def test_neighbours_in_memory_are_one_matrix_without_a_copy() -> None:
    layers, x = neighbours(), torch.randn(2, 5, 16)
    whole = side_by_side(layers)
    assert whole is not None and whole.data_ptr() == layers[0].weight.data_ptr()
    apart = linears(x, *layers)
    for one, other in zip(linear(x, whole).chunk(3, dim=-1), apart, strict=True):
        assert relative_error(one, other) < 1e-6


def test_what_is_no_neighbour_is_multiplied_apart() -> None:
    first, second, third = neighbours()
    assert side_by_side([second, first, third]) is None
    assert side_by_side([first, third]) is None
    assert side_by_side([first, Linear(16, 24, bias=False).requires_grad_(False)]) is None
    assert side_by_side([first, Linear(16, 24).requires_grad_(False)]) is None
    assert side_by_side([first, torch.nn.Identity()]) is None
    assert side_by_side([first, second.requires_grad_()]) is None, "the gradient of a view would miss it"
    with torch.no_grad():
        assert side_by_side([first, second]) is not None
        second.register_forward_hook(lambda *_: None)
        assert side_by_side([first, second]) is None, "who listens there would hear nothing"
    with torch.device("meta"):
        assert side_by_side([Linear(16, 24, bias=False) for _ in range(3)]) is None
