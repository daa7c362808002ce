"""From a file and a prompt to pictures: `load()` and `Pipeline.generate()`, which read top to bottom as the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ldm.checkpoint.families import notes, recognise
from ldm.checkpoint.safetensors import MAX_HEADER, read_header
from ldm.devices import device_named, dtype_named, dtype_of, place_for
from ldm.diffusion import noise, profiles, samplers, schedules
from ldm.diffusion.guard import Guard
from ldm.errors import InputError, carrying
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.options import Job, alone
from ldm.resolve import notes_on, resolve
from ldm.resources import weights
from ldm.results import Result, joined
from ldm.runtime import ahead, autoencoding, quantise, retry
from ldm.runtime.beginning import begin
from ldm.runtime.guiding import Guide
from ldm.runtime.keeping import Keeper, Progress, counted
from ldm.runtime.notes import note_each
from ldm.runtime.telling import Teller
from ldm.runtime.tiers import Tiers
from ldm.runtime.watch import OnStep, Watch
from ldm.runtime.weights import read_weights
from ldm.text import course, script
from ldm.text.conditioning import Conditioning
from ldm.text.course import Course

BOX = "ldm-emoji.safetensors"  # the model in the box


class Pipeline:
    """A model in memory. Calls hold their own state, so threads may share one pipeline."""

    def __init__(
        self,
        family: Family,
        unet: UNet,
        vae: VAE,
        towers: Sequence[CLIPText],
        *,
        source: str,
        vae_source: str | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.family = family
        self.unet = unet
        self._tiers = Tiers()
        self.vae = vae
        self.towers = list(towers)
        self.source, self.vae_source = source, vae_source  # file names
        self.keeper = keeper or Keeper()

    @property
    def device(self) -> torch.device:
        place = next(self.unet.parameters()).device
        if place.type == "meta":
            raise InputError("the pipeline is closed: load the model again")
        return place

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.unet)

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        vae_dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Move everything, by the names that `load` takes; of the dtypes, None and "auto" leave what is there.

        The VAE takes `vae_dtype`; without it, it takes `dtype` unless the family asks for a VAE in float32.
        """
        self.keeper.check_free()
        quantise.check_free(self.unet)
        place = self.device if device is None else device_named(device)
        kind, vae_kind = dtype_named(dtype or "auto", self.dtype), dtype_named(vae_dtype or "auto", dtype_of(self.vae))
        if vae_dtype is None and dtype not in (None, "auto") and self.family.vae_dtype != "float32":
            vae_kind = kind
        for module in (self.unet, *self.towers):
            module.to(device=place, dtype=kind)
        self.vae.to(device=place, dtype=vae_kind)
        self._tiers.forget()
        return self

    def close(self) -> None:
        """Give the weights' memory back; the pipeline cannot be used afterwards."""
        self.keeper.close()
        self._tiers.forget()
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
        prompt_2: str | None = None,
        negative_2: str | None = None,
        speed: str = "exact",
    ) -> Result:
        """Pictures of a prompt; None means the family's default. Picture k is that of seed + k alone.

        `negative=None` says that none is given, which profiles treat differently from ""; the last text tower reads `prompt_2` and
        `negative_2` instead, where they are given. `on_step` sees every step and stops the run
        by returning False: the last prediction is then decoded. `speed` is the tier: "exact", "approx", or "fp8" on GPUs that have it.
        Raises InputError for values out of range, MemoryNeedError where memory will not suffice or runs out twice, NumericError for
        results that are not finite. What is raised after the sampling has `result`: the latents, and the pictures that were decoded before.
        """
        given: Any = sigmas  # checked and made a tuple there
        asked = Job(prompt, negative, width, height, steps, cfg, sampler, schedule, given, seed, batch, profile, overrides)
        return self.run(replace(asked, prompt_2=prompt_2, negative_2=negative_2, speed=speed), on_step)

    @torch.no_grad()
    @retry.named("making pictures")
    @counted
    def run(self, asked: Job, on_step: OnStep | None = None) -> Result:
        """The pictures of a job, as `generate` says; a job also has the sizes that the model is told."""
        job, rules = resolve(asked, self.family)
        note_each(notes_on(job, rules))
        from ldm.runtime.plan import check

        check(job, rules, self.family, self.keeper, (self.unet, self.vae), self.device)
        pictures = [alone(job, place) for place in range(job.batch)]
        if script.apart(job, rules):
            return joined(job, [self.run(each, on_step) for each in pictures])
        cond, uncond = self.keeper.tried(partial(Teller(self.towers, self.family, rules).both, job))
        watch = Watch(on_step)
        z = self.keeper.tried(partial(self._sampled, job, rules, pictures, cond, uncond, watch))
        made = Result([], z.cpu(), [int(each.seed or 0) for each in pictures], job, watch.stopped_at, [])
        with carrying(made):
            for picture, dtype in autoencoding.pictures(self.vae, z, self.keeper):
                made.images.append(picture)
                made.vae_dtypes.append(dtype)
        return made

    def _sampled(
        self, job: Job, rules: profiles.Profile, pictures: Sequence[Job], cond: Course, uncond: Course | None, watch: Watch
    ) -> Tensor:
        """The latents of a finished job, when its words are encoded."""
        x, random = begin(job, pictures, rules, self.family, self._table(rules), self.device)
        run: dict[str, Any] = {"sampler": job.sampler, "schedule": job.schedule, "cfg": job.cfg, "profile": rules, "speed": job.speed}
        with ahead.drawing(random, samplers.get(str(job.sampler), rules, self._table(rules)), job.sigmas or ()) as drawn:
            z = self.sample(cond, uncond, x, job.sigmas or (), noise=drawn, on_step=watch, **run)
        return noise.leave(z, job.sigmas or (), rules, str(job.sampler))

    @torch.no_grad()
    @counted
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
        depths: tuple[int, int] = (2, 2),
        profile: profiles.Profile | None = None,
    ) -> Conditioning:
        """Text and sizes, each (height, width), crop (top, left) -> context (1, 77n, D) and vector (1, V).

        `original` and `target` default to `size`, `aesthetic` to 6.0; `text_2` is what the last tower reads, where it differs.
        `depths`: which states of CLIP-L and of the other towers are the context, counted from the end. Weights are read as the profile
        says, by comfyui's rules without one; what a whole run decides (AND, words that change, choices) is not looked at.
        """
        sizes: dict[str, Any] = {"size": size, "original": original, "crop": crop, "target": target, "aesthetic": aesthetic}
        part = script.Part(((text, text if text_2 is None else text_2),))
        teller = Teller(self.towers, self.family, profile or profiles.load_profile("comfyui"))
        return teller.course([part], sizes, depths).conds[0]

    def _table(self, rules: profiles.Profile) -> schedules.SigmaTable:
        return schedules.SigmaTable(rules.alphas, zero_terminal=self.family.zero_terminal)

    @torch.no_grad()
    @retry.named("sampling")
    @counted
    def sample(
        self,
        cond: Conditioning | Course,
        uncond: Conditioning | Course | None,
        x: Tensor,
        sigmas: Sequence[float],
        *,
        sampler: str,
        cfg: float,
        noise: Callable[[int, float, float], Tensor],
        on_step: OnStep | None = None,
        profile: profiles.Profile | None = None,
        schedule: str | None = None,
        speed: str = "exact",
    ) -> Tensor:
        """From x (B, 4, h, w) at sigmas[0] down the list to latents (B, 4, h, w).

        `cond` and `uncond` have 1 row, or B, or a number of rows that divides B: then each serves as many pictures, in order. A Course is
        several of them, side by side or one after the other. `uncond` may be None where cfg is 1. Without a profile it is comfyui's rules;
        `schedule` is what made the list, which some profiles ask; `speed` the tier. Raises InputError, and NumericError naming the step.
        """
        rules = profile or profiles.load_profile("comfyui")
        table = self._table(rules)
        solver = samplers.get(sampler, rules, table)
        x = x.to(self.device)
        told, away = course.sides(cond, uncond, cfg, both=solver.needs_uncond)
        guide = Guide(self._tiers.unet(self.unet, speed), self.family, rules, table, solver, schedule, cfg, x.shape[0])
        denoise = guide.approximate if speed == "approx" else guide.exact
        guard = Guard(sigmas)
        guided = guard.watch(denoise(told, away, samplers.evaluated(solver, sigmas)))
        widths = [tower.shape.width for tower in self.towers]
        for name, each in [("prompt", each) for each in told.conds] + [("negative", each) for each in (away.conds if away else ())]:
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
    @counted
    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, 4, h, w) -> image (B, 3, 8h, 8w) in [-1, 1], float32.

        Where the VAE's own dtype overflows, it is tried again in bfloat16, then float32, with a warning. Raises NumericError.
        """
        return autoencoding.decode(self.vae, z, self.keeper)[0]

    @torch.no_grad()
    @counted
    def encode_image(self, image: Tensor, *, mode: Literal["mode"] = "mode") -> Tensor:
        """image (B, 3, H, W) in [-1, 1] -> latents (B, 4, H/8, W/8) float32: the mode of the VAE's distribution."""
        if mode != "mode":
            raise InputError(f"encode_image mode {mode!r}: the choice is 'mode'")
        autoencoding.check_image(image, self.family.downscale)
        return autoencoding.encode(self.vae, image, self.keeper)


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
    max_memory: int | str | None = None,
    jobs: Sequence[Job] = (),
) -> Pipeline:
    """The model of a safetensors file in an official layout; no path: the model in the box.

    `device` is "auto", "cpu", "cuda" or "cuda:N"; `dtype` "auto" (float32 on the CPU, bfloat16 on CUDA), "float32", "bfloat16", "float16"
    or, on the CPU, "int8": float32 with the UNet's linear layers in 8 bits, a reduced tier; `vae` another file to take the VAE from;
    `vae_dtype` "auto" is float32 where the family asks for it, otherwise `dtype`; `progress(n, total)`: n more bytes of a file's `total`
    are read, first to verify it; `max_header` the largest header to accept, in bytes; `verify` holds the files against their known sha256
    first; `max_memory` is a limit in bytes, or such as "6GiB", under which `jobs` are made (without them, pictures of the family's own
    size): what does not fit is read from the file when its turn comes.
    Raises InputError for a file that is not what it should be, MemoryNeedError, as a rule before anything is allocated.
    """
    file = Path(path) if path is not None else weights() / BOX
    header = read_header(file, max_header)
    family = recognise(header)
    place = place_for(family, device, dtype, vae_dtype)
    apart = None if vae is None else read_header(vae, max_header)
    from ldm.runtime.plan import way as chosen

    way = chosen(header, family, place, max_memory, jobs)
    networks, keeper = read_weights(header, family, place, vae=apart, verified=verify, progress=progress, way=way)
    note_each(notes(header, family))
    return Pipeline(family, *networks, source=file.name, vae_source=None if apart is None else apart.path.name, keeper=keeper)
