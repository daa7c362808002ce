"""Rows B2, B3, B7 and B13: numbers that go wrong, and values that no one should give. B8 and B9 stand in `same.py`."""

from __future__ import annotations

import itertools
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

import ldm
from ldm.diffusion import noise, samplers, schedules
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guard import Guard
from ldm.diffusion.profiles import Profile, load_profile, override
from ldm.diffusion.samplers import Run, Sampler, Step
from ldm.errors import InputError, NumericError
from ldm.pipeline import Pipeline
from scripts.faults import Figure
from scripts.faults.same import b8, b9
from scripts.faults.tiny import NAMES, SMALL, outcome, some, tally, tiny, tiny_parts

__all__ = ["b2", "b3", "b7", "b8", "b9", "b13"]
STD = 0.7  # of the Gaussian data of the grid
FAR = 7.0  # times the highest sigma: farther out than start noise can be


# B2 ---------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def poisoned_unet(unet: nn.Module, call: int, rows: slice, place: int | None, value: float) -> Iterator[None]:
    """Evaluation number `call` of the UNet returns `value` in those rows, at one element of them or everywhere."""
    calls, forward = itertools.count(), unet.forward

    def poisoned(*arguments: Any) -> Tensor:
        out: Tensor = forward(*arguments)
        if next(calls) == call:
            out = out.clone()
            out[rows].view(-1)[slice(None) if place is None else place] = value
        return out

    unet.forward = poisoned
    try:
        yield
    finally:
        del unet.forward


@contextmanager
def poisoned_update(at: int, place: int | None, value: float) -> Iterator[None]:
    """Every sampler's x has `value` after step `at`, at one element or everywhere."""
    get = samplers.get

    def walked(run: Run, *arguments: Any) -> Iterator[Step]:
        for step in run(*arguments):
            if step.i == at and step.x.numel() > 1:  # not in the dry run
                step.x.view(-1)[slice(None) if place is None else place] = value
            yield step

    def poisoned(name: str, profile: Profile, table: schedules.SigmaTable | None = None) -> Sampler:
        sampler = get(name, profile, table)
        return replace(sampler, run=partial(walked, sampler.run))

    samplers.get = poisoned
    try:
        yield
    finally:
        samplers.get = get


@cache
def calls(name: str) -> tuple[int, ...]:
    """The step to which each evaluation of the UNet belongs, counted from 1, in a run of two pictures in which nothing is wrong."""
    unet, steps, found = tiny_parts()[0], itertools.count(1), []
    now, forward = next(steps), unet.forward

    def counted(*arguments: Any) -> Tensor:
        found.append(now)
        out: Tensor = forward(*arguments)
        return out

    def on_step(step: Step) -> None:
        nonlocal now
        now = next(steps)

    unet.forward = counted  # type: ignore[method-assign]
    try:
        tiny().generate("a cat", "a dog", sampler=name, batch=2, on_step=on_step, **SMALL)
    finally:
        del unet.forward
    return tuple(found)


def injections() -> list[tuple[str, int, Any]]:
    """(sampler, the step that goes wrong, a context that makes it so): an evaluation of two, one row or both, NaN and infinities."""
    cases, unet = [], tiny_parts()[0]
    for name in NAMES:
        at_call = calls(name)
        for value, place in itertools.product((math.nan, math.inf, -math.inf), (0, 7, None)):
            for call in range(1, len(at_call), 2):  # on the CPU each picture has a call: as a rule the second's
                for rows in (slice(0, 1), slice(1, 2), slice(None)):
                    cases.append((name, at_call[call], partial(poisoned_unet, unet, call, rows, place, value)))
            cases += [(name, at + 1, partial(poisoned_update, at, place, value)) for at in range(at_call[-1])]
    return cases


def found_at(pipeline: Pipeline, name: str) -> int | None:
    """The step that a NumericError names; None: the run ended as if all were well."""
    try:
        pipeline.generate("a cat", "a dog", sampler=name, batch=2, **SMALL)
    except NumericError as error:
        step = re.match(r"sampling: non-finite at step (\d+)(?: of 4)? \(sigma=[\d.e+-]+\), in [^:]+: try ", str(error))
        return int(step[1]) if step and error.code == "E6001" else -1
    return None


