"""The approximate tier: what it leaves out, that nothing is left out where it should not be, and that pictures keep their laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ldm
from ldm.diffusion import samplers
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.options import Job
from ldm.pipeline import Pipeline
from ldm.runtime import approx
from ldm.runtime.approx import Parts
from ldm.runtime.guiding import Guide
from ldm.text.conditioning import Conditioning
from ldm.text.course import Course, Strand
from scripts import tiers

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 6, "seed": 5}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return ldm.load(device="cpu")


@pytest.fixture
def nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approx, "EVERY", 1)
    monkeypatch.setattr(approx, "LOW", -1.0)


@pytest.fixture
def seen(pipeline: Pipeline) -> Iterator[Counter[str]]:
    """How often the first stage and the middle of the UNet run, and rows in both."""
    counts: Counter[str] = Counter()

    def see(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            counts[name] += 1
            counts[f"{name} rows"] += len(args[0])

        return hook

    first: Any = pipeline.unet.input_blocks[0]
    hooks = [first.register_forward_pre_hook(see("first")), pipeline.unet.middle_block.register_forward_pre_hook(see("deep"))]
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize("sampler", ["heun", "euler_cfg_pp"])
@pytest.mark.parametrize("words", ["a red apple", "[a red|a blue] star", "a cat AND a dog :0.5"])
def test_where_nothing_is_left_out_it_is_the_exact_tier_to_the_bit(pipeline: Pipeline, sampler: str, words: str) -> None:
    odd = {"sampler": sampler, "profile": "a1111", "width": 72, "height": 64, "steps": 3, "seed": 5}
    exact, other = (pipeline.generate(words, speed=speed, **odd) for speed in ("exact", "approx"))
    assert torch.equal(exact.latents, other.latents)


def test_work_is_left_out(pipeline: Pipeline, seen: Counter[str]) -> None:
    """12 calls; guided are those above LOW. All of the UNet runs at high noise, then at every second call and where guidance ends."""
    made = pipeline.generate("a red apple", speed="approx", **SMALL | {"steps": 12})
    sigmas = list(made.job.sigmas or ())[:-1]
    guided = [sigma for sigma in sigmas if sigma > approx.LOW]
    early = [sigma for sigma in guided if sigma > 5.3]  # of training step 800
    assert len(guided) < len(sigmas) and early
    assert seen["first"] == len(sigmas)
    assert seen["first rows"] == 2 * len(guided) + len(sigmas) - len(guided)
    late = len(guided) - len(early)
    assert seen["deep"] == len(early) + late // 2 + -(-(len(sigmas) - len(guided)) // 2)


@pytest.mark.parametrize("sampler", [name for name, each in samplers.SAMPLERS.items() if not each.adaptive])
def test_every_sampler_takes_it(pipeline: Pipeline, seen: Counter[str], sampler: str) -> None:
    made = pipeline.generate("a red apple", sampler=sampler, speed="approx", steps=5, seed=1, width=32, height=32)
    assert made.latents.isfinite().all() and made.job.speed == "approx"
    assert seen["deep"] < seen["first"]


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "heun"])
def test_it_is_near_the_exact_tier(pipeline: Pipeline, sampler: str) -> None:
    asked = SMALL | {"sampler": sampler, "steps": 12}
    exact, other = (pipeline.generate("a red apple", speed=speed, **asked) for speed in ("exact", "approx"))
    assert 0 < relative_error(other.latents, exact.latents) < 0.4


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_2m_sde"])
def test_a_picture_does_not_depend_on_its_batch_and_comes_again(pipeline: Pipeline, sampler: str) -> None:
    together = pipeline.generate("a red apple", batch=3, sampler=sampler, speed="approx", **SMALL)
    for k in (0, 2):
        alone = pipeline.generate("a red apple", sampler=sampler, speed="approx", **SMALL | {"seed": 5 + k})
        assert torch.equal(alone.latents[0], together.latents[k])


def test_without_guidance_and_where_all_is_below_its_interval(pipeline: Pipeline, seen: Counter[str]) -> None:
    pipeline.generate("a red apple", cfg=1, speed="approx", **SMALL)
    assert seen["first rows"] == seen["first"] == 6
    seen.clear()
    low = pipeline.generate("a red apple", sigmas=(0.2, 0.1, 0.0), seed=1, speed="approx", width=64, height=64)
    assert seen["first rows"] == 2 and low.latents.isfinite().all()


@pytest.mark.parametrize(("words", "rows"), [("a cat AND a dog", 18), ("a cat", 12)])
def test_guidance_stays_where_its_other_half_is_needed(pipeline: Pipeline, seen: Counter[str], words: str, rows: int) -> None:
    sampler = "euler_cfg_pp" if rows == 12 else "euler"
    pipeline.generate(words, sampler=sampler, profile="a1111", speed="approx", **SMALL)
    assert seen["first rows"] == rows


def test_calls_keep_their_words_and_sigmas_on_both_sides_of_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Guide, "exact", lambda self, told, away, levels, kind: asked.append((self.cfg, told, away, levels, kind)))
    a, b, c = (Conditioning(torch.zeros(1, 77, 4), torch.zeros(1, 2)) for _ in range(3))
    told, away = Course((Strand((a, b), (0, 0, 1, 0)),)), Course((Strand((c,)),))
    parts: dict[str, Any] = dict.fromkeys(("unet", "family", "rules", "table", "schedule"))
    guide = Guide(**parts, solver=samplers.SAMPLERS["euler"], cfg=4.0, pictures=1)
    guide.approximate(told, away, [3.0, 1.0, 0.2, 0.1])
    (scale, below, none, low, _), (cfg, above, other, high, _) = asked
    assert (scale, low, none) == (1.0, [0.2, 0.1], None) and (cfg, high) == (4.0, [3.0, 1.0])
    assert [below.strands[0](call) for call in (0, 1, 2)] == [b, a, a]
    assert [above.strands[0](call) for call in (0, 1)] == [a, a] and other.strands[0](1) is c


def test_words_that_change_have_features_of_their_own(pipeline: Pipeline, seen: Counter[str]) -> None:
    """Red at calls 0, 1, 3, 5, 7 and blue at 2, 4, 6: of each, the deep part is computed at every second of its own calls."""
    levels = (3.0, 2.5, 2.0, 1.5, 1.0, 0.7, 0.5, 0.4, 0.0)
    job = Job("[a red|a blue] star", sampler="euler", sigmas=levels, profile="a1111", seed=1, width=64, height=64, speed="approx")
    pipeline.run(job)
    assert (seen["first"], seen["deep"]) == (8, 5)


def test_rows_one_by_one_after_memory_ran_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a call that would take kept features: those are of other rows, so all is computed anew, and kept row by row from there on."""
    whole, after_it = Parts.__call__, []
    failed = False

    def fails_once(self: Parts, x: Tensor, *args: Any) -> Tensor:
        nonlocal failed
        if self._kept and not failed:
            failed = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        after_it.extend([len(x)] if failed else [])
        return whole(self, x, *args)

    monkeypatch.setattr(Parts, "__call__", fails_once)
    with pytest.warns(RuntimeWarning, match="one row at a time"):
        made = pipeline.run(Job("a red apple", speed="approx", sampler="euler", **SMALL))
    assert made.latents.isfinite().all()
    assert len(after_it) >= 4 and set(after_it) == {1}


def test_what_chooses_its_steps_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=r"speed approx: dpm_adaptive chooses its steps .* take --speed exact or another sampler"):
        pipeline.generate("a red apple", sampler="dpm_adaptive", speed="approx", **SMALL)


def test_the_table_of_tiers(pipeline: Pipeline) -> None:
    jobs = [Job("a red apple", steps=6, seed=1, width=64, height=64)]
    made = tiers.row(pipeline, "approx", jobs)
    assert 0.2 < made.saved < 0.5
    assert 0 < made.errors[0] < 1 and 10 < made.psnrs[0] < 60
    assert str(made).startswith("| approx | dpmpp_2m | 0.")
