"""The facts of a model file, from its header alone, as plain data: what `ldm info` shows and writes as JSON. No torch here.

All text of the file is a stranger's: it is cut to a length here, and made printable where it is shown.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ldm.checkpoint.families import notes, recognise
from ldm.checkpoint.identity import UNET, VAE, Identity
from ldm.checkpoint.kinds import identify, said_of_prediction
from ldm.checkpoint.leftovers import EMA, leftovers
from ldm.checkpoint.licences import licence
from ldm.checkpoint.safetensors import Header
from ldm.errors import InputError
from ldm.models.shapes import Family

LONGEST = 300  # characters of a value that is shown
MOST = 100  # keys or names that are listed
PARTS = (
    (UNET, "UNet"),
    (VAE, "VAE"),
    ("conditioner.embedders.0.", "text tower 1"),
    ("conditioner.embedders.1.", "text tower 2"),
    ("cond_stage_model.", "text tower"),
    (EMA, "EMA"),
)


def describe(header: Header) -> dict[str, Any]:
    """Everything, most important first; a checkpoint that is not run has `refused`, the sentence that says why, instead of `family`."""
    identity = identify(header)
    spare = leftovers(header.tensors)
    shown = sorted(name for name in spare if not name.startswith(f"{EMA}diffusion_model"))  # not the many names of a copy
    parts = _parts(header, identity, spare)
    return {
        "file": os.fspath(header.path),
        "kind": identity.kind,
        "model": identity.model,
        "layout": identity.layout,
        "title": identity.title,
        **_use(header, identity),
        "bytes": header.size,
        "header_bytes": header.data_start - 8,
        "tensors": len(header.tensors),
        "parameters": sum(parts.values()),
        "parts": parts,
        "dtypes": _dtypes(header),
        "licence": licence(header),
        "leftovers": {"count": len(spare), "names": shown[:MOST]},
        "metadata": shortened(header.metadata),
    }


def _use(header: Header, identity: Identity) -> dict[str, Any]:
    """What the engine does with the file."""
    if identity.kind != "checkpoint":
        return {"flag": identity.flag or None, "remedy": identity.remedy}
    try:
        family = recognise(header)
    except InputError as error:
        return {"flag": None, "refused": str(error).removeprefix(f"{header.path}: "), "remedy": identity.remedy}
    defaults = family.defaults.to_dict()
    told = {"prediction": family.prediction, "prediction_from": _source(header, family), "zero_terminal": family.zero_terminal}
    names = {"flag": "--model", "family": family.name, "family_title": family.title}
    return {**names, "defaults": defaults, **told, "notes": notes(header, family)}


def _source(header: Header, family: Family) -> str:
    if "v_pred" in header.tensors:
        return "the tensor v_pred"
    return "its metadata" if said_of_prediction(header) else f"the family {family.name}"


def _parts(header: Header, identity: Identity, spare: frozenset[str]) -> dict[str, int]:
    """Values in each part; what is no part of a network is not counted."""
    counts: Counter[str] = Counter()
    whole = identity.kind if identity.kind != "unknown" else "all"
    for name, entry in header.tensors.items():
        if name not in spare:
            counts[next((part for prefix, part in PARTS if name.startswith(prefix)), whole)] += math.prod(entry.shape)
    order = [part for _, part in PARTS]
    return dict(sorted(counts.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _dtypes(header: Header) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for entry in header.tensors.values():
        row = found.setdefault(entry.dtype, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += entry.end - entry.start
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def shortened(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata with ModelSpec's keys first; what is long (a thumbnail) by its size alone, and keys without number not at all."""
    ranked = sorted(metadata, key=lambda key: (not key.startswith("modelspec."), key))
    found = {key if len(key) <= LONGEST else f"{key[:LONGEST]}...": _short(metadata[key]) for key in ranked[:MOST]}
    return found | ({"...": f"and {len(ranked) - MOST:,} keys more"} if len(ranked) > MOST else {})


def _short(value: str) -> str:
    return value if len(value) <= LONGEST else f"({len(value.encode('utf-8', 'surrogatepass')):,} bytes, not shown)"
