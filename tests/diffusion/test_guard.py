"""The guard: the step and the stage that went wrong first, at once on the CPU, without a word to the host on a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guard import Guard
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.samplers import SAMPLERS, Step
from ldm.errors import NumericError
from tests.diffusion.cases import COMFYUI, LISTS, TABLE, mixture, smooth_noise, state

LEVELS = LISTS["uneven"]
TO_HOST = {"aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten._to_copy", "aten.copy_"}


def walked(guard: Guard, denoise: Callable[[Tensor, float], Tensor], name: str = "euler") -> None:
    x, watched = state(1, 4, 3, 3, dtype=torch.float32), guard.watch(denoise)
    for step in SAMPLERS[name].run(watched, x, LEVELS, lambda i, a, b: smooth_noise(x, a, b)):
        guard.see(step)
    guard.check()


def poisoned(at: int, value: float, place: int | None = 5) -> Callable[[Tensor, float], Tensor]:
    """The mixture's denoiser, whose answer number `at` has one wrong value, or no other."""
    calls = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        x0 = mixture(x, sigma).clone()
        if len(calls) == at + 1:
            x0.view(-1)[slice(None) if place is None else place] = value
        return x0

    return denoise


@cache
def stages(name: str) -> list[tuple[float, int]]:
    """sigma of every evaluation, and the step to which it belongs, counted from 1."""
    x, found, done = state(1, 4, 3, 3, dtype=torch.float32), [], 0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        found.append((sigma, done + 1))
        return mixture(x, sigma)

    for step in SAMPLERS[name].run(denoise, x, LEVELS, lambda i, a, b: smooth_noise(x, a, b)):
        done = step.i + 1
    return found


def test_steps_beyond_the_list_are_told_without_their_number() -> None:
    guard, good, bad = Guard(LEVELS[:3]), torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), math.inf)
    guard.see(Step(1, 3.0, 2.0, good, good))
    with pytest.raises(NumericError, match=r"non-finite at step 3 \(sigma=2\), in"):
        guard.see(Step(2, 2.0, 1.0, bad, good))


@pytest.mark.parametrize("at_once", [None, True, False])
@pytest.mark.parametrize("place", [None, 0, 35])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_evaluation(name: str, value: float, place: int | None, at_once: bool | None) -> None:
    for at, (sigma, step) in enumerate(stages(name)):
        with pytest.raises(NumericError) as error:
            walked(Guard(LEVELS, at_once=at_once), poisoned(at, value, place), name)
        where = f"sampling: non-finite at step {step} of 8 (sigma={sigma:.4g}), in the prediction: "
        assert str(error.value).startswith(where) and error.value.code == "E6001"


def test_at_once_stops_at_the_first() -> None:
    calls = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return x * math.nan

    with pytest.raises(NumericError, match="step 1 of 8"):
        walked(Guard(LEVELS), denoise)
    assert len(calls) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_the_update_is_told_from_the_prediction(at_once: bool) -> None:
    guard, good, bad = Guard(LEVELS, at_once=at_once), torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), math.inf)
    guard.see(Step(0, 3.0, 2.0, good, good))
    with pytest.raises(NumericError, match=r"step 2 of 8 \(sigma=2\), in the solver's update: try"):
        guard.see(Step(1, 2.0, 1.0, bad, good))
        guard.see(Step(2, 1.0, 0.5, bad, bad))
        guard.check()


