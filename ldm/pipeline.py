"""From a file and a prompt to pictures: `load()` and `Pipeline.generate()`, which read top to bottom as the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from ldm.checkpoint.families import notes, recognise
from ldm.checkpoint.safetensors import MAX_HEADER, read_header
from ldm.devices import device_named, dtype_named, dtype_of, name_of, place_for
from ldm.diffusion import noise, profiles, samplers, schedules
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guard import Guard
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.samplers import Step
from ldm.errors import InputError
from ldm.images import to_pil
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.options import Job
from ldm.resolve import notes_on, resolve
from ldm.resources import weights
from ldm.runtime import autoencoding, need, retry
from ldm.runtime.evaluation import prediction
from ldm.runtime.notes import note
from ldm.runtime.weights import Progress, read_weights
from ldm.text import conditioning, prompt
from ldm.text.conditioning import Conditioning

if TYPE_CHECKING:
    from PIL.Image import Image

BOX = "ldm-emoji.safetensors"  # the model in the box
OnStep = Callable[[Step], bool | None]


@dataclass(frozen=True)
class Result:
    """What generate() gives."""

    images: list[Image]
    latents: Tensor  # (B, 4, H/8, W/8) float32, as the UNet sees them: the VAE's scale is still in them
    seeds: list[int]  # one a picture
    job: Job  # with every choice filled in
    stopped_at: int | None  # the step after which on_step said stop


class Pipeline:
    """A model in memory. Calls hold their own state, so threads may share one pipeline."""

    def __init__(
        self, family: Family, unet: UNet, vae: VAE, towers: Sequence[CLIPText], *, source: str, vae_source: str | None = None
    ) -> None:
        self.family = family
        self.unet = unet
        self.vae = vae
        self.towers = list(towers)
        self.source, self.vae_source = source, vae_source  # file names

    @property
    def device(self) -> torch.device:
        place = next(self.unet.parameters()).device
        if place.type == "meta":
            raise InputError("the pipeline is closed: load the model again")
        return place

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.unet)

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move everything, by the names that `load` takes; the VAE keeps float32 where the family asks for it."""
        place = self.device if device is None else device_named(device)
        kind = self.dtype if dtype is None else dtype_named(dtype, self.dtype)
        for module in (self.unet, *self.towers):
            module.to(device=place, dtype=kind)
        self.vae.to(device=place, dtype=None if self.family.vae_dtype == "float32" or dtype is None else kind)
        return self

    def close(self) -> None:
        """Give the weights' memory back; the pipeline cannot be used afterwards."""
        for module in (self.unet, self.vae, *self.towers):
            module.to("meta")

    def generate(
        self,
        prompt: str,
        negative: str | None = None,
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        sigmas: Sequence[float] | None = None,
        seed: int | None = None,
        batch: int = 1,
        profile: str = "comfyui",
        overrides: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Pictures of a prompt; None means the family's default. Picture k is that of seed + k alone.

        `negative=None` says that none is given, which profiles treat differently from "". `on_step` sees every step and stops the run
        by returning False: the last prediction is then decoded. Raises InputError for values out of range, MemoryNeedError where memory
        will not suffice or runs out twice in one place, NumericError for results that are not finite.
        """
        given: Any = sigmas  # checked and made a tuple there
        asked = Job(prompt, negative, width, height, steps, cfg, sampler, schedule, given, seed, batch, profile, overrides)
        return self.run(asked, on_step)

    @torch.no_grad()
    @retry.named("making pictures")
    def run(self, asked: Job, on_step: OnStep | None = None) -> Result:
        """The pictures of a job, as `generate` says; a job also has the sizes that the model is told."""
        job, rules = resolve(asked, self.family)
        for text in notes_on(job, rules):
            note(text)
        kinds: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "vae_dtype": dtype_of(self.vae)}
        need.check_run(need.plan_of(job, rules, self.family, **kinds))
        seeds = [((job.seed or 0) + k) % 2**64 for k in range(job.batch)]
        cond, uncond = self._both(job, rules)
        x, random = self._start(job, rules, seeds)
        run: dict[str, Any] = {"sampler": job.sampler, "cfg": job.cfg, "noise": random, "profile": rules}
        watch = _Watch(on_step)
        z = self.sample(cond, uncond, x, job.sigmas or (), on_step=watch, **run)
        images = [to_pil(self.decode(each[None]))[0] for each in z]  # one by one: a picture must not depend on its batch
        return Result(images, z.cpu(), seeds, job, watch.stopped_at)

    @torch.no_grad()
    def encode(
        self,
        text: str,
        *,
        size: tuple[int, int],
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target: tuple[int, int] | None = None,
        aesthetic: float | None = None,
        text_2: str | None = None,
        chunking: Literal["plain", "comma-20"] = "plain",
    ) -> Conditioning:
        """Text and sizes, each (height, width), crop (top, left) -> context (1, 77n, D) and vector (1, V).

        `original` and `target` default to `size`, `aesthetic` to 6.0; `text_2` is what the last tower reads, where it differs.
        """
        texts = [text] * (len(self.towers) - 1) + [text if text_2 is None else text_2]
        ids = prompt.tower_ids(texts, [tower.shape.pad_token for tower in self.towers], chunking)
        sizes: dict[str, Any] = {"original": original, "crop": crop, "target": target, "aesthetic": aesthetic}
        numbers = conditioning.size_numbers(self.family.numbers, size=size, **sizes)
        run = partial(conditioning.encode, self.towers, self.family, ids, numbers)
        return retry.once_more("text", run, partial(run, at_once=1), "trying again, 77 tokens at a time")

    def _both(self, job: Job, rules: profiles.Profile) -> tuple[Conditioning, Conditioning | None]:
        """Conditioning of the prompt, and of the negative where guidance asks for it."""
        size = (int(job.height or 0), int(job.width or 0))
        told: dict[str, Any] = {"original": job.original, "crop": job.crop or (0, 0), "target": job.target}
        cond = self.encode(job.prompt, size=size, chunking=rules.chunking, **told)
        if job.cfg == 1:
            return cond, None
        apart = {"original": job.negative_original, "crop": job.negative_crop, "target": job.negative_target}
        told |= {name: pair for name, pair in apart.items() if pair is not None}
        told["aesthetic"] = conditioning.AESTHETIC_NEGATIVE
        uncond = self.encode(job.negative or "", size=size, chunking=rules.chunking, **told)
        if conditioning.decide_zero(rules.empty_negative, job.negative):
            uncond = conditioning.zeroed(uncond, self.family)
        return cond, uncond

    def _start(self, job: Job, rules: profiles.Profile, seeds: Sequence[int]) -> tuple[Tensor, noise.Noise]:
        """The first x and the noise of the run."""
        levels = list(job.sigmas or ())
        shape = (self.family.vae.z_channels, int(job.height or 0) // self.family.downscale, int(job.width or 0) // self.family.downscale)
        random = noise.make_noise(rules, seeds, shape, levels, samplers.get(str(job.sampler), rules), device=self.device)
        return noise.start(random, levels, self._table(rules), rules), random

    def _table(self, rules: profiles.Profile) -> schedules.SigmaTable:
        return schedules.SigmaTable(rules.alphas, zero_terminal=self.family.zero_terminal)

    @torch.no_grad()
    @retry.named("sampling")
    def sample(
        self,
        cond: Conditioning,
        uncond: Conditioning | None,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        sampler: str,
        cfg: float,
        noise: Callable[[int, float, float], Tensor],
        on_step: OnStep | None = None,
        profile: profiles.Profile | None = None,
    ) -> Tensor:
        """From x (B, 4, h, w) at sigmas[0] down the list to latents (B, 4, h, w).

        `cond` and `uncond` have 1 row, or B, or a number of rows that divides B: then each serves as many pictures, in order. `uncond` may
        be None where cfg is 1. Without a profile it is comfyui's rules. Raises InputError, and NumericError naming the step.
        """
        rules = profile or profiles.load_profile("comfyui")
        solver, table = samplers.get(sampler, rules), self._table(rules)
        x = x.to(self.device)
        rows, count = conditioning.rows(cond, None if cfg == 1 else uncond, cfg, x.shape[0], rules.cfg_order)
        ts = [table.locate(sigma, rules.timestep)[0] for sigma in samplers.evaluated(solver, sigmas)]
        predict = prediction(self.unet, rows, count, ts)
        denoise = Denoiser(predict, table, prediction=self.family.prediction, timestep=rules.timestep)
        guard = Guard(sigmas)
        guided = guard.watch(Guidance(denoise, scale=cfg, order=rules.cfg_order))
        widths = [tower.shape.width for tower in self.towers]
        for name, each in (("prompt", cond), ("negative", uncond)):
            if each is not None:
                guard.see_text(name, each.context, each.vector, widths)
        for step in solver.run(guided, x, sigmas, noise):
            guard.see(step)
            x = step.x
            if on_step is not None and on_step(step) is False:
                x = step.x0
                break
        guard.check()
        return x

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, 4, h, w) -> image (B, 3, 8h, 8w) in [-1, 1], float32.

        Where the VAE's own dtype overflows, it is tried again in bfloat16, then float32, with a warning. Raises NumericError.
        """
        return autoencoding.decode(self.vae, z)

    @torch.no_grad()
    def encode_image(self, image: Tensor, *, mode: Literal["mode"] = "mode") -> Tensor:
        """image (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8) float32: the mode of the VAE's distribution."""
        if mode != "mode":
            raise InputError(f"encode_image mode {mode!r}: the choice is 'mode'")
        step = self.family.downscale
        if image.ndim != 4 or image.shape[1] != 3 or any(side % step for side in image.shape[2:]) or not image.is_floating_point():
            what = f"{tuple(image.shape)} {name_of(image.dtype)}"
            raise InputError(f"encode_image: {what} is not (B, 3, H, W) in [-1, 1] with sides that are multiples of {step}")
        return autoencoding.encode(self.vae, image)


class _Watch:
    """The caller's on_step, remembering where it said stop."""

    def __init__(self, on_step: OnStep | None) -> None:
        self.on_step = on_step
        self.stopped_at: int | None = None

    def __call__(self, step: Step) -> bool:
        if self.on_step is not None and self.on_step(step) is False:
            self.stopped_at = step.i + 1
        return self.stopped_at is None


@torch.inference_mode(mode=False)  # weights are plain tensors, whatever mode the caller is in
@retry.named("loading the model", "close other programs, or take dtype bfloat16")
def load(
    path: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    vae: str | Path | None = None,
    vae_dtype: str = "auto",
    progress: Progress | None = None,
    max_header: int = MAX_HEADER,
    verify: bool = False,
) -> Pipeline:
    """The model of a safetensors file in an official layout; no path: the model in the box.

    `device` is "auto", "cpu", "cuda" or "cuda:N"; `dtype` "auto" (float32 on the CPU, bfloat16 on CUDA), "float32", "bfloat16" or
    "float16"; `vae` another file to take the VAE from; `vae_dtype` "auto" is float32 where the family asks for it, otherwise `dtype`;
    `progress(n, total)`: n more bytes of a file's `total` are read; `max_header` the largest header to accept, in bytes; `verify` holds
    the files against their known sha256 first.
    Raises InputError for a file that is not what it should be, MemoryNeedError, as a rule before anything is allocated.
    """
    file = Path(path) if path is not None else weights() / BOX
    header = read_header(file, max_header)
    family = recognise(header)
    place = place_for(family, device, dtype, vae_dtype)
    apart = None if vae is None else read_header(vae, max_header)
    networks = read_weights(header, family, place, vae=apart, verified=verify, progress=progress)
    for text in notes(header, family):
        note(text)
    return Pipeline(family, *networks, source=file.name, vae_source=None if apart is None else apart.path.name)
