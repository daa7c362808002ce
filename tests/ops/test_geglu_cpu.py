"""GEGLU on the CPU: the products' own ends, with the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops.geglu import gated, geglu, geglu_onednn, geglu_reference
from ldm.ops.linear import Linear


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 48), (2, 7, 40), (1, 77, 192), (2, 64, 320)], ids=str)
def test_exact_and_the_same_bits_for_any_threads(shape: tuple[int, ...], biased: bool) -> None:
    random = torch.Generator().manual_seed(3)
    h, weight = torch.randn(shape, generator=random), torch.randn(8 * shape[-1], shape[-1], generator=random) * shape[-1] ** -0.5
    bias = torch.randn(len(weight), generator=random) if biased else None
    x, gate = F.linear(h.double(), weight.double(), None if bias is None else bias.double()).chunk(2, dim=-1)
    torch.set_num_threads(1)
    alone = geglu(h, weight, bias)
    assert torch.equal(alone, geglu_onednn(h, weight, bias))
    assert relative_error(alone, x * F.gelu(gate)) < 1e-6
    for count in (2, 3, 4, 7, 16):
        torch.set_num_threads(count)
        assert torch.equal(geglu(h, weight, bias), alone)
    with ops.reference():
        assert torch.equal(geglu(h, weight, bias), geglu_reference(h, weight, bias))


def test_a_layer_that_is_more_than_linear_is_called() -> None:
    class Wider(torch.nn.Module):
        def __init__(self, layer: Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return self.layer(h) * 2

    layer, h = Linear(8, 32).requires_grad_(False), torch.randn(3, 8)
    x, gate = (layer(h) * 2).chunk(2, dim=-1)
    assert relative_error(gated(h, Wider(layer)), x * F.gelu(gate)) < 1e-6
    assert relative_error(gated(h, layer), geglu_reference(h, layer.weight, layer.bias)) < 1e-6
    heard: list[int] = []
    layer.register_forward_hook(lambda *_: heard.append(1))
    gated(h, layer)
    assert heard == [1]
