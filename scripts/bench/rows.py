"""The rows that set one engine beside the other: a guided step, the decoder, whole pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm import ops
from ldm.models.shapes import Family
from ldm.runtime import autoencoding
from scripts.bench import ceilings, engines, measures
from scripts.bench.bench import Bench

EXACT = 1e-5  # relative error of float32 beside other people's float32
TWICE = 2.0  # of the plain path's error in the same dtype: what a faster one may have
REDUCED = 0.1  # of a tier in 8 bits, one step: far from what is wrong, and published
T = 500.0
SEED = 11
Row = dict[str, Any]


class Inputs:
    """What a step reads, in float32: x of `batch` pictures and two rows of conditioning, or one."""

    def __init__(self, bench: Bench, side: int, batch: int, *, guided: bool = True, family: Family | None = None) -> None:
        family, rows = family or bench.family, 2 if guided else 1
        generator = torch.Generator().manual_seed(SEED)
        latent, width = side // family.downscale, family.unet.context_dim
        self.x = torch.randn(rows * batch, family.unet.in_channels, latent, latent, generator=generator)
        self.context = torch.randn(rows, 77, width, generator=generator)
        self.pooled = torch.randn(rows, family.towers[-1].projection, generator=generator)
        self.ids = torch.tensor([[side, side, 0, 0, side, side]] * rows, dtype=torch.float32)
        self.batch, self.family = batch, family

    @property
    def vector(self) -> Tensor:
        from ldm.ops.embedding import sinusoid

        features = sinusoid(self.ids.flatten(), self.family.size_embedding).reshape(len(self.ids), -1)
        return torch.cat([self.pooled, features], 1)

    def ours(self, unet: Any) -> Callable[[], Tensor]:
        predict, x = engines.evaluation(unet, self.context, self.vector, T, self.batch), self.x.to(next(unet.parameters()))
        return lambda: predict(x)

    def theirs(self, network: Any) -> Callable[[], Tensor]:
        weight = next(network.parameters())
        x, context, pooled = (each.to(weight) for each in (self.x, *self._repeated()))
        added = {"text_embeds": pooled, "time_ids": self.ids.repeat_interleave(self.batch, 0).to(weight)}
        t, unsaid = torch.tensor(T, device=x.device), {"timestep_cond": None, "cross_attention_kwargs": None}

        def call() -> Tensor:  # as its pipeline calls it: another way would be compiled once more
            out: Tensor = network(x, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False, **unsaid)[0]
            return out

        return call

    def _repeated(self) -> tuple[Tensor, Tensor]:
        return self.context.repeat_interleave(self.batch, 0), self.pooled.repeat_interleave(self.batch, 0)


@torch.no_grad()
def step(bench: Bench, side: int, batch: int = 1, *, guided: bool = True, compiled: bool = False) -> Row:
    """One evaluation of the UNet with the rows of guidance: ours as the sampler meets it, the text's part made before."""
    if compiled and not engines.has_diffusers():
        return {"state": "not measured", "why": engines.ABSENT}
    side, batch = bench.side(side), bench.batch(batch)
    given, unet = Inputs(bench, side, batch, guided=guided), bench.kept("unet", lambda: made_unet(bench))
    calls: dict[str, measures.Call] = {"ldm": given.ours(unet)}
    if engines.has_diffusers():
        theirs = bench.kept("unet of diffusers", lambda: engines.their_unet(unet, bench.family))
        calls["diffusers"] = given.theirs(torch.compile(theirs) if compiled and not bench.small else theirs)
    tflop = batch * ceilings.step(bench.family, side, len(given.ids))
    return bench.contest(calls, step_gate(bench, given, unet, calls), tflop)


def made_unet(bench: Bench) -> Any:
    return bench.pipeline().unet if bench.on_gpu else engines.unet(bench.family, bench.device, bench.dtype)


