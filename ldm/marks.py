"""What a picture of a result says of its making: our record of it, and the same as other programs read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ldm
from ldm.diffusion import profiles
from ldm.files import name_of
from ldm.metadata import a1111, native
from ldm.metadata.native import Record
from ldm.pictures import Marks

if TYPE_CHECKING:
    from ldm.pipeline import Pipeline
    from ldm.results import Result


def marks_of(pipeline: Pipeline, result: Result, index: int = 0, model_sha256: str | None = None) -> Marks:
    """The marks of picture `index` of a result, for `ldm.pictures.save`. Paths stay out of them: only the files' own names.

    `model_sha256`: of the model's file, where it is known; it gives A1111's short hash too.
    """
    record = record_of(pipeline, result, index, model_sha256)
    rules = profiles.override(profiles.load_profile(record.job.profile), record.job.overrides or {})
    return Marks(a1111.write(a1111.from_record(record, rules)), native.write(record))


def record_of(pipeline: Pipeline, result: Result, index: int = 0, model_sha256: str | None = None) -> Record:
    """The record of picture `index` of a result."""
    import torch

    from ldm.runtime.quantise import precision

    return Record(
        job=result.job,
        seed=result.seeds[index],
        index=index,
        model=name_of(pipeline.source),
        family=pipeline.family.name,
        vae=None if pipeline.vae_source is None else name_of(pipeline.vae_source),
        device=str(pipeline.device),
        dtype=precision(pipeline.unet),
        torch=torch.__version__,
        version=ldm.__version__,
        stopped_at=result.stopped_at,
        model_sha256=model_sha256,
        vae_dtype=result.vae_dtypes[index],
    )
