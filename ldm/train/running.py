"""A run of `TuneRecipe` from a loaded model: prepared, trained, watched, and written as the file that others load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ldm.checkpoint.leftovers import TEXT_PROJECTION
from ldm.checkpoint.licences import carried
from ldm.checkpoint.loading import DTYPES
from ldm.checkpoint.lora import lora_items
from ldm.checkpoint.safetensors import Header, stamp
from ldm.checkpoint.writer import HASH, Item, save, tensor_items
from ldm.errors import FileError, InputError
from ldm.ops.conv import let_go
from ldm.runtime.retry import free_unused, named
from ldm.train.loop import Task, Trainer
from ldm.train.sealed import writing
from ldm.train.state import OTHER, refuse_other
from ldm.train.tune import TuneRecipe, TuneTask, check

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline
    from ldm.train.loop import Limits
    from ldm.train.recipe import LoraRecipe
    from ldm.train.sources import Found

# ModelSpec's and kohya's names of the families, and what a LoRA of them is called there.
KNOWN = {
    "sdxl-base": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "sdxl-refiner": ("stable-diffusion-xl-v1-refiner", "sdxl_base_v1-0"),
    "sdxl-turbo": ("stable-diffusion-xl-turbo-v1", "sdxl_base_v1-0"),
}

ZERO_TERMINAL = "ztsnr"
FREE = ("steps", "lr", "warmup", "final", "clip", "ema")  # of the optimiser's numbers: a run may go on with others
TAGS = 2**20  # bytes of the most frequent ones in a LoRA's header


class Tuning(Task, Protocol):
    """A task on a loaded model."""

    @property
    def learns_from(self) -> list[str]:
        """What decides the data, beside the recipe."""

    def said(self) -> str:
        """Of the data, in words."""

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was trained, under the names of an official file."""


@dataclasses.dataclass
class Run:
    """A trainer and the model that it moves. The pipeline shows the weights as they are being trained."""

    pipeline: Pipeline
    recipe: TuneRecipe
    task: Tuning
    trainer: Trainer

    @contextmanager
    def averaged(self) -> Iterator[Pipeline]:
        """The pipeline with the moving average in the place of the weights; what the pictures keep in memory is let go after them."""
        own, mean = self.task.module.state_dict(keep_vars=True), self.trainer.ema.mean
        try:
            _exchange((own[name], mean[name]) for name in mean)
            yield self.pipeline
        finally:
            _exchange((own[name], mean[name]) for name in reversed(mean))
            for network in (self.pipeline.unet, self.pipeline.vae, *self.pipeline.towers):
                let_go(network.parameters())
            free_unused()


