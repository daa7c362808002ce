"""The fused attention equals its reference, and the reference is softmax(q k^T / sqrt(D)) v."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ldm import ops
from ldm.measure import relative_error
from ldm.ops.attention import attention, attention_reference
from ldm.runtime.tracking import Tracker


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "keys", "dim"), [(77, 77, 64), (64, 64, 40), (16, 16, 512), (1, 1, 8)])
def test_fused_equals_reference(tokens: int, keys: int, dim: int, causal: bool) -> None:
    q, k, v = (
        torch.randn(2, 3, count, dim, generator=torch.Generator().manual_seed(count + i)) for i, count in enumerate((tokens, keys, keys))
    )
    assert relative_error(attention(q, k, v, causal=causal), attention_reference(q, k, v, causal=causal)) < 1e-6


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "dim", "keys"), [(1, 8, 8, 77), (2, 10, 64, 77), (1, 1, 512, None), (1, 1, 512, 33), (1, 1, 64, 154), (2, 8, 40, 231)]
)
def test_few_queries_have_the_same_bits_for_any_threads(rows: int, heads: int, dim: int, keys: int | None, causal: bool) -> None:
    """As the smallest maps of small pictures have: of a whole block and more the other tests tell."""
    for tokens in (1, 2, 3, 4, 6, 15, 20, 31, 32, 33, 35, 63, 64, 65):
        q, k, v = (torch.randn(rows, heads, count, dim) for count in (tokens, keys or tokens, keys or tokens))
        torch.set_num_threads(1)
        alone = attention(q, k, v, causal=causal)
        assert relative_error(alone, attention_reference(q.double(), k.double(), v.double(), causal=causal)) < 1e-6
        for count in (2, 3, 4, 8):
            torch.set_num_threads(count)
            assert torch.equal(attention(q, k, v, causal=causal), alone), tokens


def test_cross_attention_over_fewer_keys() -> None:
    q, k = torch.randn(1, 2, 64, 16), torch.randn(1, 2, 77, 16)
    assert relative_error(attention(q, k, k), attention_reference(q, k, k)) < 1e-6
    with ops.reference():
        assert torch.equal(attention(q, k, k), attention_reference(q, k, k))


def test_the_reference_by_hand() -> None:
    q, k, v = (torch.tensor(values).reshape(1, 1, 2, 1) for values in ([1.0, 2.0], [0.5, -0.5], [3.0, 7.0]))
    weights = torch.tensor([[0.5, -0.5], [1.0, -1.0]]).softmax(-1)
    assert torch.allclose(attention_reference(q, k, v)[0, 0, :, 0], weights @ torch.tensor([3.0, 7.0]))
    assert torch.allclose(
        attention_reference(q, k, v, causal=True)[0, 0, :, 0], torch.stack([torch.tensor(3.0), (weights @ v[0, 0])[1, 0]])
    )


@pytest.mark.parametrize("causal", [False, True])
def test_no_score_is_held_whatever_the_strides(causal: bool) -> None:
    """As the VAE's attention comes: positions last in memory. Torch alone would form T x S scores there."""
    q, k, v = (torch.randn(1, 16, 2048, generator=torch.Generator().manual_seed(i)).transpose(1, 2)[None] for i in range(3))
    with Tracker() as tracker:
        out = attention(q, k, v, causal=causal)
    assert tracker.peak < 2048 * 2048 * 4 / 4
    assert relative_error(out, attention_reference(q, k, v, causal=causal)) < 1e-5
    shape = attention(q.to("meta"), k.to("meta"), v.to("meta"), causal=causal)
    assert (shape.shape, shape.device.type) == (out.shape, "meta")