def b2(count: int | None = None) -> Figure:
    """Non-finite values at every evaluation and every update of every sampler; then the guard's own time."""
    pipeline, cases = tiny(), some(injections(), count)
    missed = []
    for name, step, fault in cases:
        with fault():
            said = found_at(pipeline, name)
        if said != step:
            missed.append((name, step, said))
    alarms = [name for name in (NAMES if count is None else {name for name, _, _ in cases}) if found_at(pipeline, name) is not None]
    seconds, network = guard_seconds(), network_seconds() if count is None else math.nan
    reached = f"{len(cases) - len(missed)} of {len(cases)} found at their step, {len(alarms)} false alarms; the guard takes "
    reached += f"{1e6 * seconds:.0f} us a step at 1024x1024"
    reached += "" if count is not None else f", {100 * seconds / network:.3f} % of the {network:.2f} s of the model in the box there"
    reached += f"; missed {missed[:5]}" if missed else ""
    cheap = seconds < 5e-3 and not seconds / network > 0.005
    return Figure("100 % found at that step, 0.5 % of the time at most", reached, not missed and not alarms and cheap)


def guard_seconds(rounds: int = 200) -> float:
    """The least time of one step under guard, with guidance, latents of a picture of 1024x1024."""
    x, levels = torch.randn(1, 4, 128, 128), [1.0, 0.5]
    guard, best = Guard(levels), math.inf
    for _ in range(rounds):
        start = time.process_time()
        guard._see_prediction(x, x, 1.0)
        guard.see(Step(0, 1.0, 0.5, x, x))
        best = min(best, time.process_time() - start)
    return best


def network_seconds() -> float:
    """One step of the model in the box at 1024x1024 with guidance: a UNet of a two hundredth of SDXL's weights."""
    pipeline = ldm.load(device="cpu")
    cond, x = pipeline.encode("a cat", size=(1024, 1024)), torch.randn(1, 4, 128, 128)
    start = time.process_time()
    pipeline.sample(cond, cond, x, (1.0, 0.0), sampler="euler", cfg=4.0, noise=lambda *_: x)
    return time.process_time() - start


# B3 ---------------------------------------------------------------------------------------------------------------------------------

RULES = {
    "comfyui": ("comfyui", {}),
    "a1111": ("a1111", {}),
    "half": ("a1111", {"alphas": "float16", "ensd": "31337", "rng": "cpu"}),
    "leading": ("comfyui", {"karras_range": "spaced", "spacing": "leading", "timestep": "float"}),
    "trailing": ("comfyui", {"karras_range": "spaced", "spacing": "trailing", "rng": "philox", "brownian": "batch"}),
    "snap": ("a1111", {"spacing": "legacy", "timestep": "nearest-snap", "start_noise": "sqrt1p", "batch_noise": "one-draw"}),
}
MODELS = [("epsilon", False), ("v", False), ("v", True), ("epsilon", True)]
MANY = [("comfyui", ("v", True)), ("half", ("epsilon", False))]
NEAR = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
LISTS: list[list[float]] = [
    [], [1.0], [0.0], [math.nan], [0.0, 0.0], [0.0, -1.0], [3.0, 3.0, 0.0], [3.0, 3.0 - 1e-9, 0.0], [1.0, 2.0, 0.0], [5.0, 1.0, 1.0],
    [math.nan, 1.0, 0.0], [5.0, math.nan, 0.0], [5.0, 1.0, math.nan], [math.inf, 1.0, 0.0], [5.0, -math.inf], [5.0, -1.0], [5.0, 0.0, -0.0],
    [1e6, 1.0, 0.0], [1e39, 1.0], [3e38, 1e30, 0.0], [1e308, 1.0], [999_999.0, 1.0, 0.0], [999_999.0, 14.0, 1.0], [5.0, -0.0],
    [1e12, 0.0], [9e11, 14.0, 0.0],
    [1e-40, 0.0], [1.0, 1e-40, 0.0], [1e-40, 1e-45], [1e-38, 1e-42, 1e-45, 0.0], [1e-50, 0.0], [14.6, 1e-7, 1e-8, 0.0], [14.6, 1e-3, 0.0],
    [1.0, NEAR, 0.0], [1.0, NEAR, 0.5, 0.25, 0.1], [14.6, 14.599999, 14.599998, 14.599997, 0.03, 0.0], [14.6, 0.03],
    [2.0 - k / 2000 for k in range(1001)], [2.0 - k / 2000 for k in range(1002)], [4000.0, 2000.0, 1e-3, 1e-5],
]  # fmt: skip


