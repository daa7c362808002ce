"""The count of memory: exact in the tensors, near what is measured, and never more than what is plenty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ldm
from ldm.checkpoint.memory import RESERVE
from ldm.errors import MemoryNeedError
from ldm.models.shapes import Family, load_family
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.options import Job
from ldm.pipeline import Pipeline
from ldm.resolve import resolve
from ldm.runtime import need
from ldm.runtime import plan as runs
from ldm.runtime.need import Plan
from ldm.runtime.paths import RESIDENT
from ldm.runtime.quantise import quantise
from ldm.runtime.tracking import Tracker
from scripts import needs, synthetic
from scripts.faults import memory as faults
from tests.models.tiny import drawn

FAMILIES = {
    "base": load_family("sdxl-base"),
    "tiny": synthetic.tiny(),
    "refiner": synthetic.tiny("sdxl-refiner"),
    "minimal": faults.minimal(),
}


def plan(family: Family, side: int = 64, rows: int = 2, dtype: torch.dtype = torch.float32, chunks: int = 1) -> Plan:
    return Plan(family, side, side, rows, dtype, torch.float32, chunks=chunks)


def test_weights_are_those_of_the_file() -> None:
    """sd_xl_base_1.0 has 3,468,837,867 values in its networks with float16 and a float32 VAE: the figures of its manifest."""
    family = FAMILIES["base"]
    unet, vae, towers = need._modules(family, torch.float16, torch.float32)
    counts = [sum(each.numel() for each in module.parameters()) for module in (unet, vae, *towers)]
    assert counts[:2] == [2_567_463_684, 83_653_863]
    assert need.need(plan(family, dtype=torch.float16)).weights == 2 * (sum(counts) - counts[1]) + 4 * counts[1]


def test_the_count_is_that_of_a_real_run() -> None:
    """On the meta device and on the CPU the same tensors live at the same time, where both convolve alike: float32 has a way of its own."""
    half = {"dtype": torch.bfloat16}
    vae = VAE(synthetic.tiny().vae).requires_grad_(False).to(**half)
    with Tracker() as real:
        vae.decode(torch.zeros(1, 4, 8, 8, **half))
    with torch.device("meta"):
        shaped = VAE(synthetic.tiny().vae).requires_grad_(False).to(**half)
    with Tracker() as counted:
        shaped.decode(torch.zeros(1, 4, 8, 8, device="meta", **half))
    assert (counted.peak, counted.live) == (real.peak, 0) and counted.peak > 0


def test_a_tracker_sees_tensors_come_and_go() -> None:
    before = torch.zeros(1000)
    with Tracker() as tracker:
        one = before + 1
        view = one[:10]
        before.add_(1)
        assert (tracker.live, tracker.peak, tracker.allocations) == (4000, 4000, 1)
        two = torch.cat([one, view])
        del one, view
        assert (tracker.live, tracker.peak) == (4040, 8040)
    del two
    assert tracker.live == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_plenty_is_more_than_any_count(name: str) -> None:
    for chosen in (plan(FAMILIES[name], 16, 1), plan(FAMILIES[name], 512), plan(FAMILIES[name], 128, 6, torch.bfloat16, chunks=12)):
        assert need.plenty(chosen) > need.need(chosen).stage


def test_needs_grow_with_the_job() -> None:
    family = FAMILIES["tiny"]
    least = need.need(plan(family))
    for more in (plan(family, 128), plan(family, rows=4), plan(family, chunks=4)):
        assert need.need(more).unet > least.unet
    wide = replace(plan(family, 256), device="cuda")
    assert need.need(wide).vae > 3 * need.need(replace(wide, width=128, height=128)).vae
    assert need.need(plan(family, dtype=torch.bfloat16)).weights < least.weights


@pytest.mark.parametrize("case", ["vae-256-float32"])
def test_the_count_is_near_what_is_measured(case: str) -> None:
    found = needs.measure(case)
    assert found.good, str(found)


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (26.0, None),
        (18.0, None),
        (17.0, r"take dtype bfloat16 \(10.9 GB\), or close other programs"),
        (10.0, r"take dtype bfloat16 and width 768 and height 768 \(9.3 GB\)"),
        (7.0, r"take --max-memory, close other programs or take another machine: even 128x128 in bfloat16 needs 7.2 GB"),
    ],
)
def test_what_is_advised_would_help(monkeypatch: pytest.MonkeyPatch, free: float, said: str | None) -> None:
    monkeypatch.setattr(need, "free_memory", lambda device: int(free * 1e9))
    chosen = plan(FAMILIES["base"], 1024)
    if said is None:
        need.check_job(chosen)
        return
    with pytest.raises(MemoryNeedError, match=rf"^1024x1024 in float32 \(13.9 GB of weights, 3.8 GB to compute\) needs 17.7 GB .*: {said}"):
        need.check_job(chosen)


def test_where_memory_is_short_convolutions_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they keep is wanted where it fits, what is kept already is not asked for twice, and without it a job is refused last."""
    chosen = plan(FAMILIES["base"], 512)
    found = need.need(chosen)
    kept = sum(sum(part.kept.values()) for part in found.parts)
    bare = max(part.bare for part in found.parts)
    assert bare < found.anew < found.stage - 10**9 and kept > 2 * 10**9
    for free, held, enough in (
        (found.stage, 0, True),
        (found.stage - 10**8, 0, False),
        (found.anew, 0, False),
        (bare, kept, True),
        (bare - 1, kept, False),
        (found.anew - kept, kept, False),
    ):
        monkeypatch.setattr(need, "free_memory", lambda device, free=free: free + RESERVE)
        assert need.check_run(chosen, held) is enough
    for free, held in ((found.anew - 1, 0), (found.anew - kept - 1, kept)):
        monkeypatch.setattr(need, "free_memory", lambda device, free=free: free + RESERVE)
        with pytest.raises(MemoryNeedError):
            need.check_run(chosen, held)
    monkeypatch.setattr(need, "free_memory", lambda device: found.weights + found.anew + RESERVE)
    need.check_job(chosen)


