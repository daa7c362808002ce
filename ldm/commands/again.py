"""`--from-image`: what is not as it was when the picture was made is said, and another model is taken only where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ldm
from ldm import catalogue, pictures
from ldm.commands.progress import Bar
from ldm.errors import InputError
from ldm.files import name_of
from ldm.metadata import native
from ldm.metadata.native import Record
from ldm.options import Job

Pair = tuple[str, str]  # (as it was, as it is)


def find(name: str | None, kind: str, folders: Sequence[Path], flags: Mapping[str, Any], picture: Mapping[str, Any] | None) -> str | None:
    """The file of a name; where the picture named it and it is not there, the error says so."""
    if name is None:
        return None
    try:
        return str(catalogue.find(name, kind, folders))
    except InputError as error:
        flag = "model" if kind == "checkpoint" else kind
        if flag in flags or not (picture or {}).get(flag):
            raise
        what = f"{flags['from_image']} was made with a {flag} that is not found: {error}; --{flag} takes another"
        raise InputError(what, error.code) from None


def differences(job: Job, flags: Mapping[str, Any]) -> list[str]:
    """One note that names what made the picture and what will make it, where they differ; none for a picture of another program.

    Raises InputError for a model file of the recorded name with another sha256, unless the command line names it.
    """
    path = flags["from_image"]
    texts = pictures.read(Path(path)).texts
    if native.KEY not in texts:
        return []
    record = native.read(texts[native.KEY])
    model = _model(record, job, path, asked="model" in flags)
    found = [pair for pair in (*_engine(record, job), model, _vae(record, job)) if pair[0] != pair[1]]
    if not found:
        return []
    then, now = (", ".join(each[side] for each in found) for side in (0, 1))
    return [f"{path} was made with {then}; here it is {now}: the picture can differ"]


def _engine(record: Record, job: Job) -> list[Pair]:
    import torch

    from ldm.devices import device_named

    device = f"device {device_named(job.device).type}"
    was = f"device {record.device.partition(':')[0]}"
    return [(f"ldm {record.version}", f"ldm {ldm.__version__}"), (f"torch {record.torch}", f"torch {torch.__version__}"), (was, device)]


def _vae(record: Record, job: Job) -> Pair:
    return f"VAE {record.vae or 'of the model'}", f"VAE {name_of(job.vae) if job.vae else 'of the model'}"


def _model(record: Record, job: Job, path: str, asked: bool) -> Pair:
    """Equal where the file is the same one by its digest, whatever its name is, or by its name where no digest is known."""
    from ldm.checkpoint.digests import autov2, cached_sha256
    from ldm.checkpoint.safetensors import read_header

    file = catalogue.find(job.model)
    if job.no_hash or record.model_sha256 is None:
        unknown = "its hash is not compared" if job.no_hash else "no hash of it is known"
        return (record.model, record.model) if record.model == file.name else (f"model {record.model}", f"{name_of(file)} ({unknown})")
    header = read_header(file, job.max_header)
    with Bar("checking the model", job.quiet, header.size, unit="B") as bar:
        digest = cached_sha256(header, lambda more: bar.count(more, header.size))
    if digest == record.model_sha256:
        return "", ""
    was, now = (f"{name} (sha256 {autov2(each)})" for name, each in ((record.model, record.model_sha256), (name_of(file), digest)))
    if not asked:
        raise InputError(f"{path} was made with {was}, and {file} is another file ({autov2(digest)}): name the one to take with --model")
    return f"model {was}", f"model {now}"
