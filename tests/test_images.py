"""Pictures: the rounding rule, and files that are whole or absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm import images
from ldm.errors import NumericError
from ldm.images import to_pil


def test_every_byte_has_its_value_and_the_nearest_one_wins() -> None:
    levels = np.arange(256, dtype=np.float64)
    for shift in (-0.49, 0.0, 0.49):
        values = ((levels + shift) / 127.5 - 1).astype(np.float32)
        picture = to_pil(np.broadcast_to(values, (1, 3, 1, 256)))[0]
        assert np.array_equal(np.asarray(picture)[0, :, 0], levels)


def test_what_lies_outside_is_clamped() -> None:
    picture = to_pil(np.array([-9.0, -1.0, 0.0, 1.0, 9.0], np.float32).reshape(1, 1, 1, 5).repeat(3, axis=1))[0]
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5 is a tie: it goes to the even byte


def test_tensors_of_every_dtype_give_what_the_array_gives() -> None:
    image = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        pictures = to_pil(image.to(dtype, copy=True).requires_grad_())
        wanted = to_pil(image.to(dtype).float().numpy())
        assert [each.size for each in pictures] == [(5, 4), (5, 4)]
        assert all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in zip(pictures, wanted, strict=True))


def test_what_a_gpu_does_has_the_same_bits() -> None:
    """All ties and their neighbours, and a few million values."""
    ties = torch.arange(256, dtype=torch.float64).sub(0.5).div(127.5).sub(1).float()
    near = [ties.nextafter(torch.tensor(side)) for side in (-9.0, 9.0)]
    values = torch.cat([ties, *near, torch.linspace(-1.1, 1.1, 2**19 - 768)]).reshape(1, 1, -1, 1024).expand(2, 3, -1, -1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert np.array_equal(images._on_device(values.to(dtype)), images._on_host(values.to(dtype)))
    broken = values.clone()
    broken[1, 2, 3, 4:7] = torch.nan
    with pytest.raises(NumericError, match="3 values that are not finite"):
        images._on_device(broken)


@pytest.mark.gpu
def test_a_gpu_has_them_too() -> None:
    values = torch.linspace(-1.1, 1.1, 2**20).reshape(1, 1, -1, 1024).expand(1, 3, -1, -1)
    assert np.array_equal(images._on_device(values.cuda()), images._on_host(values))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_an_error(bad: float) -> None:
    image = np.zeros((1, 3, 8, 8), np.float32)
    image[0, 1, 2, 3] = bad
    with pytest.raises(NumericError, match="1 values that are not finite"):
        to_pil(image)
