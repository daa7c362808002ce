"""The UNet's laws: what is prepared equals what is computed, its numbers are the official ones, other families fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldm import ops
from ldm.measure import relative_error
from ldm.models.shapes import UNetShape, load_family
from ldm.models.unet import GEGLU, CrossAttention, ResBlock, SelfAttention, SpatialTransformer, UNet
from ldm.ops.embedding import sinusoid
from tests.models.tiny import drawn, tiny


@pytest.fixture(scope="module")
def network() -> UNet:
    return drawn(UNet(tiny("sdxl-base").unet))  # type: ignore[return-value]


def given(shape: UNetShape, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, 4, 8, 8, generator=generator),
        torch.randn(rows, 77, shape.context_dim, generator=generator),
        torch.randn(rows, shape.vector_dim, generator=generator),
    )


@torch.no_grad()
def test_prepared_steps_equal_single_evaluations(network: UNet) -> None:
    x, context, vector = given(network.shape, 3)
    prepared = network.prepare(context, vector, [999.0, 500.5, 0.0])
    for i, t in enumerate([999.0, 500.5, 0.0]):
        alone = network.denoise(x, torch.full((3,), t), context, vector)
        assert relative_error(network(x, prepared, i), alone) < 1e-6


@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(network: UNet) -> None:
    x, context, vector = given(network.shape, 2)
    prepared = network.prepare(context, vector, [317.0])
    batch = torch.cat([x[:1], x[1:], x[1:], x[:1]])  # rows 0 0 1 1
    together = network(batch, prepared.repeat(2), 0)
    assert torch.equal(together[[0, 2]], network(x, prepared, 0))


@pytest.mark.parametrize("worded", [(0, 1), (1, 0), (0, 1, 0, 1), (0, 0), (1, 1)])
@torch.no_grad()
def test_rows_without_a_text_cost_no_cross_attention(network: UNet, worded: tuple[int, ...]) -> None:
    """Values of zeros leave the bias alone; the rows between two that have a text are computed like them."""
    rows = len(worded)
    x, context, vector = given(network.shape, rows)
    prepared = network.prepare(context * torch.tensor(worded)[:, None, None], vector, [317.0])
    assert prepared.worded == tuple(map(bool, worded))
    first = next(module for module in network.modules() if isinstance(module, CrossAttention))
    counts: list[int] = []
    handle = first.to_q.register_forward_pre_hook(lambda _module, args: counts.append(len(args[0])))
    skipped = network(x, prepared, 0)
    with ops.reference():
        plain = network(x, prepared, 0)
    handle.remove()
    told = [r for r in range(rows) if worded[r]]
    assert counts == ([told[-1] - told[0] + 1] if told else []) + [rows]
    assert relative_error(skipped, plain) < 1e-6
    assert torch.equal(network(x.repeat_interleave(2, 0), prepared.repeat(2), 0)[::2], skipped)
    for r in range(rows):
        assert prepared.row(r).worded == prepared.told([r]).worded == prepared.worded[r : r + 1]
        assert relative_error(network(x[r : r + 1], prepared.row(r), 0), skipped[r : r + 1]) < 1e-5


def test_gradients_reach_every_weight(network: UNet) -> None:
    x, context, vector = given(network.shape, 2)
    network.denoise(x, torch.tensor([10.0, 900.0]), context, vector).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    network.zero_grad()


@pytest.mark.parametrize(("name", "transformers"), [("sdxl-base", 11), ("sdxl-refiner", 11)])
def test_group_norm_eps(name: str, transformers: int) -> None:
    """1e-5 in the residual blocks and `out`, 1e-6 in the spatial transformers (sgm attention.py, Normalize)."""
    with torch.device("meta"):
        network = UNet(load_family(name).unet)
    spatial = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    inside = {id(module.norm) for module in spatial}
    assert len(spatial) == transformers
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.eps == (1e-6 if id(module) in inside else 1e-5)
            assert module.num_groups == 32
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5


@pytest.mark.parametrize(("name", "blocks", "cross", "heads"), [("sdxl-base", 17, 70, {10, 20}), ("sdxl-refiner", 22, 44, {12, 24})])
def test_official_depths(name: str, blocks: int, cross: int, heads: set[int]) -> None:
    with torch.device("meta"):
        network = UNet(load_family(name).unet)
    modules = list(network.modules())
    assert sum(isinstance(module, ResBlock) for module in modules) == blocks
    assert sum(isinstance(module, CrossAttention) for module in modules) == cross
    assert {module.heads for module in modules if isinstance(module, SelfAttention | CrossAttention)} == heads


def test_geglu_is_exact_and_gates_by_the_second_half() -> None:
    unit = GEGLU(1, 1)
    with torch.no_grad():
        unit.proj.weight.copy_(torch.tensor([[2.0], [1.0]]))
        unit.proj.bias.zero_()
    x = torch.tensor([[0.7]])
    normal = 0.5 * (1 + torch.erf(x / 2**0.5))
    assert torch.allclose(unit(x), 2 * x * x * normal, rtol=1e-6)


SD1 = UNetShape(9, 4, 16, (1, 2, 4, 4), 2, (1, 1, 1, 0), 1, 0, 4, 24, 0, 8, False)
SD2 = UNetShape(4, 4, 16, (1, 2, 4, 4), 2, (1, 1, 1, 0), 1, 8, 0, 24, 0, 8, True)


@pytest.mark.parametrize("shape", [SD1, SD2], ids=["sd1-inpainting", "sd2"])
@torch.no_grad()
def test_other_families_by_numbers_alone(shape: UNetShape) -> None:
    """Convolutional projections, heads by number, nine input channels, no vector: beside diffusers."""
    foreign = pytest.importorskip("tests.models.foreign", reason="the parity extra is not installed", exc_type=ImportError)
    network = drawn(UNet(shape))
    x, context = torch.randn(2, shape.in_channels, 16, 16), torch.randn(2, 77, 24)
    reference = foreign.diffusers_unet(network, 0)(x, 250.0, context).sample
    assert relative_error(network(x, network.prepare(context, None, [250.0]), 0), reference) < 1e-5


@pytest.mark.parametrize("size", [(7, 9), (10, 6), (16, 16)])
@torch.no_grad()
def test_odd_sizes_beside_diffusers(network: UNet, size: tuple[int, int]) -> None:
    foreign = pytest.importorskip("tests.models.foreign", reason="the parity extra is not installed", exc_type=ImportError)
    x, context, pooled, numbers = torch.randn(1, 4, *size), torch.randn(1, 77, 48), torch.randn(1, 24), torch.rand(1, 6) * 99
    vector = torch.cat([pooled, sinusoid(numbers.flatten(), 8).reshape(1, -1)], 1)
    added = {"text_embeds": pooled, "time_ids": numbers}
    reference = foreign.diffusers_unet(network, 8)(x, 100.0, context, added_cond_kwargs=added).sample
    assert relative_error(network(x, network.prepare(context, vector, [100.0]), 0), reference) < 1e-5


@torch.no_grad()
def test_the_vector_matters(network: UNet) -> None:
    x, context, vector = given(network.shape, 1)
    one, other = (network.prepare(context, vector * factor, [10.0]) for factor in (1.0, 0.5))
    assert relative_error(network(x, one, 0), network(x, other, 0)) > 1e-3


def test_shapes_are_strict() -> None:
    shape = tiny("sdxl-base").unet
    with pytest.raises(Exception, match="unknown key 'width'"):
        UNetShape.from_dict(shape.to_dict() | {"width": 3})
    with pytest.raises(Exception, match="missing key 'head_dim'"):
        UNetShape.from_dict({key: value for key, value in shape.to_dict().items() if key != "head_dim"})
    with pytest.raises(Exception, match=r"UNetShape\.head_dim"):
        UNetShape.from_dict(shape.to_dict() | {"head_dim": "64"})
    with pytest.raises(Exception, match="vector_dim"):
        replace(tiny("sdxl-base"), unet=replace(shape, vector_dim=7))