def _exchange(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One for the other where they lie, without a copy: no memory is needed that could run out."""
    for one, other in pairs:
        one.data, other.data = other.data, one.data


def start(pipeline: Pipeline, recipe: TuneRecipe, found: Found, folder: Path, *, resume: bool, limits: Limits) -> Run:
    """Prepare the data and take up or begin a run in `folder`. Raises InputError where one is there and `resume` is not asked for.

    A state is tied to the recipe, the model and the data: it is refused under others before anything is encoded or written.
    """
    if recipe.zero_terminal:  # so are the samples' noise levels
        check(pipeline.family, recipe)
        pipeline.family = dataclasses.replace(pipeline.family, zero_terminal=True)
    states = folder / "tune"
    if any(states.glob("state-*")) and not resume:
        raise InputError(f"{states} holds a run: continue it with --resume, or give another --out")
    for line in _passed_over(found, recipe):
        limits.say(line)
    origin = f"{_settled(recipe)} {_known_by(pipeline)} {_pictured(found)}"  # of the model before it is adapted
    refuse_other(states, origin, OTHER)
    with named("preparing the run", "take a smaller pictures.size, or --device cpu"):
        task = task_of(pipeline, recipe, found, folder, limits, lambda used: refuse_other(states, f"{origin} {_digest(used)}", OTHER))
        whole = f"{origin} {_digest(task.learns_from)}"
        trainer = Trainer(task, recipe.optim, states, limits.say, origin=whole, shard=limits.shard, precision=recipe.precision)
    resumed = resume and trainer.resume()
    count = sum(parameter.numel() for parameter in task.module.parameters() if parameter.requires_grad)
    where = f"resumed at step {trainer.step}" if resumed else "from step 0"
    limits.say(f"{recipe.train}: {count:,} values, {task.said()}, {where}")
    return Run(pipeline, recipe, task, trainer)


def _passed_over(found: Found, recipe: TuneRecipe) -> Iterator[str]:
    """What the source says of the run and the recipe says otherwise."""
    taken = {"size": recipe.pictures.size, "step": recipe.pictures.step, "batch": recipe.optim.batch}
    return (
        f"the dataset file's {name} {value} is left out: the recipe has {taken[name]}"
        for name, value in found.hints.items()
        if value != taken[name]
    )


def task_of(
    pipeline: Pipeline, recipe: TuneRecipe, found: Found, folder: Path, limits: Limits, same: Callable[[list[str]], None]
) -> Tuning:
    """What the recipe trains; latents and features are kept in `folder`, once `same` was called with what decides the data."""
    from ldm.train.prepared import prepare

    if recipe.vae is not None:
        from ldm.train.reconstructing import WindowsTask

        return WindowsTask(pipeline.family, pipeline.vae, found, recipe, recipe.vae, limits.say)
    late = limits.over if limits.minutes else limits.stop  # without a minute the data are prepared, and no more
    data = prepare(folder, found, pipeline.vae, recipe.pictures, recipe.seed, limits.say, late=late, check=same)
    if recipe.train == "towers":
        from ldm.train.matching import MatchingTask

        return MatchingTask(pipeline.family, pipeline.towers, data, recipe)
    return TuneTask(pipeline.family, pipeline.unet, pipeline.towers, data, recipe, limits.say)


def _settled(recipe: TuneRecipe) -> str:
    """A digest of the recipe but for the names of files, how fast it learns, and what a step that is too large is cut by.

    Towers tell the captions of a batch apart: its size is settled.
    """
    said = dataclasses.asdict(recipe) | {"model": None, "data": None, "checkpointing": None}
    said["optim"] = {name: value for name, value in said["optim"].items() if name not in FREE}
    if recipe.train != "towers":
        said["optim"] |= {"batch": recipe.optim.pictures, "accumulate": None}
    return _digest(said)


def _pictured(found: Found) -> str:
    """A digest of the pictures' names and captions, their order and repeats."""
    return _digest([(each.name, each.caption, each.repeats, each.keep) for each in found.examples])


def _digest(said: object) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _known_by(pipeline: Pipeline) -> str:
    """sha256 of the first values of every tensor: no two models that were trained apart share them all, and it takes no time."""
    digest = hashlib.sha256(pipeline.family.name.encode())
    for module in (pipeline.unet, pipeline.vae, *pipeline.towers):
        for name, value in module.state_dict().items():
            first = (value[0] if value.dim() > 1 else value).reshape(-1)[:64].float().cpu()
            digest.update(name.encode() + first.numpy().tobytes())
    return digest.hexdigest()


def write(run: Run, base: Header, path: Path, *, overwrite: bool = False) -> str:
    """The moving average as a file that other programs load: a LoRA in kohya's layout, or the model with what was trained in its place.

    Everything else of the model stands in the new file as it does in `base`. The line says what was written.
    Raises InputError where `path` exists and `overwrite` is false.
    """
    from ldm.train.adapting import pairs

    mean, lora = run.trainer.ema.mean, run.recipe.lora
    if lora is not None and isinstance(run.task, TuneTask):
        items, said = lora_items(pairs(run.task.adapted, mean), torch.float16), lora_metadata(run, run.task, lora)
    else:
        _bytes(base, 0, 0)  # before a long file is begun
        items, said = [*_replaced(base, run.task.official(mean)), *_markers(run.recipe, base)], model_metadata(run, base)
    with writing(path, f"make room, or give another --export, and --resume: the run is in {run.trainer.folder}"):
        save(path, items, {**said, **carried([base])}, overwrite=overwrite, digest=True)
    return f"{path}: {path.stat().st_size / 2**20:.1f} MiB, step {run.trainer.step}"


def _replaced(base: Header, new: Mapping[str, Tensor]) -> Iterator[Item]:
    """The tensors of `base`, those of `new` in the place of theirs and in their dtype."""
    spellings = {name + ending: name for name in new for ending in TEXT_PROJECTION}
    there = {spellings.get(name, name): entry for name, entry in base.tensors.items()}
    for name, value in new.items():
        yield from tensor_items({name: value}, DTYPES[there[name].dtype])
    yield from (_copied(base, name) for name in base.tensors if spellings.get(name, name) not in new)


def _markers(recipe: TuneRecipe, base: Header) -> Iterator[Item]:
    """What tells others, and this engine, that the noise levels end in noise alone: the empty tensor of NoobAI-XL and ComfyUI."""
    if recipe.zero_terminal and ZERO_TERMINAL not in base.tensors:
        yield Item(ZERO_TERMINAL, "F16", (0,), b"")


def _copied(base: Header, name: str) -> Item:
    """A tensor with the bytes that it has in the file."""
    entry = base.tensors[name]
    return Item(name, entry.dtype, entry.shape, lambda: _bytes(base, entry.start, entry.end))


def _bytes(base: Header, start: int, end: int) -> bytes:
    """Of the model's file. Raises FileError where it is gone, or of another size or date than when the run began."""
    try:
        with base.path.open("rb") as file:
            if stamp(os.fstat(file.fileno()))[2:] == base.stamp[2:]:
                file.seek(start)
                return file.read(end - start)
        why = "it was changed since the run began"
    except OSError as error:
        why = error.strerror or str(error)
    raise FileError(f"{base.path}: {why}: put the model back, or say with -m where it is, and --resume: the state is saved", "E3009")


def model_metadata(run: Run, base: Header) -> dict[str, str]:
    """What the file says of itself: what the old one said but for its hash and name, and how it was made."""
    told = {name: text for name, text in base.metadata.items() if name not in (HASH, "modelspec.title", "modelspec.description")}
    how = f"{base.path.stem}, {run.trainer.step} steps of up to {run.recipe.optim.pictures} pictures further"
    return {"format": "pt", **told, "modelspec.title": f"{base.path.stem} tuned", "modelspec.description": how}


def lora_metadata(run: Run, task: TuneTask, lora: LoraRecipe) -> dict[str, str]:
    """What other programs read of a LoRA: kohya's `ss_*` and ModelSpec 1.0.1. Source: sd-scripts `library/train_util.py`."""
    recipe = run.recipe
    family = run.pipeline.family
    spec, version = KNOWN.get(family.name, (family.name, family.name))
    tags = Counter(tag.strip() for row in task.data.rows for tag in task.data.captions[row].split(","))
    size, convolved = recipe.pictures.size, {"conv_dim": str(lora.rank), "conv_alpha": str(lora.alpha)}
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
        **({"ss_network_args": json.dumps(convolved)} if "convolution" in lora.targets else {}),
        "ss_base_model_version": version,
        "ss_sd_model_name": run.pipeline.source,
        "ss_learning_rate": str(recipe.optim.lr),
        "ss_steps": str(run.trainer.step),
        "ss_max_train_steps": str(recipe.optim.steps),
        "ss_total_batch_size": str(recipe.optim.pictures),
        "ss_seed": str(recipe.seed),
        "ss_mixed_precision": {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[recipe.precision],
        "ss_noise_offset": str(recipe.noise.offset),
        "ss_zero_terminal_snr": str(family.zero_terminal),
        "ss_num_train_images": str(len(task.data.rows)),
        "ss_resolution": f"({size}, {size})",
        "ss_tag_frequency": json.dumps({"pictures": frequent(tags)}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{spec}/lora",
        "modelspec.implementation": "sgm" if family.name in KNOWN else "ldm",
        "modelspec.title": Path(run.pipeline.source).stem + " LoRA",
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.prediction_type": family.prediction,
    }


def frequent(tags: Counter[str]) -> dict[str, int]:
    """The most frequent tags whose JSON has room in a header, the most frequent first."""
    kept, room = dict[str, int](), TAGS
    for tag, count in tags.most_common():
        size = len(json.dumps(json.dumps({tag: count}, ensure_ascii=False), ensure_ascii=False).encode())  # as it is escaped there
        if size <= room:
            kept[tag], room = count, room - size
    return kept
