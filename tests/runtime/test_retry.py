"""Out of memory: recognised, tried once more, named; nothing else is."""

from __future__ import annotations

import errno
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.diffusion.prediction import Prediction
from ldm.errors import InputError, MemoryNeedError, NumericError
from ldm.measure import relative_error
from ldm.models.prepared import Prepared
from ldm.pipeline import Pipeline
from ldm.runtime import retry
from scripts.faults import memory as faults

CUDA = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has 139 GiB of which 3.25 GiB is free."
CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2199023255552 bytes. Error code 12"


def raising(*errors: BaseException) -> Callable[[], str]:
    """Raises each in turn, then returns."""
    left = list(errors)

    def run() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return run


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(CUDA), r"a stage: out of memory \(20.50 GiB more asked for, 3.25 GiB free\): "),
        (RuntimeError(CPU), r"a stage: out of memory \(2199.0 GB more asked for, .* free\): "),
        (RuntimeError("std::bad_alloc"), "a stage: out of memory: "),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "a stage: out of memory: "),
        (MemoryError(), "a stage: out of memory: "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "a stage: out of memory: "),
    ],
)
def test_what_is_recognised(error: Exception, said: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"{said}another way") as seen:
        assert retry.once_more("a stage", raising(error), lambda: "done", "another way") == "done"
    assert len(seen) == 1 and seen[0].filename == __file__
    with pytest.raises(MemoryNeedError, match=f"^{said}do this$") as caught, retry.named("a stage", "do this"):
        raise error
    assert caught.value.code == "E4002"


def test_real_ones_are_recognised() -> None:
    for run in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises(MemoryNeedError, match="a stage: out of memory"), retry.named("a stage"):
            run()


@pytest.mark.parametrize(
    "error", [RuntimeError("another"), NumericError("x"), InputError("x"), OSError(errno.ENOENT, "no file"), KeyboardInterrupt()]
)
def test_other_errors_pass(error: BaseException) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error)) as caught:
            retry.once_more("a stage", raising(error), lambda: "done")
        assert caught.value is error
        with pytest.raises(type(error)) as caught, retry.named("a stage"):
            raise error
        assert caught.value is error


@pytest.mark.filterwarnings("ignore:a stage")
def test_a_second_failure_is_the_last() -> None:
    with pytest.raises(MemoryNeedError, match="a stage: out of memory") as caught:
        retry.once_more("a stage", raising(MemoryError()), raising(MemoryError(), MemoryError()))
    assert caught.value.code == "E4002"
    with pytest.raises(NumericError):
        retry.once_more("a stage", raising(MemoryError()), raising(NumericError("x")))


class Held:
    """Stands for a tensor."""


def test_nothing_of_the_first_try_is_held_in_the_second() -> None:
    """Not even where somebody keeps the error, as debuggers do, or where the frames are in a circle."""
    seen: list[weakref.ref[Held]] = []
    kept: list[BaseException] = []

    def deep(level: int) -> NoReturn:
        held = Held()
        circle: list[Any] = [held]
        circle.append(circle)
        seen.append(weakref.ref(held))
        if level:
            try:
                deep(level - 1)
            except MemoryError as error:
                raise RuntimeError(CPU) from error
        error = MemoryError()
        kept.append(error)
        raise error

    def again() -> int:
        return sum(each() is not None for each in seen)

    gc.disable()
    try:
        with pytest.warns(RuntimeWarning):
            assert retry.once_more("a stage", lambda: deep(3), again) == 0
    finally:
        gc.enable()
    assert len(seen) == 4


@pytest.fixture
def pipeline() -> Pipeline:
    return faults.pipeline()


@pytest.fixture
def refuse(pipeline: Pipeline) -> Iterator[list[int]]:
    """Batches of two rows are too many for the UNet; the sizes it was given."""
    sizes: list[int] = []

    def check(_module: torch.nn.Module, args: tuple[Tensor, Prepared, int]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError(CUDA)

    hook = pipeline.unet.register_forward_pre_hook(check)
    yield sizes
    hook.remove()


def test_rows_are_evaluated_one_by_one_from_then_on(pipeline: Pipeline, refuse: list[int]) -> None:
    with pytest.warns(RuntimeWarning, match="UNet: out of memory .*: trying again, one row at a time") as seen:
        apart = pipeline.generate("a cat", "a dog", batch=2, **faults.JOB).latents
    assert refuse == [2] + [1] * 8  # 2 steps of 2 pictures of 2 rows
    assert len(seen) == 1 and seen[0].filename == __file__
    pipeline.unet._forward_pre_hooks.clear()
    assert relative_error(apart, pipeline.generate("a cat", "a dog", batch=2, **faults.JOB).latents) < 1e-5


def test_a_row_of_what_is_prepared() -> None:
    """Also where one row of shifts serves all, as in families without a vector."""
    family = faults.minimal()
    unet = faults.pipeline().unet
    context = torch.randn(2, 77, family.unet.context_dim)
    prepared = unet.prepare(context, None, [3.0]).repeat(2)
    x = torch.randn(4, 4, 8, 8)
    whole = unet(x, prepared, 0)
    rows = torch.cat([unet(row, prepared.row(r), 0) for r, row in enumerate(x.split(1))])
    assert relative_error(rows, whole) < 1e-5
    again = Prediction(unet, context, torch.zeros(2, 0), count=2)
    again.row_by_row = True
    assert relative_error(again(x, 3.0), whole) < 1e-5


@pytest.mark.filterwarnings("ignore:text")
def test_a_long_text_is_encoded_in_smaller_parts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipeline.encode("word " * 300, size=(16, 16))

    def check(_module: torch.nn.Module, args: tuple[Tensor]) -> None:
        if len(args[0]) > 1:
            raise RuntimeError(CPU)

    pipeline.towers[0].register_forward_pre_hook(check)
    assert relative_error(pipeline.encode("word " * 300, size=(16, 16)).context, whole.context) < 1e-6


def test_a_decode_that_fails_twice_is_named(pipeline: Pipeline) -> None:
    pipeline.vae.decoder.conv_in.register_forward_pre_hook(lambda *_: raising(RuntimeError(CPU))())
    said = "VAE decode: out of memory"
    with pytest.warns(RuntimeWarning, match=said), pytest.raises(MemoryNeedError, match=said):
        pipeline.decode(torch.zeros(1, 4, 4, 4))
