"""Noise for training: its variances in closed form, and what is predicted of it."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import InputError
from ldm.train.losses import diffusion_loss
from ldm.train.noising import Noising

SHAPE = (2048, 4, 8, 8)


def drawn(**strengths: float) -> tuple[torch.Tensor, torch.Tensor]:
    return Noising(**strengths).draw(SHAPE, torch.Generator().manual_seed(3))


def test_plain_noise_is_the_generators() -> None:
    held, wanted = drawn()
    assert held is wanted
    assert torch.equal(held, torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("strength", [0.0357, 0.1, 1.0])
def test_offset_moves_whole_channels(strength: float) -> None:
    held, wanted = drawn(offset=strength)
    assert held is wanted  # it is predicted too
    added = held - drawn()[0]
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), rtol=0, atol=1e-6)
    assert added[..., 0, 0].std().item() == pytest.approx(strength, rel=0.03)
    assert held.mean((2, 3)).var().item() == pytest.approx(1 / 64 + strength**2, rel=0.05)


def test_pyramid_adds_coarse_scales_at_unit_variance() -> None:
    held, wanted = drawn(pyramid=0.8)
    assert held is wanted
    assert held.std().item() == pytest.approx(1, abs=1e-4)
    assert held.mean((2, 3)).var().item() > 3 / 64  # of plain noise: 1 / 64


@pytest.mark.parametrize("discount", [0.3, 0.8])
def test_each_coarser_scale_counts_by_one_power_more(discount: float) -> None:
    """Of 8 x 8 there are two: one of two or three pixels a side, and one pixel."""
    random = torch.Generator().manual_seed(3)
    noise = torch.randn(SHAPE, generator=random)
    side = int(8 / (2 + 2 * float(torch.rand((), generator=random))))
    first = torch.randn(*SHAPE[:2], side, side, generator=random)
    torch.rand((), generator=random)
    last = torch.randn(*SHAPE[:2], 1, 1, generator=random)
    whole = noise + discount * torch.nn.functional.interpolate(first, size=(8, 8), mode="bilinear") + discount**2 * last
    torch.testing.assert_close(drawn(pyramid=discount)[0], whole / whole.std(), rtol=1e-4, atol=1e-5)


def test_perturbation_is_in_x_alone() -> None:
    held, wanted = drawn(perturbation=0.1)
    assert torch.equal(wanted, drawn()[0])
    assert (held - wanted).std().item() == pytest.approx(0.1, rel=0.01)


def test_out_of_range_is_refused() -> None:
    for name in ("offset", "pyramid", "perturbation"):
        with pytest.raises(InputError, match=f"{name}.*expected 0 to 1"):
            Noising(**{name: 1.5})


def test_huber_is_square_near_zero_and_straight_far_away() -> None:
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1)
    small, large = torch.full_like(zero, 1e-3), torch.full_like(zero, 1e3)
    assert diffusion_loss(small, zero, one, 0.1).item() == pytest.approx(1e-6, rel=1e-3)
    assert diffusion_loss(large, zero, one, 0.1).item() == pytest.approx(2 * 0.1 * (1e3 - 0.1), rel=1e-4)
    assert diffusion_loss(large, zero, one).item() == pytest.approx(1e6)
