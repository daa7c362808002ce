"""The activations are torch's own, with bits that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm import ops
from ldm.ops.activation import GRAIN, SiLU, gelu, sigmoid, silu
from ldm.ops.embedding import sinusoid

Function = Callable[[Tensor], Tensor]
PAIRS = [(silu, F.silu), (gelu, F.gelu), (sigmoid, torch.sigmoid)]
COUNTS = [0, 1, 63, 5_000, GRAIN, GRAIN + 1, 37_633, 3 * GRAIN - 1, 3 * GRAIN + 10, 100_001, 262_081, 300_000]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_any_number_of_threads_gives_the_same_bits(ours: Function, torchs: Function, count: int) -> None:
    x = torch.randn(count) * 4
    torch.set_num_threads(1)
    alone = ours(x)
    assert torch.equal(alone, torchs(x))
    for number in (2, 3, 4, 5, 7, 12):
        torch.set_num_threads(number)
        assert torch.equal(ours(x), alone)


@pytest.mark.parametrize("inner", [384, 100])
def test_half_of_a_projection(inner: int) -> None:
    """The gate of GEGLU is not whole in memory."""
    gate = torch.randn(2, 77, 2 * inner).chunk(2, -1)[1]
    for function in (gelu, silu):
        torch.set_num_threads(1)
        alone = function(gate)
        for number in (2, 3, 7):
            torch.set_num_threads(number)
            assert torch.equal(function(gate), alone)


def test_the_embedding_of_many_steps() -> None:
    torch.set_num_threads(1)
    alone = sinusoid(torch.arange(1000.0), 320)
    for number in (3, 6, 7):
        torch.set_num_threads(number)
        assert torch.equal(sinusoid(torch.arange(1000.0), 320), alone)


def test_gradients_and_other_dtypes_are_torchs() -> None:
    torch.set_num_threads(3)
    x = torch.randn(100_001, requires_grad=True)
    SiLU()(x).sum().backward()
    grad, x.grad = x.grad, None
    F.silu(x).sum().backward()
    assert grad is not None and torch.equal(grad, x.grad)
    half = torch.randn(100_001, dtype=torch.bfloat16)
    assert silu(half).dtype == torch.bfloat16 and silu(torch.empty(3, device="meta")).device.type == "meta"
    with ops.reference():
        assert torch.equal(silu(half), F.silu(half))
