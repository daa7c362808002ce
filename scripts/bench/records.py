"""The JSON of a run: machine, versions, date, command, and a row a measure. It is written after every row, so that a later run goes on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError
from ldm.files import write_atomic

if TYPE_CHECKING:
    import torch

SCHEMA = 1
STATES = ("measured", "void", "failed", "not measured", "running")
PACKAGES = ("torch", "triton", "diffusers", "transformers")
Record = dict[str, Any]
Row = dict[str, Any]


def machine(device: torch.device) -> Record:
    """Its name, as a file's too, and what else decides the times."""
    import torch

    from ldm.ops.choice import slug

    processor = f"{_processor()}, {os.cpu_count()} cores, {_memory():.0f} GiB"
    if device.type != "cuda":
        return {"name": processor, "slug": slug(processor), "device": "cpu", "threads": torch.get_num_threads()}
    name = torch.cuda.get_device_name(device)
    found = torch.cuda.get_device_properties(device)
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    return {"name": name, "slug": slug(name), "device": "cuda", "memory": memory, "host": processor, "driver": _driver()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _driver() -> str:
    return asked_of_the_card("driver_version") or "not known"


def asked_of_the_card(what: str) -> str | None:
    """What nvidia-smi says; nothing is ever set by it."""
    try:
        command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def versions() -> dict[str, str]:
    import torch

    made = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            made[name] = version(name)
        except PackageNotFoundError:
            made[name] = "not installed"
    return made | {"torch": torch.__version__}


def state_of(device: torch.device) -> str:
    """How busy the machine is: beside every row, before and after."""
    if device.type == "cuda":
        return asked_of_the_card("clocks.sm,power.draw,temperature.gpu") or "not known"
    return f"load {os.getloadavg()[0]:.2f}"


def fresh(device: torch.device, command: str, *, small: bool) -> Record:
    head = {"schema": SCHEMA, "machine": machine(device), "versions": versions(), "small": small}
    return {**head, "command": command, "date": today(), "rows": {}}


def today() -> str:
    return datetime.date.today().isoformat()


def load(path: Path) -> Record:
    """Raises InputError for what is no record."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no record of measures ({error}): give another --json") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("rows"), dict):
        raise InputError(f"{path}: no record of measures of schema {SCHEMA}: give another --json")
    return found


def going_on(path: Path, head: Record) -> Record:
    """The record of `path` to add to, or a new one. Raises InputError where it is of another machine or other versions."""
    if not path.exists():
        return head
    found = load(path)
    there, here = identity(found), identity(head)
    if there != here:
        raise InputError(f"{path}: it is of {there}, this is {here}: give another --json")
    return found | {key: head[key] for key in ("machine", "versions", "date", "command")}


def identity(record: Mapping[str, Any]) -> str:
    """What the rows of one record must share."""
    machine, said = record.get("machine", {}), record.get("versions", {})
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    return f"{machine.get('name')}{threads}, torch {said.get('torch')}" + (", tiny sizes" if record.get("small") else "")


def save(path: Path, record: Record) -> None:
    text = json.dumps(record, indent=1, allow_nan=False, default=str) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()), overwrite=True)


def finite(value: Any) -> Any:
    """JSON has no NaN: it is a word here."""
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def name(record: Mapping[str, Any]) -> str:
    """Of the machine, as a file's."""
    return str(record["machine"]["slug"])
