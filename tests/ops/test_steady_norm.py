"""GroupNorm of channels-last maps on the CPU: the digits of float32, and the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm import ops
from ldm.measure import relative_error
from ldm.ops import norm
from ldm.ops.activation import silu
from ldm.ops.norm import GroupNorm


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def given(*shape: int, mean: float = 3.0) -> tuple[GroupNorm, Tensor]:
    layer = GroupNorm(8, shape[1], silu=True).requires_grad_(False)
    random = torch.Generator().manual_seed(sum(shape))
    layer.weight.normal_(generator=random)
    layer.bias.normal_(generator=random)
    return layer, (torch.randn(shape, generator=random) + mean).contiguous(memory_format=torch.channels_last)


SHAPES = [(2, 24, 33, 35), (1, 32, 200, 104), (3, 40, 32, 32), (1, 8, 1024, 1), (1, 64, 96, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    layer, x = given(*shape)
    torch.set_num_threads(1)
    alone, plain = layer(x), silu(x)
    for count in (2, 3, 4, 7, 16):
        torch.set_num_threads(count)
        assert torch.equal(layer(x), alone) and torch.equal(silu(x), plain)
    assert alone.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_its_error_is_at_most_twice_that_of_the_plain_path(shape: tuple[int, ...], mean: float) -> None:
    layer, x = given(*shape, mean=mean)
    exact = F.silu(F.group_norm(x.double(), 8, layer.weight.double(), layer.bias.double()))
    plain = F.silu(F.group_norm(x.contiguous(), 8, layer.weight, layer.bias))
    assert relative_error(layer(x), exact) < 2 * max(relative_error(plain, exact), 1e-7)


def test_what_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a small map, nor one that is not channels-last, nor a reference, nor one of which gradients are asked."""
    taken: list[torch.Size] = []
    steady = norm.group_norm_steady
    monkeypatch.setattr(norm, "group_norm_steady", lambda x, *more, **named: taken.append(x.shape) or steady(x, *more, **named))
    layer, x = given(2, 16, 32, 32)
    layer(x.contiguous())
    layer(x[:, :, :31, :])
    layer(x.clone().requires_grad_())
    with ops.reference():
        layer(x)
    assert not taken
    layer(x)
    assert taken == [x.shape]
