"""One file through every stage of two engines, each stage from the same inputs, so that a row of the table is that stage's own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import ldm
from ldm.diffusion import noise, profiles, samplers, schedules
from ldm.measure import relative_error
from ldm.models.shapes import Family
from ldm.parity import foreign, schedulers
from ldm.text import conditioning, prompt
from ldm.text.conditioning import Conditioning

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline

PROMPT, NEGATIVE, SEED, CFG = "a red apple on a blue table, studio light", "blurry", 11, 5.0
TIMES = (999, 749, 499, 249, 1)  # training steps whose sigmas the UNet is asked at
STAGE, RUN = 1e-4, 1e-3  # gates on the relative error, float32
PICTURE = "dpmpp_2m"  # the sampler of the whole picture

Tell = Callable[[str], None]
Tensors = dict[str, Tensor]


class Row(NamedTuple):
    """One stage: how far ours is from theirs."""

    stage: str
    error: float
    gate: float

    @property
    def met(self) -> bool:
        return self.error <= self.gate


@dataclass
class Case:
    """What both engines are given. `known` are our outputs that theirs start from."""

    path: Path
    family: Family
    height: int
    width: int
    steps: int
    device: str = "cpu"
    samplers: tuple[str, ...] = ()  # to run; none: all that both have
    known: Tensors = field(default_factory=dict)

    @property
    def latent(self) -> tuple[int, int, int, int]:
        down = self.family.downscale
        return (1, self.family.vae.z_channels, self.height // down, self.width // down)

    def drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).to(self.device)

    def image(self) -> Tensor:
        """A smooth picture with some noise (1, 3, H, W) in [-1, 1]."""
        rows, columns = torch.linspace(-1, 1, self.height)[:, None], torch.linspace(-1, 1, self.width)
        smooth = torch.stack([rows * columns, rows + 0 * columns, (rows - columns) / 2]).to(self.device)
        return (0.8 * smooth + 0.1 * self.drawn(3, self.height, self.width)).clamp(-1, 1)[None]

    def runs(self) -> list[tuple[str, str]]:
        """(sampler, schedule) of every run; a table of zero terminal SNR has no list that both have."""
        if self.family.zero_terminal:
            return []
        both = [(name, schedule) for schedule in ("normal", "karras") for name in schedulers.shared(schedule == "karras")]
        return [run for run in both if not self.samplers or run[0] in (*self.samplers, PICTURE)]


def compare(case: Case, tell: Tell) -> Iterator[Row]:
    """The rows, theirs after ours: never two engines in memory at once."""
    tell("ldm")
    ours = _ours(case)
    case = replace(case, known=ours)
    gc.collect()
    for stage, theirs in _theirs(case, tell):
        yield Row(stage, relative_error(ours[stage], theirs), RUN if stage.startswith(("run", "picture")) else STAGE)


@torch.no_grad()
def _ours(case: Case) -> Tensors:
    pipeline = ldm.load(case.path, device=case.device, dtype="float32", vae_dtype="float32")
    out: Tensors = {}
    for at, (tower, chunks) in enumerate(zip(pipeline.towers, _ids(case), strict=True)):
        text = tower(torch.tensor(chunks, device=case.device))
        out[f"tower {at + 1}, hidden"] = text.penultimate
        out |= {} if text.pooled is None else {f"tower {at + 1}, pooled": text.pooled}
    cond, uncond = (pipeline.encode(text, size=(case.height, case.width)) for text in (PROMPT, NEGATIVE))
    out |= {"context": torch.cat([cond.context, uncond.context]), "vector": torch.cat([cond.vector, uncond.vector])}
    for t in TIMES:
        prepared = pipeline.unet.prepare(cond.context, cond.vector if cond.vector.shape[1] else None, [float(t)])
        out[_unet_row(t)] = pipeline.unet(case.drawn(*case.latent), prepared, 0)
    out |= {f"run {name} {schedule}": _run(pipeline, case, cond, uncond, name, schedule) for name, schedule in case.runs()}
    moments = pipeline.encode_image(case.image()) / case.family.vae.scale
    out |= {"VAE encode": moments, "VAE decode": pipeline.decode(case.drawn(*case.latent))}
    if case.runs():
        out["picture"] = pipeline.decode(out[f"run {PICTURE} karras"])
    pipeline.close()
    return out


def _run(pipeline: Pipeline, case: Case, cond: Conditioning, uncond: Conditioning, name: str, schedule: str) -> Tensor:
    """A few steps by the profile "diffusers"."""
    rules = profiles.load_profile("diffusers")
    table = schedules.SigmaTable(rules.alphas)
    levels = schedules.sigmas(schedule, case.steps, table, rules, name)
    random = noise.make_noise(rules, [SEED], case.latent, levels, samplers.get(name, rules), device=case.device)
    x = noise.start(random, levels, table, rules, name)
    run: dict[str, Any] = {"sampler": name, "schedule": schedule, "cfg": CFG, "noise": random, "profile": rules}
    return noise.leave(pipeline.sample(cond, uncond, x, levels, **run), levels, rules, name)


@torch.no_grad()
def _theirs(case: Case, tell: Tell) -> Iterator[tuple[str, Tensor]]:
    tell("theirs: towers")
    rows = dict(_their_towers(case))
    yield from rows.items()
    tell("theirs: UNet")
    network = foreign.unet(case.path, case.family).to(case.device)
    predict = partial(_predict, network, case.family)
    cond = case.known["context"][:1], case.known["vector"][:1]
    for t in TIMES:
        yield _unet_row(t), predict(case.drawn(*case.latent), float(t), *cond)
    for name, schedule in case.runs():
        tell(f"theirs: {name} {schedule}")
        yield f"run {name} {schedule}", _their_run(case, predict, name, schedule, case.known["context"], case.known["vector"])
    whole = _their_run(case, predict, PICTURE, "karras", *_their_text(case, rows)) if case.runs() else None
    del network, predict
    gc.collect()
    tell("theirs: VAE")
    vae: Any = foreign.vae(case.path, case.family).to(case.device)
    scale = case.family.vae.scale
    yield "VAE encode", vae.encode(case.image()).latent_dist.mean
    yield "VAE decode", vae.decode(case.drawn(*case.latent) / scale).sample.clamp(-1, 1)
    if whole is not None:
        yield "picture", vae.decode(whole / scale).sample.clamp(-1, 1)


def _their_towers(case: Case) -> Iterator[tuple[str, Tensor]]:
    for at, (shape, chunks) in enumerate(zip(case.family.towers, _ids(case), strict=True)):
        text = foreign.tower(case.path, shape).to(case.device)(torch.tensor(chunks, device=case.device), output_hidden_states=True)
        yield f"tower {at + 1}, hidden", text.hidden_states[-2]
        if shape.projection:
            yield f"tower {at + 1}, pooled", text.text_embeds


def _their_text(case: Case, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Context and vector of prompt and negative from their towers; the numbers' features stand in ours."""
    count = len(case.family.towers)
    context = torch.cat([rows[f"tower {at + 1}, hidden"] for at in range(count)], -1)
    pooled, vector = rows.get(f"tower {count}, pooled"), case.known["vector"].clone()
    if vector.shape[1] and pooled is not None:
        vector[:, : pooled.shape[1]] = pooled
    return context, vector