@cache
def rules_of(name: str) -> Profile:
    profile, values = RULES[name]
    return override(load_profile(profile), values)


@cache
def table_of(alphas: str, zero_terminal: bool) -> schedules.SigmaTable:
    return schedules.SigmaTable(alphas, zero_terminal=zero_terminal)


def gaussian(table: schedules.SigmaTable, prediction: str) -> Callable[[Tensor, float], Tensor]:
    """The network that knows its data, N(0, STD²): what it sees is x / sqrt(sigma² + 1) and t."""

    def predict(x: Tensor, t: float) -> Tensor:
        sigma = float(table.at(torch.tensor([t])))
        root, share = math.sqrt(1 + sigma**2), 1 / (STD**2 + sigma**2)
        eps, z = x * (root * share * sigma), x * (root * share * STD**2)
        return eps if prediction == "epsilon" else (eps - z * sigma) / root

    return predict


def walk(rules: Profile, prediction: str, zero: bool, name: str, make: Callable[[schedules.SigmaTable], Sequence[float]]) -> Tensor:
    """A whole run on tiny latents: table, list, noise, start, denoiser, sampler."""
    table = table_of(rules.alphas, zero)
    levels, sampler = make(table), samplers.get(name, rules)
    denoise = Denoiser(gaussian(table, prediction), table, prediction=prediction, timestep=rules.timestep)  # type: ignore[arg-type]
    random = noise.make_noise(rules, [7], (4, 2, 2), levels, sampler)
    x = noise.start(random, levels, table, rules)
    for step in sampler.run(denoise, x, levels, random):
        x = step.x
    return x


def grid() -> list[tuple[str, Callable[[], Tensor], float]]:
    """(what, the run, the bound of its end)."""
    cases = []

    def add(rule: str, model: tuple[str, bool], name: str, make: Callable[..., Sequence[float]], what: object, within: float) -> None:
        cases.append((f"{name} {what} {rule} {model}", partial(walk, rules_of(rule), *model, name, make), within))

    def scheduled(rule: str, model: tuple[str, bool], name: str, schedule: str, steps: int) -> None:
        far = FAR if name != "ipndm_v" else math.inf  # the weights that engines give it do not sum to one on uneven lists

        def make(table: schedules.SigmaTable) -> list[float]:
            return schedules.sigmas(schedule, steps, table, rules_of(rule), name)

        add(rule, model, name, make, f"{schedule} {steps}", far * table_of("float64", model[1]).high)

    for name, schedule in itertools.product(NAMES, schedules.SCHEDULES):
        for rule, model, steps in itertools.product(RULES, MODELS, (1, 2, 3, 5)):
            scheduled(rule, model, name, schedule, steps)
        for steps in (1000, 0, -1, 1001, 10_000):  # by turns
            scheduled(*MANY[len(cases) % 2], name, schedule, steps)
    for name, levels, (rule, model) in itertools.product(NAMES, LISTS, [*MANY, ("a1111", MODELS[1])]):
        add(rule, model, name, lambda table, levels=levels: schedules.custom(levels), levels, math.inf)
        if len(levels) < 100:
            add(rule, model, name, lambda table, levels=levels: levels, f"as it is {levels}", math.inf)
    return cases


def b3(count: int | None = None) -> Figure:
    """Every sampler on every schedule at few and many steps, by several rules and models, and on lists that no one should give."""
    cases = some(grid(), count)
    found = Counter(outcome(run, within=within) for what, run, within in cases)
    words, good = tally(found)
    return Figure("2,000 combinations, each finite or refused", f"of {len(cases)} combinations {words}", good)


# B7 ---------------------------------------------------------------------------------------------------------------------------------


