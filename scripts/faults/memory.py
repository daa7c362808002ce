"""Rows B1, C1 and C2: a VAE that overflows in half precision, and memory that runs out at every allocation of a run in turn."""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import ldm
from ldm.devices import dtype_of
from ldm.errors import MemoryNeedError
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family, VAEShape, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.pipeline import Pipeline
from ldm.runtime import autoencoding, evaluation, retry
from ldm.runtime.tracking import Tracker
from scripts import synthetic
from scripts.faults import Figure

SCALES = (8, 16, 32, 64, 128, 256)
STREAM = 8_400.0  # what the residual stream reaches in every picture: times 8 it is beyond float16's 65,504
LEVEL = 127.5  # levels of 255 a unit of an image in [-1, 1]


def small_vae(seed: int = 0) -> VAE:
    """Two resolutions, drawn; pictures of it lie inside [-1, 1]."""
    vae = VAE(VAEShape(ch=16, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=8, scale=0.13025)).eval()
    return drawn(vae, seed)


def drawn(vae: VAE, seed: int = 0) -> VAE:
    """Weights that keep the spread; those of the norms and all biases near their usual values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            noise = (2 * torch.rand(weight.shape, generator=generator) - 1) * 3**0.5  # of one, and none far out: all must fit float16
            wide = weight.dim() > 1
            norm = "norm" in name and name.endswith("weight")
            weight.copy_(noise * (0.7 / weight[0].numel()) ** 0.5 if wide else 0.1 * noise + float(norm))
        for last in (vae.decoder.conv_out.weight, vae.decoder.conv_out.bias):
            last.mul_(0.4)
    return vae.requires_grad_(False)


def stretch(vae: VAE, factor: float, half: nn.Module | None = None) -> VAE:
    """The residual stream of the decoder, or of the other `half`, times `factor`, in place.

    What is added to the stream is scaled whole, a convolution on the stream itself only in its bias. The result stays the same, as
    every reader of the stream is a GroupNorm.
    """
    for name, module in (half or vae.decoder).named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.endswith(("conv_in", "conv2", "proj_out")):
            module.weight.mul_(factor)
            module.bias.mul_(factor)
        elif name.endswith(("nin_shortcut", "upsample.conv", "downsample.conv")):
            module.bias.mul_(factor)
    return vae


def peak(vae: VAE, z: Tensor) -> float:
    """The largest magnitude in the residual stream of a decode."""
    seen: list[float] = []
    hooks = [vae.decoder.norm_out, *(m for n, m in vae.decoder.named_modules() if n.endswith(("norm1", "attn_1.norm")))]
    held = [each.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max().item())) for each in hooks]
    vae.decode(z / vae.shape.scale)
    for each in held:
        each.remove()
    return max(seen)


@dataclass
class Overflow:
    """What many decodes of overflowing VAEs gave; distances from float32's result in levels of 255."""

    decodes: int = 0
    bad: int = 0  # black, or not finite
    changed: int = 0  # a dtype or weight of the VAE was another afterwards
    retried: int = 0
    most: float = 0.0
    total: float = 0.0
    beyond: int = 0  # pictures with a value more than one level away
    most_full: float = 0.0  # where bfloat16 is taken out, so that float32 is the next try

    @property
    def mean(self) -> float:
        return self.total / max(self.decodes, 1)


@torch.no_grad()
def overflow(count: int) -> Overflow:
    """`count` decodes of float16 VAEs whose stream overflows, by each of SCALES in turn; every tenth is broken off in its second try."""
    base, seen = small_vae(), Overflow()
    stretch(base, STREAM / min(peak(base, latents(seed)) for seed in range(count)))
    assert max(weight.abs().max().item() for weight in stretch(copy.deepcopy(base), max(SCALES)).parameters()) < 65504
    halves = [stretch(copy.deepcopy(base), scale).half() for scale in SCALES]
    pairs = [(half, copy.deepcopy(half).float()) for half in halves]
    for number in range(count):
        half, full = pairs[number % len(pairs)]
        before = fingerprint(half)
        if number % 10 == 0:
            _broken_off(half, latents(number))
        _compare(seen, half, full, latents(number))
        seen.changed += fingerprint(half) != before
    return seen


def latents(seed: int) -> Tensor:
    """Of a small picture."""
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return noise * 0.8 / noise.std()