def _their_run(case: Case, predict: Callable[..., Tensor], name: str, schedule: str, context: Tensor, vector: Tensor) -> Tensor:
    def guided(x: Tensor, t: float) -> Tensor:
        cond, uncond = predict(torch.cat([x, x]), t, context, vector).chunk(2)
        return uncond + CFG * (cond - uncond)

    scheduler = schedulers.make(name, karras=schedule == "karras", prediction=case.family.prediction, seed=SEED)
    return schedulers.run(scheduler, guided, case.latent, case.steps, SEED, case.device)


def _predict(network: Any, family: Family, x: Tensor, t: float, context: Tensor, vector: Tensor) -> Tensor:
    """What their UNet says of x (R, 4, h, w), already scaled, at t."""
    added = None
    if family.numbers:
        added = {"text_embeds": vector[:, : family.towers[-1].projection], "time_ids": _numbers(family, x)}
    out: Tensor = network(x, t, context, added_cond_kwargs=added).sample
    return out


def _numbers(family: Family, x: Tensor) -> Tensor:
    size = (x.shape[2] * family.downscale, x.shape[3] * family.downscale)
    return torch.tensor([conditioning.size_numbers(family.numbers, size=size)] * len(x), device=x.device)


def _ids(case: Case) -> list[list[list[int]]]:
    """The ids of prompt and negative, a chunk each, for every tower."""
    pads = [shape.pad_token for shape in case.family.towers]
    rules = profiles.load_profile("diffusers")
    both = [prompt.tower_texts([text] * len(pads), pads, rules) for text in (PROMPT, NEGATIVE)]
    return [[*positive.ids, *negative.ids] for positive, negative in zip(*both, strict=True)]


def _unet_row(t: int) -> str:
    return f"UNet at t {t}"