def test_the_weights_of_a_tier_are_counted() -> None:
    """A byte for each of bfloat16's two, in the transformer blocks' linear layers but for the text's keys and values; a scale a row."""
    exact = replace(plan(FAMILIES["base"], dtype=torch.bfloat16), device="cuda")
    more = need.need(replace(exact, fp8=True)).weights - need.need(exact).weights
    assert 1.75e9 < more == need.reduced(replace(exact, fp8=True)) < 1.9e9 and need.reduced(exact) == 0
    made = quantise(drawn(UNet(FAMILIES["tiny"].unet)).requires_grad_(False).bfloat16(), "fp8")
    held = sum(each.nbytes for name, each in made.named_buffers() if "weight_" in name)
    assert need.reduced(replace(plan(FAMILIES["tiny"]), fp8=True)) == held > 0


def test_int8_is_counted_as_what_is_in_memory() -> None:
    """When the model is loaded its float32 is gone; until then the UNet is there as its file has it, too."""
    made = ldm.load(dtype="int8")
    kinds = {"device": torch.device("cpu"), "dtype": torch.float32, "vae_dtype": torch.float32, "int8": True, "stored": torch.float16}
    told = need.plan_of(*resolve(Job("a"), made.family), made.family, **kinds)
    found, networks = need.need(told), (made.unet, made.vae, *made.towers)
    tensors = [each for network in networks for each in (*network.parameters(), *network.buffers()) if each.dtype != torch.int64]
    assert found.weights == sum(each.nbytes for each in tensors) and "in int8" in str(told)
    assert found.loading == 2 * sum(each.numel() for each in need.networks(told)[0].parameters())
    stages = {stage.name: stage.ram for stage in runs.forecast(told, RESIDENT, 0).stages}
    assert stages["load"] == found.weights + found.loading < found.total + 1 and stages["unet"] > found.weights + found.parts[1].bare
    exact = need.need(replace(told, int8=None))
    assert found.weights < exact.weights and exact.loading == 0
    wide = need.need(replace(told, int8=torch.float32))
    assert wide.loading == 2 * found.loading and replace(wide, loading=10**12).total == replace(wide, loading=10**12).least > 10**12