@pytest.mark.parametrize("order", ["uncond-first", "cond-first"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("half", "words"), [(0, "the unconditional prediction"), (1, "the conditional prediction")])
def test_the_half_of_guidance(half: int, words: str, order: Any, at_once: bool) -> None:
    def both(x: Tensor, sigma: float) -> Tensor:
        x0 = x.clone()
        if sigma < 6:
            x0[half if order == "uncond-first" else 1 - half, 0, 0, 0] = math.nan
        return x0

    with pytest.raises(NumericError, match=rf"step 4 of 8 \(sigma=5\.5\), in {words}: "):
        walked(Guard(LEVELS, at_once=at_once), Guidance(both, 4.0, order=order))


def test_the_watched_denoiser_keeps_its_unconditional_half() -> None:
    guided = Guidance(lambda x, sigma: x * torch.arange(1.0, 3.0).view(2, 1, 1, 1), 4.0)
    watched = Guard(LEVELS).watch(guided)
    assert watched.uncond is None
    watched(torch.ones(1, 4, 2, 2), 1.0)
    assert watched.uncond is guided.uncond is not None
    assert Guard(LEVELS).watch(mixture).uncond is None


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("column", "tower"), [(0, 1), (2, 1), (3, 2), (7, 2), (None, 0)])
def test_text(column: int | None, tower: int, at_once: bool) -> None:
    """The tower is told by its columns of the context; the pooled vector is the last tower's."""
    context, vector = torch.zeros(1, 77, 8), torch.zeros(1, 6)
    guard = Guard(LEVELS, at_once=at_once)
    guard.see_text("prompt", context, vector[:, :0], [3, 5])
    guard.see_text("prompt", context, vector, [3, 5])
    if column is None:
        vector[0, 5], words = math.nan, "text encoding: non-finite in the pooled vector of tower 2 for the negative prompt: "
    else:
        context[0, 40, column], words = math.inf, f"text encoding: non-finite in tower {tower} of 2 for the negative prompt: "
    with pytest.raises(NumericError) as error:
        guard.see_text("negative prompt", context, vector, [3, 5])
        walked(guard, lambda x, sigma: x * math.nan)
    assert str(error.value).startswith(words) and error.value.code == "E6001"


def test_large_values_are_finite() -> None:
    for at_once in (True, False):
        guard = Guard(LEVELS, at_once=at_once)
        guard.see(Step(0, 3.0, 2.0, torch.full((1, 4, 64, 64), 3e38), torch.full((1, 4, 64, 64), -3e38)))
        guard.see_text("prompt", torch.full((1, 77, 4), 6e4, dtype=torch.float16), torch.zeros(1, 0), [2, 2])
        guard.check()
    Guard(LEVELS).check()


class Listener(TorchDispatchMode):
    """Notes each operation that makes the host wait for a value; on a device this is where it stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").split(".")[0]
        if f"aten.{name}" in TO_HOST:
            self.heard.append(name)
        return function(*args, **kwargs or {})


def test_on_a_device_nothing_waits_before_the_end() -> None:
    step = Step(0, 3.0, 2.0, state(1, 4, 8, 8, dtype=torch.float32), state(1, 4, 8, 8, dtype=torch.float32))
    guard, context = Guard(LEVELS, at_once=False), torch.zeros(1, 77, 8)
    with Listener() as listener:
        guard.see_text("prompt", context, torch.zeros(1, 3), [3, 5])
        guard._see_prediction(step.x0, step.x, 3.0)
        guard.see(step)
        assert listener.heard == []
        guard.check()
        checked = len(listener.heard)
        Guard(LEVELS).see(step)  # on the CPU it looks at once
        assert checked <= 12 and len(listener.heard) == checked + 2 and listener.heard[-1] == "_local_scalar_dense"


@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if not row.adaptive])  # which ask how good a step was
def test_a_run_on_a_device_never_waits(name: str) -> None:
    """On meta tensors any way to the host (item, bool, tolist, cpu) raises: a whole run passes up to the guard's last word."""
    sampler = samplers.get(name, COMFYUI)
    levels = schedules.sigmas("karras", 6, TABLE, COMFYUI, name)
    random = noise.make_noise(COMFYUI, [1, 2], (4, 8, 8), levels, sampler, device="meta")
    denoise = Denoiser(lambda x, t: x * 0.5, TABLE, prediction="epsilon", timestep="nearest-log")
    guard = Guard(levels)
    guard.see_text("prompt", torch.empty(1, 77, 8, device="meta"), torch.empty(1, 3, device="meta"), [3, 5])
    guided = guard.watch(Guidance(denoise, 4.0))
    for step in sampler.run(guided, noise.start(random, levels, TABLE, COMFYUI), levels, random):
        guard.see(step)
        assert step.x.device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        guard.check()