def fingerprint(module: nn.Module) -> str:
    """Of all weights with their dtypes."""
    found = hashlib.sha256()
    for name, weight in module.state_dict().items():
        found.update(f"{name} {weight.dtype}".encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _broken_off(vae: VAE, z: Tensor) -> None:
    """A decode that an error ends in the wider copy."""

    def stop(module: nn.Module, _args: Any) -> None:
        if dtype_of(module) != torch.float16:
            raise KeyError("stop")

    hook = vae.decoder.norm_out.register_forward_pre_hook(stop)
    with warnings.catch_warnings(), contextlib.suppress(KeyError):
        warnings.simplefilter("ignore")
        autoencoding.decode(vae, z)
        raise AssertionError("the hook was not reached")
    hook.remove()


def _compare(seen: Overflow, half: VAE, full: VAE, z: Tensor) -> None:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        image = autoencoding.decode(half, z)[0]
    away = (image - autoencoding.decode(full, z)[0]).abs() * LEVEL
    seen.decodes += 1
    seen.retried += any("decoding again in bfloat16" in str(each.message) for each in notes)
    seen.bad += not bool(image.isfinite().all()) or bool((image == image.flatten()[0]).all())
    seen.most = max(seen.most, away.max().item())
    seen.total += away.mean().item()
    seen.beyond += bool((away > 1).any())
    with autoencoding.widened(half, torch.float32) as last:  # the third try
        exact = autoencoding.decode(last, z)[0]
    seen.most_full = max(seen.most_full, (exact - autoencoding.decode(full, z)[0]).abs().max().item() * LEVEL)


def b1(count: int | None = None) -> Figure:
    """A VAE that overflows in float16."""
    seen = overflow(count or 1000)
    words = (
        f"{seen.bad} black or not finite of {seen.decodes}, {seen.retried} tried again in bfloat16, {seen.changed} changed the VAE; "
        f"bfloat16 from float32: {seen.most:.2f} levels of 255 at most, {seen.mean:.2f} in the mean, {seen.beyond} pictures beyond 1; "
        f"the float32 try: {seen.most_full:.2g} at most"
    )
    good = not seen.bad and not seen.changed and seen.retried == seen.decodes and seen.most <= 1
    return Figure("0 black of 1,000, within 1 level of float32, VAE unchanged", words, good)


def minimal() -> Family:
    """One level, one tower of one layer: the shortest run."""
    family = load_family("sdxl-base")
    tower = replace(family.towers[0], width=8, layers=1, heads=2, mlp=16)
    narrow = {"model_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "transformer_depth": (1,), "middle_depth": 0}
    unet = replace(family.unet, **narrow, head_dim=8, context_dim=8, vector_dim=0, norm_groups=4)
    vae = replace(family.vae, ch=8, ch_mult=(1,), num_res_blocks=1, norm_groups=4)
    return replace(family, name="minimal", numbers=(), unet=unet, vae=vae, towers=(tower,))


JOB: dict[str, Any] = {"width": 16, "height": 16, "steps": 2, "cfg": 4.0, "sampler": "euler_a", "schedule": "karras", "seed": 5}


def pipeline() -> Pipeline:
    """A pipeline of the minimal family; its weights are those of a seed."""
    family = minimal()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, vae, towers = UNet(family.unet), VAE(family.vae), [CLIPText(shape) for shape in family.towers]
    for module in (unet, vae, *towers):
        module.eval().requires_grad_(False)
    return Pipeline(family, unet, vae, towers, source="minimal")


def picture(made: Pipeline) -> str:
    """The fingerprint of the job's latents and picture."""
    result = made.generate("a cat", "a dog", **JOB)
    return hashlib.sha256(result.latents.numpy().tobytes() + result.images[0].tobytes()).hexdigest()


def picture_of_a_fresh_process() -> str:
    code = "from scripts.faults.memory import picture, pipeline; print(picture(pipeline()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return done.stdout.strip()


def cuda_error() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB of which 1.00 GiB is free.")


def cpu_error() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")


class Failing(Tracker):
    """An allocator that refuses the allocation number `at`, and all after it where `lasting`."""

    def __init__(self, at: int, error: Callable[[], Exception], lasting: bool = False) -> None:
        super().__init__()
        self.at, self.error, self.lasting = at, error, lasting
        self.refused = 0
        self.held = 0  # when it refused first

    def allocated(self, nbytes: int) -> None:
        super().allocated(nbytes)
        if self.allocations == self.at or (self.lasting and self.allocations > self.at):
            self.held = self.held or self.live - nbytes
            self.refused += 1
            raise self.error()


@dataclass
class Shortage:
    """What many runs with a failing allocation gave."""

    runs: int = 0
    succeeded: int = 0
    named: int = 0  # ended in a MemoryNeedError of code E4002
    unnamed: list[str] = field(default_factory=list)  # anything else
    silent: int = 0  # succeeded without a note
    different: int = 0  # the next picture was not that of a fresh process
    leaked: int = 0  # bytes, at most
    freed: float = 1.0  # the least share of what a failed attempt held that its retry found free
    retries: int = 0

    def add(self, failing: Failing, run: Callable[[], object]) -> None:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            try:
                with failing:
                    run()
                ended = ""
            except MemoryNeedError as error:
                ended = error.code
            except Exception as error:
                ended = repr(error)
        self.runs += 1
        self.succeeded += not ended
        self.named += ended == "E4002"
        self.unnamed += [f"allocation {failing.at}: {ended}"] if ended not in ("", "E4002") else []
        self.silent += not ended and not any("out of memory" in str(each.message) for each in notes)
        gc.collect()
        self.leaked = max(self.leaked, failing.live)


@contextmanager
def watched(failing: Failing, seen: Shortage) -> Iterator[None]:
    """Sees how much of a failed attempt is free when its retry starts."""
    plain = retry.once_more

    def once_more(stage: str, run: Callable[[], Any], again: Callable[[], Any], path: str = retry.AGAIN) -> Any:
        start = failing.live

        def second() -> Any:
            held = failing.held - start
            if held > 0:
                seen.freed = min(seen.freed, (failing.held - failing.live) / held)
            seen.retries += 1
            return again()

        return plain(stage, run, second, path)

    attempt = partial(once_more, *evaluation.ATTEMPT.args, **evaluation.ATTEMPT.keywords)
    with mock.patch.object(retry, "once_more", once_more), mock.patch.object(evaluation, "ATTEMPT", attempt):
        yield


def allocations(run: Callable[[], object]) -> int:
    """How many there are in a run."""
    with Tracker() as tracker:
        run()
    return tracker.allocations


def shortage(count: int | None, lasting: bool = False) -> Shortage:
    """A run with every allocation refused in turn, or with `count` of them, evenly spread; the two kinds of error alternate."""
    made, seen, fresh = pipeline(), Shortage(), picture_of_a_fresh_process()
    run = partial(picture, made)
    assert run() == fresh
    gc.collect()
    gc.freeze()  # what is there already is not looked through again: a collection at every failure is most of the time
    try:
        for number, at in enumerate(spread(allocations(run), count)):
            failing = Failing(at, (cpu_error, cuda_error)[number % 2], lasting)
            with watched(failing, seen):
                seen.add(failing, run)
            seen.different += run() != fresh
    finally:
        gc.unfreeze()
    return seen


def spread(total: int, count: int | None) -> list[int]:
    """1 to `total`, or `count` of them, evenly spread."""
    wanted = total if count is None else min(count, total)
    return sorted({1 + number * total // wanted for number in range(wanted)})


def loading(count: int | None) -> Shortage:
    """As `shortage`, while a model is loaded."""
    seen = Shortage()
    with tempfile.TemporaryDirectory() as folder:
        path = synthetic.write(Path(folder) / "tiny.safetensors", minimal(), dtype="F16")
        run = partial(ldm.load, path, device="cpu")
        for number, at in enumerate(spread(allocations(run), count)):
            seen.add(Failing(at, (cpu_error, cuda_error)[number % 2]), run)
    return seen


def c1(count: int | None = None) -> Figure:
    """Memory that runs out once, or from then on, at every allocation of a picture and of a load."""
    few = 80 if count is None else count // 4
    once, lasting, load = shortage(count), shortage(few, lasting=True), loading(few)
    runs = (once, lasting, load)
    wrong = [each for seen in runs for each in seen.unnamed]
    words = (
        f"{once.runs} allocations refused once: {once.succeeded} pictures after a note, {once.named} E4002; {lasting.runs} from then on: "
        f"{lasting.named} E4002; {load.runs} of a load: {load.named} E4002; {len(wrong)} other ends {wrong[:3]}; the next picture differs "
        f"{once.different + lasting.different} times from a fresh process's; {max(seen.leaked for seen in runs)} bytes leaked at most"
    )
    good = not wrong and not any(seen.silent or seen.different for seen in runs) and max(seen.leaked for seen in runs) <= 2**20
    return Figure("all: a picture with a note or E4, the next picture the same bits, at most 1 MiB leaked", words, good)


def c2(count: int | None = None) -> Figure:
    """What a failed attempt still holds when its retry starts."""
    seen = shortage(count)
    words = f"{seen.retries} retries, each with at least {100 * seen.freed:.1f} % of the failed attempt's bytes free"
    return Figure("98 % or more", words, seen.retries > 0 and seen.freed >= 0.98)


