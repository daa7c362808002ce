"""A training run on disk: weights, moving average and optimiser in one safetensors file, and a JSON beside it, written last.

The JSON holds the step and the file's sha256, so that a state without it, or one that does not match, counts as damaged and the one
before it is used. Randomness needs no state of its own: it is drawn from (seed, step).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from ldm.checkpoint.writer import content, tensor_items
from ldm.errors import InputError
from ldm.files import write_atomic

KEPT = 2  # states a stage


def save_state(folder: Path, step: int, tensors: dict[str, Tensor]) -> Path:
    """Write state `step` and remove the oldest ones. A process killed anywhere in here leaves the state before it whole.

    States of later steps, which a run that starts over after damage meets, are left alone and do not count.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    content(tensor_items(tensors))(buffer)
    data = buffer.getbuffer()
    path = folder / f"state-{step:08}.safetensors"
    record = {"step": step, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomic(path, lambda file: file.write(data), overwrite=True)
    write_atomic(path.with_suffix(".json"), lambda file: file.write(json.dumps(record).encode()), overwrite=True)
    kept = sorted(record.stem for record in folder.glob("state-*.json") if record.stem <= path.stem)[-KEPT:]
    for old in (file for file in folder.glob("state-*") if file.stem not in kept and file.stem < path.stem):
        old.unlink()
    return path


def load_state(folder: Path, say: Callable[[str], None]) -> tuple[int, dict[str, Tensor]] | None:
    """The newest whole state as (step, tensors), or None; a damaged one is named through `say` and passed over."""
    for record in sorted(folder.glob("state-*.json"), reverse=True):
        try:
            note = json.loads(record.read_text(encoding="utf-8"))
            data = record.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(data).hexdigest() == note["sha256"]:
                return int(note["step"]), load(data)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        say(f"{record.stem} is damaged: passed over")
    return None


def load_mean(folder: Path) -> dict[str, Tensor]:
    """The moving average of a stage's newest state. Raises InputError when the stage has not been trained."""
    found = load_state(folder, lambda _: None)
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
