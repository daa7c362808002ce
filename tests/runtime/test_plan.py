"""The plan: what it says is what is then measured, and what it chooses stays under the limit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path as File

import pytest
import torch

import ldm
from ldm import commands
from ldm.checkpoint.safetensors import read_header
from ldm.devices import place_for
from ldm.errors import InputError, MemoryNeedError
from ldm.models.shapes import Family, load_family
from ldm.ops import conv
from ldm.options import Job
from ldm.pipeline import BOX
from ldm.resources import weights
from ldm.runtime import need, plan
from ldm.runtime.keeping import Keeper
from ldm.runtime.need import Plan
from ldm.runtime.paths import LEAST, RESIDENT, Path, stored_in
from scripts import needs, synthetic

MB = 10**6


def mid() -> Family:
    """Of a few hundred megabytes: what is counted is not lost in what a process takes anyway."""
    tiny = synthetic.tiny()
    unet = replace(tiny.unet, model_channels=96, head_dim=32, norm_groups=32, transformer_depth=(0, 1, 3), middle_depth=3)
    return replace(tiny, name="mid", unet=unet, vae=replace(tiny.vae, ch=32, norm_groups=32))


@pytest.fixture(scope="module")
def sdxl() -> Plan:
    """At 512x512, where the issue's row is."""
    return Plan(load_family("sdxl-base"), 512, 512, 2, torch.float32, torch.float32)


def test_the_box_takes_what_is_said() -> None:
    for found in needs.whole(None, 128):
        assert found.good, str(found)


def test_a_limit_is_kept_and_said_right(tmp_path: File) -> None:
    file = synthetic.write(tmp_path / "mid.safetensors", mid(), dtype="F16")
    limit = int(0.85 * needs.planned(str(file), 128)["peak"]["ram"])
    found = needs.whole(str(file), 128, str(limit), 1)
    assert all(each.good for each in found), [str(each) for each in found]
    assert max(each.measured for each in found) < limit < 1.35 * max(each.counted for each in found)


def test_each_path_takes_less(sdxl: Plan) -> None:
    totals = [plan.forecast(sdxl, path, 300 * MB).total for path in (*plan.ORDER, LEAST)]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    assert plan.forecast(sdxl, RESIDENT, 400 * MB).total == totals[0] + 100 * MB
    for kept in (10, 50, 91):
        more = plan.forecast(sdxl, replace(LEAST, kept=kept, stored=torch.float16), 300 * MB)
        assert more.total > totals[-1] and f"{kept} of the UNet's 91 blocks are converted from float16" in more.cost[-1]


def test_sdxl_at_512_in_8_gib(sdxl: Plan) -> None:
    """Of main memory on the CPU: all of the UNet stays as the file has it."""
    found = plan.choose(sdxl, torch.float16, 8 * 2**30, 300 * MB)
    assert (found.path.kept, found.path.stored) == (91, torch.float16) and found.total < 8 * 2**30


@pytest.mark.parametrize(("limit", "vae", "kept"), [(6, True, 50), (4, True, 20)])
def test_sdxl_at_1024_on_a_card(sdxl: Plan, limit: int, vae: bool, kept: int) -> None:
    """Counted; not measured."""
    on_card = replace(sdxl, width=1024, height=1024, dtype=torch.bfloat16, device="cuda:0")
    found = plan.choose(on_card, torch.float16, limit * 2**30, 300 * MB)
    assert found.vram < limit * 2**30 and found.path.vae == vae and found.path.kept > kept and found.path.stored is None
    assert found.total == found.vram and found.ram < 2**30