def b7(count: int | None = None) -> Figure:
    """Zero terminal SNR on and off, by every prediction and every rule that touches the table, through the whole pipeline."""
    fields = {"alphas": ("float64", "float32", "float16"), "timestep": ("float", "nearest-log", "nearest-snap")}
    fields["start_noise"] = ("sigma", "sqrt1p", "sqrt1p-if-full")
    rules = [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]
    cases = some(list(itertools.product(MODELS, rules, schedules.SCHEDULES)), count)
    found: Counter[str] = Counter()
    for number, (model, values, schedule) in enumerate(cases):
        job = SMALL | {"sampler": NAMES[number % len(NAMES)], "schedule": schedule, "steps": 2 + number % 3, "overrides": values}
        said = outcome(partial(through_pipeline, model, job))
        must = "refused" if model == ("epsilon", True) or (model[1] and values["alphas"] == "float16") else "finite"
        found[said if said == must else f"{said} instead of {must}"] += 1
    words, good = tally(found)
    for alphas in ("float64", "float32"):  # where no family stands before
        said = outcome(lambda alphas=alphas: Denoiser(gaussian, table_of(alphas, True), "epsilon", "float"))  # type: ignore[misc, arg-type]
        good = good and said == "refused"
    return Figure("100 % refused or finite", f"of {len(cases)} configurations {words}", good)


def through_pipeline(model: tuple[str, bool], job: dict[str, Any]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny(model[0], zero_terminal=model[1]).generate("a cat", "a dog", **job).latents


# B13 --------------------------------------------------------------------------------------------------------------------------------

HUGE = 10**400  # as text it has more digits than a line should, as a float it is none
VALUES: dict[str, Sequence[Any]] = {
    "cfg": (0, -0.0, 1, 1e-300, 0.5, 99.999, 100, 100.0001, 1e6, 1e308, -1, -1e-9, math.nan, math.inf, -math.inf, HUGE, -HUGE, True, "7"),
    "steps": (1, 2, 0, -1, 1001, 10_000, HUGE, 10**5000, 2.5, math.nan, "4", True),
    "width": (16, 24, 15, 17, 8, 0, -16, 8193, 8200, 10**6, HUGE, 10**5000, 16.0, math.nan, "32"),
    "height": (16, 40, 15, 0, 8200, -8, HUGE, math.inf),
    "batch": (1, 2, 0, -1, 65, 10**6, HUGE, 1.5, None),
    "seed": (0, -1, 2**64 - 1, 2**64, -2, HUGE, 1.5, math.nan, "abc"),
    "sigmas": ([HUGE, 0], [1e6, 0], [math.nan, 0], [999_999, 1, 0], [1, 0], [Fraction(HUGE), 0], "5,0", [1], [[1], [0]]),
    "prompt": ("(x:1e9)", "(x:-5)", "((((x:100))))", "(x:nan)", "[x:0]", "(a cat:inf), b", "x" * 100_001, "a\0b", None, 7),
}
UNCHECKED = (1e6, -1e6, 1e30, 1e38, -5.0, 0.0, math.nan, math.inf, -math.inf)  # cfg of Pipeline.sample, which has no range


def b13(count: int | None = None) -> Figure:
    """Values at their limits, beyond them, and of other kinds: a finite picture, or a refusal that states the range."""
    jobs = [(name, value) for name, values in VALUES.items() for value in values]
    cases = some([*jobs, ("cfg", Fraction(HUGE)), ("steps", 1000), *(("sample", cfg) for cfg in UNCHECKED)], count)
    found = Counter(outcome(partial(boundary, name, value)) for name, value in cases)
    words, good = tally(found)
    return Figure("0 non-finite pictures", f"of {len(cases)} values {words}", good)


def boundary(name: str, value: Any) -> Tensor:
    """The latents of one run with that value; every refusal of a number in LIMITS must state what is allowed."""
    if name == "sample":
        return sampled(value)
    job: dict[str, Any] = {"prompt": "a cat", "negative": "a dog"} | SMALL | {name: value, "width": value if name == "width" else 16}
    if name == "sigmas":
        del job["steps"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tiny().generate(**job).latents
    except InputError as error:
        if not re.search(r"\d+ to \d+|give|limit", str(error)):
            raise AssertionError(f"{name} {str(value)[:40]}: no range in {error}") from None
        raise


def sampled(cfg: float) -> Tensor:
    pipeline, x = tiny(), torch.ones(1, 4, 3, 4) * 14
    cond, uncond = (pipeline.encode(text, size=(24, 32)) for text in ("a cat", "a dog"))
    return pipeline.sample(cond, uncond, x, (14.0, 3.0, 0.5, 0.0), sampler="euler", cfg=cfg, noise=lambda *_: x)
