"""Which UNet a tier runs: the model's own, or one with linear layers in 8 bits beside it."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import torch

from ldm.errors import InputError
from ldm.runtime import graph

if TYPE_CHECKING:
    from ldm.models.unet import UNet

FP8 = (8, 9)  # the first compute capability whose tensor cores have it: Ada, then Hopper and Blackwell


def check(speed: str, device: torch.device) -> None:
    """InputError where `device` cannot run the tier; weights that are on none, as they are read in turns, are refused by `quantise`."""
    if speed != "fp8" or device.type == "meta":
        return
    found = f"this run is on {device.type}"
    if device.type == "cuda" and not torch.version.hip:
        capability = torch.cuda.get_device_capability(device)
        if capability >= FP8:
            return
        found = f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
    what = f"speed fp8 needs an NVIDIA GPU of compute capability {'.'.join(map(str, FP8))} or higher"
    raise InputError(f"{what}: {found}: take --speed exact or approx", "E8001")


class Tiers:
    """The UNets of one pipeline. The reduced one is made when a job first asks for it and kept, until a weight of the own one is written to
    or replaced: calls of other tiers never see it.

    It shares all tensors but the weights of the transformer blocks' linear layers: of those it has 8-bit ones beside the own, for SDXL
    1.8 GB more.
    """

    def __init__(self) -> None:
        self._reduced: tuple[UNet, graph.Weights, UNet] | None = None  # what it was made of, as that was, and it
        self._lock = Lock()

    def unet(self, own: UNet, speed: str) -> UNet:
        """The network of a tier for the pipeline's `own`; InputError where the device cannot run it."""
        check(speed, next(own.parameters()).device)
        if speed != "fp8":
            return own
        from ldm.runtime.quantise import quantise

        with self._lock:
            if self._reduced is None or self._reduced[0] is not own or self._reduced[1].changed():
                self._reduced = None  # before another is made
                self._reduced = own, graph.Weights(own), quantise(own, "fp8")
            return self._reduced[2]

    def forget(self) -> None:
        """The own weights have changed or moved: what was made of them is made again when it is asked for."""
        with self._lock:
            self._reduced = None
        graph.forget()