def step_gate(bench: Bench, given: Inputs, unet: Any, calls: dict[str, measures.Call]) -> measures.Gate:
    """float32: beside diffusers, or the plain path; else both beside float32, where ours may err twice as much as the plain path does."""
    outputs = {side: call().clone() for side, call in calls.items()}
    if bench.dtype == torch.float32 and "diffusers" in outputs:
        return measures.gate({"ldm": outputs["ldm"]}, outputs["diffusers"], "diffusers, float32", {"ldm": EXACT})
    with ops.reference():
        outputs["plain path"] = given.ours(unet)().clone()
        if bench.dtype == torch.float32:
            return measures.gate({"ldm": outputs["ldm"]}, outputs["plain path"], "plain path, float32", {"ldm": EXACT})
        judge = in_float32(bench, given)
    found = measures.gate(outputs, judge, "plain path, float32", {})
    return replace(found, limits={"ldm": TWICE * found.errors["plain path"]})


def in_float32(bench: Bench, given: Inputs) -> Tensor:
    """The same step by the plain path with the weights widened, which are then let go."""
    wide = engines.unet(bench.family, bench.device, bench.dtype).float()
    return given.ours(wide)().clone()


@torch.no_grad()
def step_int8(bench: Bench, side: int) -> Row:
    """The step with the linear layers in 8 bits, ours in float32 and diffusers beside it."""
    from ldm.runtime import quantise

    side = bench.side(side)
    given, unet = Inputs(bench, side, 1), bench.kept("unet", lambda: made_unet(bench))
    calls: dict[str, measures.Call] = {"ldm": given.ours(unet)}
    if engines.has_diffusers():
        calls["diffusers"] = given.theirs(bench.kept("unet of diffusers", lambda: engines.their_unet(unet, bench.family)))
    with torch.inference_mode(mode=False):
        narrow = quantise.quantise(unet, "int8")
    calls = {"ldm int8": given.ours(narrow)} | calls
    gate = measures.gate({"ldm int8": calls["ldm int8"]()}, calls["ldm"](), "ldm, float32", {"ldm int8": REDUCED})
    return bench.contest(calls, gate, ceilings.step(bench.family, side, 2))


@torch.no_grad()
def decode(bench: Bench, side: int) -> Row:
    """Latents of one picture to its pixels, in the dtype of the UNet."""
    side, family = bench.side(side), bench.family
    vae = bench.kept("vae", lambda: engines.vae(family, bench.device, bench.dtype))
    latent = (1, family.vae.z_channels, side // family.downscale, side // family.downscale)
    z = torch.randn(latent, generator=torch.Generator().manual_seed(SEED)).to(bench.device) * family.vae.scale
    calls: dict[str, measures.Call] = {"ldm": lambda: autoencoding.decode(vae, z)[0]}
    if engines.has_diffusers():
        theirs: Any = bench.kept("vae of diffusers", lambda: engines.their_vae(vae, family))
        calls["diffusers"] = lambda: theirs.decode((z / family.vae.scale).to(bench.dtype)).sample.float().clamp(-1, 1)
    return bench.contest(calls, decode_gate(bench, vae, z, calls), ceilings.decode(family, side))


def decode_gate(bench: Bench, vae: Any, z: Tensor, calls: dict[str, measures.Call]) -> measures.Gate:
    outputs = {side: call() for side, call in calls.items()}
    if bench.dtype == torch.float32 and "diffusers" in outputs:
        return measures.gate({"ldm": outputs["ldm"]}, outputs["diffusers"], "diffusers, float32", {"ldm": EXACT})
    with ops.reference():
        outputs["plain path"] = autoencoding.decode(vae, z)[0]
        if bench.dtype == torch.float32:
            return measures.gate({"ldm": outputs["ldm"]}, outputs["plain path"], "plain path, float32", {"ldm": EXACT})
        wide = engines.vae(bench.family, bench.device, bench.dtype).float()
        judge = autoencoding.decode(wide, z)[0]
    found = measures.gate(outputs, judge, "plain path, float32", {})
    return replace(found, limits={"ldm": TWICE * found.errors["plain path"]})
