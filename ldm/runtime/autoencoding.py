"""The VAE with its second tries: in a wider dtype where its own overflows, along another path where memory runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ldm.devices import dtype_of, name_of, wider
from ldm.errors import InputError, NumericError
from ldm.images import to_pil
from ldm.models.vae import VAE
from ldm.runtime import graph, retry
from ldm.runtime.notes import note

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.runtime.keeping import Keeper

Run = Callable[[VAE], Tensor]
Found = tuple[Tensor, torch.dtype]  # and the dtype of the VAE that gave it


class _Way(NamedTuple):
    """What is done with a VAE, and the words for it where it is not the first to be tried."""

    run: Run
    words: str = ""


def decode(vae: VAE, z: Tensor, keeper: Keeper | None = None) -> tuple[Tensor, torch.dtype]:
    """Latents (B, 4, h, w) -> image (B, 3, 8h, 8w) in [-1, 1], float32, and the dtype that it was computed in.

    Raises NumericError, MemoryNeedError.
    """
    from ldm.runtime import tiles

    z = z / vae.shape.scale
    whole = _Way(lambda copied: graph.decoded(copied, _like(z, copied)).float())
    bands = _Way(lambda copied: tiles.decode(copied, _like(z, copied)).float(), "in bands of rows")
    with keeper.present(vae) if keeper else nullcontext():
        image, dtype = _finite("decode", vae, [bands] if keeper and keeper.path.vae else [whole, bands])
    return image.clamp_(-1, 1), dtype  # after the check: it would hide an infinity


def pictures(vae: VAE, z: Tensor, keeper: Keeper | None = None) -> Iterator[tuple[Image, str]]:
    """A picture a row of latents (B, 4, h, w), and the name of its dtype: one by one, so that none depends on its batch."""
    for row in z.split(1):
        with retry.named("VAE decode"):
            run = partial(decode, vae, row, keeper)
            image, dtype = keeper.tried(run) if keeper else run()
            picture = to_pil(image)[0]
        yield picture, name_of(dtype)


def encode(vae: VAE, image: Tensor, keeper: Keeper | None = None) -> Tensor:
    """image (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8), float32: the mode. Raises NumericError, MemoryNeedError."""
    with keeper.present(vae) if keeper else nullcontext():
        return _finite("encode", vae, [_Way(lambda copied: copied.encode(_like(image, copied))[0].float() * vae.shape.scale)])[0]


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


def _finite(verb: str, vae: VAE, ways: Sequence[_Way]) -> Found:
    """By the ways in the VAE's own dtype, then in those of greater range, until all values are finite."""
    tries = wider(dtype_of(vae))
    for dtype, following in zip(tries, [*tries[1:], None], strict=True):
        found = _attempt(f"VAE {verb}", vae, dtype, ways)
        if found is not None:
            return found
        if following is not None:
            again = f"{verb.removesuffix('e')}ing again in {name_of(following)}"
            note(f"VAE {verb}: values that are not finite in {name_of(dtype)}: {again}", RuntimeWarning)
    what = "the VAE's weights are damaged, try another --vae"
    raise NumericError(f"VAE {verb}: values that are not finite in float32: {what}", "E6002")


def _attempt(what: str, vae: VAE, dtype: torch.dtype, ways: Sequence[_Way]) -> Found | None:
    """The result in `dtype`, None where it is not finite. Where memory runs out: the next way, and at last on the CPU in float32."""
    home, cpu = next(vae.parameters()).device, torch.device("cpu")
    tries = [(f"trying again {way.words}", partial(_once, vae, dtype, home, way.run)) for way in ways]
    if home.type != "cpu":
        tries.append(("trying again on the CPU in float32", partial(_once, vae, torch.float32, cpu, ways[-1].run)))
    elif len(tries) == 1:
        tries.append((retry.AGAIN, tries[0][1]))
    found = retry.down(what, tries)
    return found if found is None else (found[0].to(home), found[1])


def _once(vae: VAE, dtype: torch.dtype, device: torch.device, run: Run) -> Found | None:
    with widened(vae, dtype, device) as copied:
        found = run(copied)
    return (found, dtype) if bool(found.isfinite().all()) else None


def _like(x: Tensor, vae: VAE) -> Tensor:
    return x.to(next(vae.parameters()))
