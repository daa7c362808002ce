"""A training run on disk: weights, moving average and optimiser, sealed, so that a state is whole or does not count.

Randomness needs no state of its own: it is drawn from (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.jobs.leftovers import sweep
from ldm.train.sealed import WHOLE, read_note, seal, unseal

KEPT = 2  # states a stage
# What a run is of, a word each in its origin, and how a state of another one is called.
PARTS = ("another recipe", "another model", "other data", "data of which other pictures could be opened")
OTHER = "go on with what it was begun with, or give another --out"
OTHER_STAGES = "built on another VAE, or other towers, than are there now: remove its folder and train it anew, or give another --out"
STEM = len("state-00000000")


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], shard: int = WHOLE, origin: str = "") -> list[Path]:
    """Write state `step`; remove the oldest ones, and what killed processes had begun. One killed in here leaves the state before it whole.

    States of later steps, which a run that starts over after damage meets, are left alone and do not count. `shard`: bytes of a file;
    `origin`: of what run it is. Raises LdmError where the disk fails, which says what state is left.
    """
    record = folder / f"state-{step:08}.json"
    last = max((each.stem for each in folder.glob("state-*.json") if each.stem <= record.stem), default="")
    remedy = f"make room, then continue with --resume from {last}" if last else "make room, then begin again: no state was written before"
    files = seal(record, tensors, {"step": step, "origin": origin}, shard, remedy)
    kept = sorted(each.stem for each in folder.glob("state-*.json") if each.stem <= record.stem)[-KEPT:]
    for old in (file for file in folder.glob("state-*") if file.name[:STEM] not in kept and file.name[:STEM] < record.stem):
        old.unlink()
    sweep(folder)
    return files


def refuse_other(folder: Path, origin: str, why: str = OTHER_STAGES) -> None:
    """InputError where the newest state of which there is a record is of another origin than `origin`, and both say one.

    The first words of an origin may be given alone, before the others are known.
    """
    for record in sorted(folder.glob("state-*.json"), reverse=True):
        note = read_note(record)
        if note is not None:
            _refuse(record, note, origin, why)
            return


def _refuse(record: Path, note: Mapping[str, Any], origin: str, why: str) -> None:
    words = zip(PARTS, str(note.get("origin") or "").split(), origin.split(), strict=False)
    differing = " and ".join(part for part, there, here in words if there != here)
    if differing:
        raise InputError(f"{record}: of {differing}: {why}" if why == OTHER else f"{record}: {why}")


def load_state(folder: Path, say: Callable[[str], None], origin: str = "", why: str = OTHER) -> tuple[int, dict[str, Tensor]] | None:
    """The newest whole state as (step, tensors), or None; a damaged one is named through `say` and passed over.

    Raises InputError for a state of another origin than `origin`, where both say one.
    """
    for record in sorted(folder.glob("state-*.json"), reverse=True):
        found = unseal(record)
        if found is not None and isinstance(found[0].get("step"), int):
            _refuse(record, found[0], origin, why)
            return found[0]["step"], found[1]
        say(f"{record.stem} is damaged: passed over")
    return None


def load_mean(folder: Path, origin: str = "") -> dict[str, Tensor]:
    """The moving average of a stage's newest state. Raises InputError when the stage has not been trained, or not upon `origin`."""
    found = load_state(folder, lambda _: None, origin, OTHER_STAGES)
    if found is None:
        raise InputError(f"{folder}: no trained state: train the stage {folder.name!r} first")
    return part(found[1], "ema.")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `<parameter's index>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser its state back, each tensor in the memory layout of its parameter, which fused steps rely on."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        own = value if name == "step" else torch.empty_like(parameters[int(index)].detach()).copy_(value)
        state.setdefault(int(index), {})[name] = own
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
