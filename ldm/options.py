"""Every knob of a job, declared once: the command's flags, their help, the checks and the saved record derive from `Job`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ldm import values
from ldm.limits import SPEEDS


@dataclass(frozen=True)
class Knob:
    """How one field of `Job` appears to a user."""

    flags: tuple[str, ...]  # shown in the help
    aliases: tuple[str, ...]  # what other engines call it: accepted, not shown
    help: str
    parse: Callable[[str], Any] | None  # text to value, ValueError where it cannot; None: a switch without a value
    metavar: str
    saved: bool  # part of what makes the picture, so part of its record; the others are about this run
    repeats: bool


def _knob(
    default: Any,
    flags: str,
    text: str,
    parse: Callable[[str], Any] | None = str,
    *,
    also: str = "",
    value: str = "TEXT",
    saved: bool = True,
    repeats: bool = False,
) -> Any:
    knob = Knob(tuple(flags.split()), tuple(also.split()), text, parse, value, saved, repeats)
    return field(default=default, metadata={"knob": knob})


@dataclass(frozen=True)
class Job:
    """One call for pictures. None means: the family's default, then the profile's rule.

    In a finished job all that makes the picture is filled in; only `negative`, `overrides` and, beside a list of sigmas, `schedule` may
    still be None.
    """

    prompt: str = _knob("", "-p --prompt", "what the picture shows")
    negative: str | None = _knob(None, "-n --negative", "what it should not show; none given differs from empty", also="--negative-prompt")
    width: int | None = _knob(None, "-W --width", "in pixels", values.whole, value="N")
    height: int | None = _knob(None, "-H --height", "in pixels", values.whole, value="N")
    steps: int | None = _knob(None, "--steps", "sampling steps", values.whole, value="N")
    cfg: float | None = _knob(
        None, "--cfg", "guidance scale, 1 is none", values.number, also="--cfg-scale --guidance --guidance-scale --scale", value="X"
    )
    sampler: str | None = _knob(None, "--sampler", "sampler name", also="--sampling-method", value="NAME")
    schedule: str | None = _knob(None, "--schedule", "schedule name", also="--scheduler", value="NAME")
    sigmas: tuple[float, ...] | None = _knob(
        None, "--sigmas", "noise levels, falling, commas between; instead of a schedule", values.numbers, value="LIST"
    )
    seed: int | None = _knob(
        None, "-s --seed", "seed of the first picture, the k-th after it takes seed + k; or a list such as 1,2,5-9", values.seeds, value="N"
    )
    batch: int = _knob(1, "-b --batch", "pictures to make", values.whole, also="--batch-count --batch-size", value="N")
    profile: str = _knob("comfyui", "--profile", "the engine whose habits to follow", value="NAME")
    overrides: Mapping[str, str] | None = _knob(
        None, "--set", "change one field of the profile; may be repeated", values.assignment, value="FIELD=VALUE", repeats=True
    )
    original: tuple[int, int] | None = _knob(
        None, "--original-size", "size that the model is told the picture had", values.size, value="WxH"
    )
    crop: tuple[int, int] | None = _knob(None, "--crop", "corner that the model is told it was cropped at", values.point, value="LEFT,TOP")
    target: tuple[int, int] | None = _knob(None, "--target-size", "size that the model is told was asked for", values.size, value="WxH")
    negative_original: tuple[int, int] | None = _knob(
        None, "--negative-original-size", "the same for the negative", values.size, value="WxH"
    )
    negative_crop: tuple[int, int] | None = _knob(None, "--negative-crop", "the same for the negative", values.point, value="LEFT,TOP")
    negative_target: tuple[int, int] | None = _knob(None, "--negative-target-size", "the same for the negative", values.size, value="WxH")
    subseed: int | None = _knob(
        None, "--subseed", "variation seed; the k-th picture takes the k-th after it", values.whole, also="--variation-seed", value="N"
    )
    subseed_strength: float = _knob(
        0.0,
        "--subseed-strength",
        "from the seed's noise, 0, to the variation seed's, 1",
        values.number,
        also="--variation-strength",
        value="X",
    )
    seed_resize: tuple[int, int] | None = _knob(
        None, "--seed-resize", "the noise of a picture of this size, in the middle of this one's", values.size, value="WxH"
    )
    clip_skip: int | None = _knob(
        None, "--clip-skip", "which layer of the text towers is read; the profile says how it counts", values.whole, value="N"
    )
    prompt_2: str | None = _knob(None, "--prompt-2", "what the last text tower reads instead of the prompt")
    negative_2: str | None = _knob(None, "--negative-2", "the same instead of the negative", also="--negative-prompt-2")
    watermark: str = _knob(
        "none", "--watermark", "none, or sdxl: the invisible mark of its reference code", values.Choice("none", "sdxl"), value="NAME"
    )
    speed: str = _knob(
        "exact",
        "--speed",
        "exact; fp8: the linear layers in 8 bits (GPU); approx: work is left out, the picture differs",
        values.Choice(*SPEEDS),
        value="NAME",
    )
    seeds: tuple[int, ...] | None = _knob(None, "", "a list of seeds, one picture each", None, saved=False)
    size: tuple[int, int] | None = _knob(None, "--size", "width and height in one word", values.size, value="WxH", saved=False)
    ar: float | None = _knob(
        None,
        "--ar",
        "width:height, as the nearest size that the model was trained on",
        values.ratio,
        also="--aspect-ratio",
        value="W:H",
        saved=False,
    )
    params: str | None = _knob(None, "--params", "a job as JSON in a file, - for stdin; flags go before it", value="FILE", saved=False)
    preset: str | None = _knob(None, "--preset", "a preset by name, or a TOML file; --params goes before it", value="NAME", saved=False)
    from_image: str | None = _knob(
        None, "--from-image", "make the picture of this file again; flags go before it", value="FILE", saved=False
    )
    from_file: str | None = _knob(
        None,
        "--from-file",
        "many jobs: a prompt file (.txt, .jsonl, .csv), - for stdin",
        also="--prompt-file",
        value="FILE",
        saved=False,
    )
    model: str | None = _knob(
        None, "-m --model", "model file or name; none: the model in the box", also="--ckpt", value="NAME", saved=False
    )
    vae: str | None = _knob(None, "--vae", "take the VAE from this file or name", value="NAME", saved=False)
    models_dir: tuple[str, ...] | None = _knob(
        None,
        "--models-dir",
        "where models are looked for by name; may be repeated (also LDM_MODELS_DIR)",
        value="FOLDER",
        saved=False,
        repeats=True,
    )
    device: str = _knob("auto", "--device", "auto, cpu, cuda or cuda:N", values.device, value="NAME", saved=False)
    dtype: str = _knob("auto", "--dtype", "auto, float32, bfloat16, float16 or int8 (CPU)", values.dtype, value="NAME", saved=False)
    vae_dtype: str = _knob(
        "auto", "--vae-dtype", "the VAE's; auto: float32 where the family asks for it (SDXL)", values.dtype, value="NAME", saved=False
    )
    output: str = _knob(
        "outputs", "-o --output", "a .png, .jpg, .webp or .avif file, or a folder", also="--outdir --output-dir", value="PATH", saved=False
    )
    name: str | None = _knob(None, "--name", "names in the folder, such as {date}/{index:05}-{seed}", value="PATTERN", saved=False)
    type: str = _knob(
        "png",
        "--type",
        "png, jpg, webp or avif, for pictures in a folder",
        values.Choice("png", "jpg", "webp", "avif"),
        value="NAME",
        saved=False,
    )
    quality: int | None = _knob(None, "--quality", "of jpg, webp and avif", values.whole, value="N", saved=False)
    latents: str | None = _knob(None, "--latents", "save the latents too (.safetensors)", value="FILE", saved=False)
    no_metadata: bool = _knob(False, "--no-metadata", "pictures that say nothing of how they were made", None, saved=False)
    no_hash: bool = _knob(False, "--no-hash", "no hash of the model in the picture's text", None, saved=False)
    overwrite: bool = _knob(False, "--overwrite", "replace named files that exist", None, saved=False)
    skip_existing: bool = _knob(
        False, "--skip-existing", "leave out pictures that are there, made by an equal job or under the name asked for", None, saved=False
    )
    resume: bool = _knob(False, "--resume", "go on where a run was left: make what no equal job has made in this folder", None, saved=False)
    loop: bool = _knob(False, "--loop", "keep the model and ask for prompt after prompt", None, also="--interactive", saved=False)
    max_memory: int | None = _knob(
        None,
        "--max-memory",
        "stay below so much memory, of the GPU where there is one, such as 8GiB; slower: weights are read when their turn comes",
        values.amount,
        value="SIZE",
        saved=False,
    )
    plan: bool = _knob(False, "--plan", "say what memory the run will take, stage by stage, and stop", None, saved=False)
    dry_run: bool = _knob(False, "--dry-run", "print the finished job as JSON and stop", None, saved=False)
    format: str = _knob(
        "human",
        "--format",
        "human: paths; json: an object a picture; quiet: paths alone",
        values.Choice("human", "json", "quiet"),
        value="NAME",
        saved=False,
    )
    quiet: bool = _knob(False, "-q --quiet", "no progress and no notes", None, saved=False)
    offline: bool = _knob(
        False, "--offline", "never use the network; only `ldm pull` ever does, so this changes nothing here", None, saved=False
    )
    max_header: int = _knob(
        16 * 2**20,
        "--max-header",
        "largest header of a model file to accept, in bytes or as 64MiB",
        values.amount,
        value="SIZE",
        saved=False,
    )
    verify: bool = _knob(False, "--verify", "check the model files against their known sha256 before they are loaded", None, saved=False)
    debug: bool = _knob(False, "--debug", "show the traceback of an error", None, saved=False)


KNOBS: dict[str, Knob] = {each.name: each.metadata["knob"] for each in fields(Job)}


def alone(job: Job, place: int) -> Job:
    """Picture `place` of a job as a job of its own: that of the next seed, or, between two seeds, of the same and the next variation seed.

    Source of the latter: stable-diffusion-webui `modules/processing.py`. A seed that is still to be drawn stays so.
    """
    name = "subseed" if job.subseed_strength else "seed"
    first = getattr(job, name)
    return replace(job, batch=1, **{name: first if first in (None, -1) else first + place})