def test_the_first_path_that_fits_is_taken(sdxl: Plan) -> None:
    totals = [plan.forecast(sdxl, path, 300 * MB).total for path in plan.ORDER]
    for path, total in zip(plan.ORDER, totals, strict=True):
        found = plan.choose(sdxl, torch.float16, total * plan.MARGIN // (plan.MARGIN - 1) + plan.MARGIN, 300 * MB)
        assert (found.path, found.total) == (path, total)
    kept = [plan.choose(sdxl, torch.float16, limit * 2**30, 300 * MB).path.kept for limit in (8, 5, 4, 3)]
    assert kept == sorted(set(kept), reverse=True)
    with pytest.raises(MemoryNeedError, match=r"512x512 in float32 needs .* are allowed: take --max-memory \d+MiB, or a smaller") as caught:
        plan.choose(sdxl, torch.float16, 10**9, 300 * MB)
    least = int(str(caught.value).split("--max-memory ")[1].split("MiB")[0])
    assert plan.choose(sdxl, torch.float16, least * 2**20, 300 * MB).path.kept == 0
    with pytest.raises(MemoryNeedError):
        plan.choose(sdxl, torch.float16, (least - 2) * 2**20, 300 * MB)


def test_a_card_holds_no_narrower_weights(sdxl: Plan) -> None:
    """What waits in the file's dtype waits in main memory, and a card's limit is not about that."""
    found = plan.choose(replace(sdxl, device="cuda:0"), torch.float16, 6 * 2**30, 300 * MB)
    assert found.path.blocks and found.path.stored is None and not any("converted" in each for each in found.cost)


def test_the_weights_of_a_tier_are_there_from_the_first_step_on(sdxl: Plan) -> None:
    card = replace(sdxl, dtype=torch.bfloat16, device="cuda:0")
    exact, fp8 = ({each.name: each.vram for each in plan.forecast(one, RESIDENT, 0).stages} for one in (card, replace(card, fp8=True)))
    more = need.reduced(replace(card, fp8=True))
    assert more > 10**9 and {name: fp8[name] - exact[name] for name in exact} == {"load": 0, "text": 0, "unet": more, "vae": more}


def test_a_limit_says_what_it_costs_and_goes_with_its_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be under it is refused before the file is read."""
    monkeypatch.setattr(plan, "resident", lambda: 0)
    header, family, jobs = read_header(weights() / BOX), whole_family(), [Job("a", width=64, height=64)]
    place, (found,) = place_for(family, "cpu"), plan.forecasts(header, family, place_for(family, "cpu"), None, jobs)
    limit = found.total - 10 * MB
    with pytest.warns(UserWarning, match="max_memory .*: the text towers are read for every text"):
        path, given, _ = plan.way(header, family, place, limit, jobs)
    assert path.towers and given == limit
    light = plan.forecast(found.plan, LEAST, 0).total * 102 // 100 + MB
    with pytest.raises(InputError, match=r"speed fp8 and max_memory .*: leave out --max-memory"):
        plan.way(header, family, place, light, [replace(jobs[0], speed="fp8")])
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), {"total_memory": 16 * 2**30}))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))
    card = torch.device("cuda", 0)
    plan.hold(card, 8 * 2**30 + plan.CONTEXT)
    Keeper(device=card, limit=8 * 2**30).close()
    Keeper(device=card).close()
    assert shares == [0.5, 1.0]


def test_where_memory_is_short_layouts_are_made_anew_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit of the caller's: the picture is the same, nothing is kept, and with room again it is."""
    pipeline, job = ldm.load(device="cpu"), Job("a cat", width=64, height=64, steps=2, seed=1)
    convolved = [*pipeline.unet.parameters(), *pipeline.vae.parameters()]
    wanted = pipeline.run(job)
    assert conv.held(convolved) > 0
    monkeypatch.setattr(need, "check_run", lambda plan, held: held < 0)
    with pytest.warns(UserWarning, match="64x64 in float32 needs .* than is free: what convolutions make .* which takes longer") as said:
        found = [pipeline.run(job) for _ in range(2)]
    assert len(said) == 1 and conv.held(convolved) == 0 and pipeline.keeper.path == Path(anew=True)
    pipeline.keeper.check_free()
    assert all(torch.equal(each.latents, wanted.latents) for each in found)
    assert all(each.images[0].tobytes() == wanted.images[0].tobytes() for each in found)
    monkeypatch.setattr(need, "check_run", lambda plan, held: True)
    pipeline.run(job)
    assert conv.held(convolved) > 0 and pipeline.keeper.path == RESIDENT


@pytest.mark.parametrize("wrong", ["6 elephants", "", "-1", 0, -5, 1.5, True])
def test_a_limit_that_is_none(wrong: object) -> None:
    with pytest.raises(InputError, match=r"max_memory .* is not acceptable: give"):
        ldm.load(device="cpu", max_memory=wrong)  # type: ignore[arg-type]


def test_a_later_job_can_need_a_lighter_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the picture is the same."""
    job = Job("a cat", width=128, height=128, steps=1, seed=1)
    whole = ldm.load(device="cpu").run(job)
    header = read_header(weights() / BOX)
    small = replace(job, width=64, height=64)
    family = whole_family()
    place = place_for(family, "cpu")
    wide, narrow = (plan.forecasts(header, family, place, None, [each])[0].total - plan.resident() for each in (job, small))
    assert wide > narrow
    monkeypatch.setattr(plan, "resident", lambda: 0)
    limit = (wide + narrow) // 2 * plan.MARGIN // (plan.MARGIN - 1)
    pipeline = ldm.load(device="cpu", max_memory=limit, jobs=[small])
    before = pipeline.keeper.path
    with pytest.warns(UserWarning, match=r"128x128 in float32 under max_memory .*: the text towers are read for every text"):
        again = pipeline.run(job)
    assert pipeline.keeper.path != before and torch.equal(again.latents, whole.latents)


def whole_family() -> Family:
    from ldm.checkpoint.families import recognise

    return recognise(read_header(weights() / BOX))


def test_what_is_free_is_a_limit_too(monkeypatch: pytest.MonkeyPatch, sdxl: Plan) -> None:
    monkeypatch.setattr(plan, "free_memory", lambda _: 2**20)
    with pytest.raises(MemoryNeedError, match="are allowed"):
        ldm.load(device="cpu", max_memory="64GiB")


def test_a_file_of_one_dtype_is_known() -> None:
    assert stored_in(read_header(weights() / BOX)) == torch.float16


def test_the_command_says_it_and_loads_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ldm, "load", None)
    assert commands.main(["sample", "-p", "a", "--plan", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("128x128 in float32 on cpu\n") and "everything stays in memory" in shown
    assert [line.split()[0] for line in shown.splitlines()[2:8]] == ["load", "text", "unet", "vae", "peak", "free"]
    words = ["-p", "a", "--size", "64x64", "--plan", "--format", "json", "--device", "cpu", "--max-memory", "16GiB"]
    assert commands.main(["sample", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["peak"]["ram"] == max(stage["ram"] for stage in told["stages"]) and told["peak"]["vram"] == 0 and told["fits"]
    assert (told["width"], told["dtype"], told["max_memory"], told["path"]["blocks"]) == (64, "float32", 2**34, False)
    reduced = ["sample", "-p", "a", "--plan", "--device", "cpu", "--dtype", "int8"]
    assert commands.main(reduced) == 0 and capsys.readouterr().out.startswith("128x128 in int8 on cpu\n")
    assert commands.main([*reduced, "--max-memory", "16GiB"]) == 2 and "give one of the two" in capsys.readouterr().err
    assert commands.main(["sample", "-p", "a", "--plan", "--device", "cpu", "--max-memory", "10MiB"]) == 1
    assert "E4001" in capsys.readouterr().err


def test_the_command_loads_under_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def load(_model: object, **how: object) -> None:
        asked.append(how)
        raise InputError("enough")

    monkeypatch.setattr(ldm, "load", load)
    assert commands.main(["sample", "-p", "a", "-s", "1,2", "--size", "64x64", "--device", "cpu", "--max-memory", "8GiB", "-q"]) == 2
    jobs = asked[0]["jobs"]
    assert asked[0]["max_memory"] == 2**33 and isinstance(jobs, list) and [job.seed for job in jobs] == [1, 2]
    assert commands.main(["sample", "-p", "a", "--device", "cpu", "-q"]) == 2 and "max_memory" not in asked[1]


def test_where_it_does_not_fit_the_plan_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ldm.commands import planning

    monkeypatch.setattr(planning, "free_memory", lambda *_: 2**28)
    assert commands.main(["sample", "-p", "a", "--plan", "--device", "cpu"]) == 0
    assert "more than is free: --max-memory takes less" in capsys.readouterr().out


def test_what_is_kept_beside_convolutions_is_counted(sdxl: Plan) -> None:
    """On the CPU alone, and of a block that takes turns only while it works."""
    counted = need.need(sdxl)
    kept = counted.parts[1].kept
    assert sum(kept.values()) > 10**9 and not need.need(replace(sdxl, device="cuda")).parts[1].kept
    unet = need.networks(sdxl)[0]
    assert plan._beside(unet, RESIDENT, kept) == (sum(kept.values()), 0)
    stages = {stage.name: stage.ram for stage in plan.forecast(sdxl, RESIDENT, 0).stages}
    assert stages["unet"] - stages["load"] > sum(kept.values()) + counted.parts[1].bare - MB
    assert stages["vae"] - stages["load"] > sum(kept.values()) + counted.parts[2].total - MB
    stay, turn = plan._beside(unet, replace(LEAST, anew=False), kept)
    assert stay < turn < 0.2 * sum(kept.values())
    assert plan._beside(unet, Path(anew=True), kept) == (0, max(kept.values()))