def test_advice_at_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is advised fits exactly where it is said to fit, and what is refused does not."""
    monkeypatch.setattr(need, "free_memory", lambda device: 600 * 2**20)
    chosen = plan(FAMILIES["tiny"], 2048)
    with pytest.raises(MemoryNeedError, match="take width") as caught:
        need.check_run(chosen)
    side = int(str(caught.value).split("take width ")[1].split()[0])
    need.check_run(replace(chosen, width=side, height=side))
    with pytest.raises(MemoryNeedError):
        need.check_run(replace(chosen, width=side + 256, height=side + 256))


def test_a_plan_is_the_jobs() -> None:
    family = FAMILIES["tiny"]
    kinds = {"device": torch.device("cpu"), "dtype": torch.float32, "vae_dtype": torch.float32}
    job = Job("a cat", "word " * 100, width=64, height=32, batch=3)
    made = need.plan_of(*resolve(job, family), family, **kinds)
    assert (made.width, made.height, made.rows, made.chunks, made.device) == (64, 32, 2, 2, "cpu")
    made = need.plan_of(*resolve(replace(job, cfg=1.0), family), family, **kinds | {"device": torch.device("cuda:1")})
    assert (made.rows, made.chunks, made.device, made.batch) == (3, 1, "cuda:1", 3)
    assert str(made) == "64x32 in float32 in a batch of 3" and not made.fp8
    assert need.plan_of(*resolve(replace(job, speed="fp8"), family), family, **kinds).fp8


@pytest.mark.parametrize(
    ("units", "said"),
    [
        (15, "take batch 7 (14"),
        (10, "take batch 5 (10"),
        (1.9, "take dtype bfloat16 (1.6"),
        (1.1, "take batch 5 and dtype bfloat16 (1.0"),
        (0.3, "take batch 1 and dtype bfloat16 (200"),
        (0.1, "take batch 1 and width 128 and height 128 (31"),
    ],
)
def test_a_smaller_batch_is_advised_first(units: float, said: str) -> None:
    """By a need that is simple: two units a picture of 1024x1024 in float32, a fifth of one in half precision."""
    chosen = replace(plan(FAMILIES["base"], 1024), device="cuda", rows=16, batch=8)

    def amount(each: Plan) -> int:
        pixels, width = each.width * each.height / 2**20, {4: 2.0, 2: 0.2}[each.dtype.itemsize]
        return int(10**9 * each.batch * pixels * width)

    assert said in need._advice(chosen, int(units * 10**9) + RESERVE, amount)


def test_generate_refuses_what_will_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Pipeline = faults.pipeline()
    monkeypatch.setattr(need, "free_memory", lambda device: 330 * 2**20)
    made.generate("a cat", width=16, height=16, steps=1)
    encoded = []
    monkeypatch.setattr(Pipeline, "encode", lambda *words, **keywords: encoded.append(words))
    with pytest.raises(MemoryNeedError, match=r"1024x1024 in float32 needs .*: take width") as caught:
        made.generate("a cat", width=1024, height=1024, steps=1)
    assert caught.value.code == "E4001" and not encoded


def test_counting_leaves_the_compiler_alone() -> None:
    """Neither a load nor a job that surely fits imports what takes longer than the rest."""
    import subprocess
    import sys

    code = "import sys, ldm; ldm.load(device='cpu').generate('a cat', steps=1); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert ldm.__version__
