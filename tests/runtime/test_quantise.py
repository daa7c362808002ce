"""The reduced tier of the CPU: how far it is from float32, what it shares and lets go, where it is refused, and what is written of it."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import ldm
from ldm.commands.sample import dtype_word
from ldm.devices import place_for
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.models.unet import TransformerBlock, UNet
from ldm.ops.fp8 import LinearFP8
from ldm.ops.int8 import LinearInt8
from ldm.pipeline import Pipeline
from ldm.runtime.quantise import Kind, precision, quantise, sites

SMALL = {"width": 128, "height": 128, "steps": 6}


@pytest.fixture(scope="module")
def exact() -> Pipeline:
    return ldm.load()


@pytest.fixture(scope="module")
def reduced() -> Pipeline:
    return ldm.load(dtype="int8")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def evaluate(unet: UNet, pipeline: Pipeline, seed: int = 0) -> Tensor:
    """One call at the middle of the way, two rows."""
    text = pipeline.encode("a red apple", size=(128, 128))
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    out: Tensor = unet(x, unet.prepare(text.context.repeat(2, 1, 1), text.vector.repeat(2, 1), [500.0]), 0)
    return out


class Distance(NamedTuple):
    """Of a tier from the exact one."""

    call: float  # relative error of one evaluation
    latents: float  # and of what a run gives
    psnr: float  # of its picture, in dB


def distance(ours: Pipeline, exact: Pipeline, seed: int) -> Distance:
    runs = [each.generate("a red apple", seed=seed, **SMALL) for each in (ours, exact)]  # type: ignore[arg-type]
    pixels = [np.asarray(run.images[0]).astype(float) for run in runs]
    call = relative_error(evaluate(ours.unet, ours, seed), evaluate(exact.unet, exact, seed))
    psnr = 10 * math.log10(255**2 / max(float(((pixels[0] - pixels[1]) ** 2).mean()), 1e-9))
    return Distance(call, relative_error(runs[0].latents, runs[1].latents), psnr)


def test_the_error_of_the_tier(exact: Pipeline, reduced: Pipeline) -> None:
    found = [distance(reduced, exact, seed) for seed in range(4)]
    for seed, each in enumerate(found):
        print(f"int8, seed {seed}: call {each.call:.2e}, latents {each.latents:.2e}, picture {each.psnr:.1f} dB")
    assert all(each.call < 0.005 and each.latents < 0.05 and each.psnr > 28 for each in found)
    assert all(each.call > 1e-4 for each in found)  # or nothing was quantised


def test_the_same_bits_for_any_threads(reduced: Pipeline) -> None:
    torch.set_num_threads(1)
    alone = evaluate(reduced.unet, reduced)
    for count in (2, 3, 4):
        torch.set_num_threads(count)
        assert torch.equal(evaluate(reduced.unet, reduced), alone)


@pytest.mark.parametrize(("kind", "layer"), [("int8", LinearInt8), ("fp8", LinearFP8)])
def test_what_is_quantised_and_what_is_shared(exact: Pipeline, kind: Kind, layer: type[torch.nn.Module]) -> None:
    before = {name: each.data_ptr() for name, each in exact.unet.state_dict().items()}
    made = quantise(exact.unet, kind)
    assert relative_error(evaluate(made, exact), evaluate(exact.unet, exact)) < {"int8": 0.005, "fp8": 0.02}[kind]
    blocks = [each for each in made.modules() if isinstance(each, TransformerBlock)]
    assert sum(isinstance(each, layer) for each in made.modules()) == 8 * len(blocks) and not [s for b in blocks for s in sites(b)]
    assert all(isinstance(block.attn2.to_k, torch.nn.Linear) for block in blocks)
    assert {name: each.data_ptr() for name, each in exact.unet.state_dict().items()} == before
    assert all(before[name] == each.data_ptr() for name, each in made.named_parameters())
    with pytest.raises(InputError, match="rounded"):
        made.state_dict()


def test_the_floats_leave_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr("ldm.runtime.heap.trim", lambda: trimmed.append(1))
    pipeline = ldm.load(dtype="int8")
    assert trimmed  # what quantising has freed goes back to the system
    gc.collect()
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in pipeline.unet.parameters()}
    own = sum(each.nbytes for each in pipeline.unet.parameters())
    assert own <= sum(storages.values()) < 1.01 * own
    gone = weakref.ref(pipeline.unet)
    pipeline.close()
    assert next(pipeline.unet.parameters()).is_meta
    del pipeline
    gc.collect()
    assert gone() is None


def test_its_name_stands_where_the_dtype_does(reduced: Pipeline, exact: Pipeline) -> None:
    assert (dtype_word(reduced), precision(reduced.unet), reduced.dtype) == ("int8", "int8", torch.float32)
    assert dtype_word(exact) == "float32"


def test_the_record_of_a_picture_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from ldm.commands import main

    monkeypatch.chdir(tmp_path)
    assert main(["sample", "-p", "a red apple", "--dtype", "int8", "--steps", "2", "-q", "-o", "a.png"]) == 0
    record = json.loads(Image.open("a.png").info["ldm"])
    assert record["dtype"] == "int8" and record["vae_dtype"] == "float32"


def test_it_is_refused_where_it_cannot_be(reduced: Pipeline, exact: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="stays on the CPU"):
        reduced.to(dtype="bfloat16")
    with pytest.raises(InputError, match="max_memory"):
        ldm.load(dtype="int8", max_memory="4GiB")
    with pytest.raises(InputError, match="did you mean int8"):
        ldm.load(dtype="int9")
    with pytest.raises(InputError, match="dtype 'int8' is not known"):
        ldm.load(vae_dtype="int8")
    monkeypatch.setattr("ldm.devices.device_named", lambda name: torch.device("cuda"))
    with pytest.raises(InputError, match="for the CPU"):
        place_for(exact.family, "cuda", "int8")
    for kind, name in (("int8", "dtype int8"), ("fp8", "speed fp8")):
        with torch.device("meta"), pytest.raises(InputError, match=f"^{name}: .*max-memory"):
            quantise(UNet(exact.family.unet), kind)  # type: ignore[arg-type]
    handle = exact.unet.middle_block[1].transformer_blocks[0].attn1.to_q.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, index]
    with pytest.raises(InputError, match="hook"):
        quantise(exact.unet, "int8")
    handle.remove()
