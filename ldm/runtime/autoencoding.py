"""The VAE with its second tries: in a wider dtype where its own overflows, along another path where memory runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ldm.devices import dtype_of, name_of, wider
from ldm.errors import InputError, NumericError
from ldm.images import to_pil
from ldm.models.vae import VAE
from ldm.runtime import retry
from ldm.runtime.notes import note

if TYPE_CHECKING:
    from PIL.Image import Image

Run = Callable[[VAE], Tensor]
Found = tuple[Tensor, torch.dtype]  # and the dtype of the VAE that gave it


def decode(vae: VAE, z: Tensor) -> tuple[Tensor, torch.dtype]:
    """Latents (B, 4, h, w) -> image (B, 3, 8h, 8w) in [-1, 1], float32, and the dtype that it was computed in.

    Raises NumericError, MemoryNeedError.
    """
    scale = vae.shape.scale
    image, dtype = _finite("decode", vae, lambda copied: copied.decode(_like(z / scale, copied)).float(), "try another --vae")
    return image.clamp_(-1, 1), dtype  # after the check: it would hide an infinity


def pictures(vae: VAE, z: Tensor) -> Iterator[tuple[Image, str]]:
    """A picture a row of latents (B, 4, h, w), and the name of its dtype: one by one, so that none depends on its batch."""
    for row in z.split(1):
        with retry.named("VAE decode"):
            image, dtype = decode(vae, row)
            picture = to_pil(image)[0]
        yield picture, name_of(dtype)


def encode(vae: VAE, image: Tensor) -> Tensor:
    """image (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8), float32: the mode. Raises NumericError, MemoryNeedError."""
    scale = vae.shape.scale
    return _finite("encode", vae, lambda copied: copied.encode(_like(image, copied))[0].float() * scale, "try another --vae")[0]


def check_image(image: Tensor, step: int) -> None:
    """InputError for what `encode` does not take, with sides that are multiples of `step`."""
    if image.ndim != 4 or image.shape[1] != 3 or any(side % step for side in image.shape[2:]) or not image.is_floating_point():
        what = f"{tuple(image.shape)} {name_of(image.dtype)}"
        raise InputError(f"encode_image: {what} is not (B, 3, H, W) in [-1, 1] with sides that are multiples of {step}")


@contextmanager
def widened(vae: VAE, dtype: torch.dtype, device: torch.device | None = None) -> Iterator[VAE]:
    """A copy of `vae` in `dtype`, on `device`; the VAE itself where it is so already. The copy's memory is let go at the end.

    `vae` is never changed: other threads may be in it.
    """
    weight = next(vae.parameters())
    place = weight.device if device is None else device
    if (weight.dtype, weight.device) == (dtype, place):
        yield vae
        return
    made: dict[int, object] = {id(each): nn.Parameter(each.to(place, dtype), requires_grad=False) for each in vae.parameters()}
    copied = copy.deepcopy(vae, made)  # with these in the place of its own: no tensor is copied twice
    made.clear()
    try:
        yield copied
    finally:
        copied.to("meta")  # whoever still refers to it


def _finite(verb: str, vae: VAE, run: Run, remedy: str) -> Found:
    """`run` in the VAE's own dtype, then in those of greater range, until all values are finite."""
    tries = wider(dtype_of(vae))
    for dtype, following in zip(tries, [*tries[1:], None], strict=True):
        found = _attempt(f"VAE {verb}", vae, dtype, run)
        if found is not None:
            return found
        if following is not None:
            again = f"{verb.removesuffix('e')}ing again in {name_of(following)}"
            note(f"VAE {verb}: values that are not finite in {name_of(dtype)}: {again}", RuntimeWarning)
    raise NumericError(f"VAE {verb}: values that are not finite in float32: the VAE's weights are damaged, {remedy}", "E6002")


def _attempt(what: str, vae: VAE, dtype: torch.dtype, run: Run) -> Found | None:
    """The result in `dtype`, None where it is not finite. A second try for memory is on the CPU in float32 if the first was not there."""
    home = next(vae.parameters()).device
    if home.type == "cpu":
        path, again = retry.AGAIN, partial(_once, vae, dtype, home, run)
    else:
        path, again = "trying again on the CPU in float32", partial(_once, vae, torch.float32, torch.device("cpu"), run)
    found = retry.once_more(what, partial(_once, vae, dtype, home, run), again, path)
    return found if found is None else (found[0].to(home), found[1])


def _once(vae: VAE, dtype: torch.dtype, device: torch.device, run: Run) -> Found | None:
    with widened(vae, dtype, device) as copied:
        found = run(copied)
    return (found, dtype) if bool(found.isfinite().all()) else None


def _like(x: Tensor, vae: VAE) -> Tensor:
    return x.to(next(vae.parameters()))
