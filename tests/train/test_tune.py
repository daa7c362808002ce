"""The loss of a step against diffusers' schedulers and an independent sum, the conditioning against the pipeline's own, and a short run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ldm
from ldm.errors import InputError
from ldm.pipeline import Pipeline
from ldm.train.draws import generator
from ldm.train.loop import Limits, Trainer, train
from ldm.train.noising import Noising
from ldm.train.prepared import Prepared, prepare
from ldm.train.recipe import LoraRecipe, Optim, PicturesRecipe
from ldm.train.sources import collect
from ldm.train.state import load_state
from ldm.train.tune import LossRecipe, TuneRecipe, TuneTask, load_tuning
from ldm.train.words import Words, shuffled

OPTIM = Optim(steps=4, batch=3, lr=1e-3, warmup=1, final=0.1, weight_decay=0.0, clip=1.0, ema=0.9)
PICTURES = PicturesRecipe(64, 16)


@pytest.fixture(scope="module")
def box() -> Pipeline:
    return ldm.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    sizes = {"red": (90, 60), "blue": (64, 64), "green": (80, 200), "yellow": (70, 70), "grey": (20, 20)}
    for k, (colour, size) in enumerate(sizes.items()):
        Image.new("RGB", size, colour).save(path / f"{k}.png")
        (path / f"{k}.txt").write_text(f"a {colour} thing")
    (path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


@pytest.fixture(scope="module")
def data(box: Pipeline, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("run"), collect(folder), box.vae, PICTURES, 1, lambda _: None)


def recipe(**changed: Any) -> TuneRecipe:
    values: dict[str, Any] = {"train": "unet", "seed": 1, "precision": "float32", "pictures": PICTURES, "optim": OPTIM}
    return TuneRecipe(**values | changed)


def task_of(box: Pipeline, data: Prepared, **changed: Any) -> TuneTask:
    return TuneTask(box.family, copy.deepcopy(box.unet), [copy.deepcopy(tower) for tower in box.towers], data, recipe(**changed))


def test_pictures_are_prepared_in_buckets_and_broken_ones_said(box: Pipeline, folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    made = prepare(tmp_path, collect(folder), box.vae, PICTURES, 1, said.append)
    assert len(made.z) == 5 and len(made.skipped) == 1 and made.skipped[0].startswith("broken.png")
    assert "1 of 6 pictures are left out:" in said
    for z, numbers in zip(made.z, made.numbers.tolist(), strict=True):
        assert tuple(z.shape) == (4, numbers[4] // 8, numbers[5] // 8)
        assert numbers[4] * numbers[5] <= 64 * 64
    assert made.numbers[:, :2].tolist() == [[60, 90], [64, 64], [200, 80], [70, 70], [20, 20]]
    assert made.buckets()[2][0] > made.buckets()[2][1]


def test_what_is_prepared_is_kept_until_it_changes(box: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = collect(folder)
    first = prepare(tmp_path, found, box.vae, PICTURES, 1, lambda _: None)
    monkeypatch.setattr("ldm.train.prepared._latent", lambda *_: pytest.fail("encoded again"))
    again = prepare(tmp_path, found, box.vae, PICTURES, 1, lambda _: None)
    assert all(torch.equal(one, other) for one, other in zip(first.z, again.z, strict=True)) and again.skipped == first.skipped
    for changed in ((PICTURES, 2), (PicturesRecipe(64, 8), 1)):
        with pytest.raises(pytest.fail.Exception):
            prepare(tmp_path, found, box.vae, *changed, lambda _: None)
    file = tmp_path / "latents.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(pytest.fail.Exception):  # damaged: made again
        prepare(tmp_path, found, box.vae, PICTURES, 1, lambda _: None)


def test_no_picture_at_all_is_refused(box: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 pictures can be used: a\.png"):
        prepare(tmp_path / "run", collect(tmp_path), box.vae, PICTURES, 1, lambda _: None)


CASES = [
    ("epsilon", LossRecipe(), Noising()),
    ("epsilon", LossRecipe(weighting="min-snr"), Noising(offset=0.1)),
    ("v", LossRecipe(weighting="min-snr", gamma=2.0), Noising()),
    ("v", LossRecipe(), Noising(offset=0.0357)),
    ("epsilon", LossRecipe(dropout=1.0), Noising(perturbation=0.1)),
]


@pytest.mark.parametrize(("prediction", "loss", "noise"), CASES)
def test_loss_and_gradients_are_those_of_diffusers_parts(
    box: Pipeline, data: Prepared, prediction: str, loss: LossRecipe, noise: Noising
) -> None:
    """x by `add_noise`, the target by `get_velocity`, min-SNR as its training scripts compute it, on the same draws."""
    diffusers = pytest.importorskip("diffusers")
    from dataclasses import replace

    from diffusers.training_utils import compute_snr

    task = task_of(box, data, loss=loss, noise=noise)
    task.family = replace(box.family, prediction=prediction)  # type: ignore[arg-type]
    value, _ = task.loss(0)
    value.backward()

    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction)
    random, rows = generator(1, 0), [data.rows[at] for at in task.batches.rows(0)]
    z = torch.stack([data.z[row] for row in rows])
    held, wanted = noise.draw(tuple(z.shape), random)  # type: ignore[arg-type]
    t = torch.randint(1000, (len(rows),), generator=random)
    dropped = torch.rand(len(rows), generator=random) < loss.dropout
    told = []
    for row, drop in zip(rows, dropped.tolist(), strict=True):
        original, crop, target = data.numbers[row].reshape(3, 2).tolist()
        told.append(box.encode("" if drop else data.captions[row], size=(0, 0), original=original, crop=crop, target=target))
    context, vector = torch.cat([each.context for each in told]), torch.cat([each.vector for each in told])
    unet = copy.deepcopy(box.unet).requires_grad_(True)
    predicted = unet.denoise(scheduler.add_noise(z, held, t), t.float(), context, vector)
    aim = wanted if prediction == "epsilon" else scheduler.get_velocity(z, wanted, t)
    each = torch.nn.functional.mse_loss(predicted, aim, reduction="none").mean((1, 2, 3))
    if loss.weighting == "min-snr":
        snr = compute_snr(scheduler, t)
        each = each * torch.minimum(snr, torch.full_like(snr, loss.gamma)) / (snr if prediction == "epsilon" else snr + 1)
    expected = each.mean()
    expected.backward()

    assert abs(value.item() - expected.item()) < 1e-5 * abs(expected.item())
    ours, theirs = ([p.grad.flatten() for p in network.parameters()] for network in (task.unet, unet))  # type: ignore[union-attr]
    assert (torch.cat(ours) - torch.cat(theirs)).norm() < 1e-5 * torch.cat(theirs).norm()


def test_words_read_as_the_pipeline_reads_them(box: Pipeline) -> None:
    words = Words(box.towers, ["a red thing", "x"], [None, None])
    context, pooled = words.read([0, 1], [False, True], torch.Generator(), torch.device("cpu"))
    for at, text in enumerate(["a red thing", ""]):
        told = box.encode(text, size=(64, 64))
        assert torch.equal(context[at], told.context[0])
        assert pooled is not None and torch.equal(pooled[at], told.vector[0, : pooled.shape[1]])


def test_shuffled_captions_keep_their_front() -> None:
    random = torch.Generator().manual_seed(0)
    seen = {shuffled("a, b, c, d, e", 2, random) for _ in range(60)}
    assert len(seen) == 6
    assert all(text.startswith("a, b, ") and sorted(text.split(", ")) == list("abcde") for text in seen)


@pytest.mark.parametrize("lora", [None, LoraRecipe(4, 4.0), LoraRecipe(2, 2.0, ("transformer", "towers"))])
def test_a_run_learns_and_goes_on_to_the_bit(box: Pipeline, data: Prepared, tmp_path: Path, lora: LoraRecipe | None) -> None:
    changed: dict[str, Any] = {"train": "unet" if lora is None else "lora", "lora": lora, "noise": Noising(offset=0.1)}
    whole = Trainer(task_of(box, data, **changed), OPTIM, tmp_path / "whole")
    train(whole, Limits())
    part = Trainer(task_of(box, data, **changed), OPTIM, tmp_path / "part")
    part.advance()
    part.advance()
    part.save()
    rest = Trainer(task_of(box, data, **changed), OPTIM, tmp_path / "part")
    assert rest.resume() and rest.step == 2
    train(rest, Limits())
    states = [trainer.task.module.state_dict() for trainer in (whole, rest)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(whole.ema.mean[name], rest.ema.mean[name]) for name in states[0])
    before = box.unet.state_dict() if lora is None else {name: 0 * value for name, value in states[0].items() if "lora_up" in name}
    unread = f"lora_te1_text_model_encoder_layers_{box.towers[0].shape.layers - 1}"  # the context is the layer before
    assert all((states[0][name] != value).any() for name, value in before.items() if value.ndim > 1 and not name.startswith(unread))


def test_accumulated_batches_are_one_larger_step(box: Pipeline, data: Prepared) -> None:
    task = task_of(box, data)
    losses, sizes = [task.loss(step)[0] for step in (6, 7)], [len(task.batches.rows(step)) for step in (6, 7)]
    whole = sum(loss * size for loss, size in zip(losses, sizes, strict=True))
    (whole / (2 * OPTIM.batch)).backward()
    wanted = torch.cat([p.grad.flatten() for p in task.unet.parameters()])  # type: ignore[union-attr]
    other = task_of(box, data)
    from dataclasses import replace

    trainer = Trainer(other, replace(OPTIM, accumulate=2), Path("unused"))
    trainer.step = 3
    value, figures = trainer._gradients()
    found = torch.cat([p.grad.flatten() for p in other.unet.parameters()])  # type: ignore[union-attr]
    assert value == pytest.approx(whole.item() / sum(sizes), rel=1e-6) and figures["pictures"] == sum(sizes)
    assert (found - wanted).norm() < 1e-6 * wanted.norm()


def test_computing_again_changes_no_gradient(box: Pipeline, data: Prepared) -> None:
    plain, again = task_of(box, data), task_of(box, data, checkpointing=True)
    for task in (plain, again):
        task.loss(0)[0].backward()
    for (name, one), other in zip(plain.unet.named_parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
    assert plain.unet.state_dict().keys() == again.unet.state_dict().keys()


def test_recipes_from_toml(tmp_path: Path, box: Pipeline, data: Prepared) -> None:
    text = """
    train = "lora"
    seed = 3
    precision = "bfloat16"
    data = "pictures"
    [pictures]
    size = 64
    step = 16
    [noise]
    offset = 0.1
    [lora]
    rank = 8
    alpha = 4
    targets = ["transformer", "towers"]
    [optim]
    steps = 4
    batch = 2
    lr = 0.001
    warmup = 0
    final = 0.1
    weight_decay = 0.0
    clip = 1.0
    ema = 0.9
    """
    (tmp_path / "x.toml").write_text(text)
    made = load_tuning(tmp_path / "x.toml")
    assert (made.lora, made.noise, made.model) == (LoraRecipe(8, 4.0, ("transformer", "towers")), Noising(offset=0.1), None)
    for old, new, message in (
        ('"lora"\n', '"unet"\n', "table \\[lora\\]"),
        ("offset", "ofset", "unknown key 'ofset'"),
        ("size = 64", "size = 8", r"y\.toml: \[pictures\] size: 8 is not acceptable"),
    ):
        (tmp_path / "y.toml").write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=message):
            load_tuning(tmp_path / "y.toml")
    with pytest.raises(InputError, match="zero_terminal with a model that predicts epsilon"):
        task_of(box, data, zero_terminal=True)


def test_features_of_captions_are_kept_until_captions_or_towers_change(
    box: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(*captions: str, towers: Any = box.towers) -> Words:
        return Words(towers, captions, [None] * len(captions), folder=tmp_path)

    def read(found: Words) -> list[torch.Tensor]:
        return [each for each in found.read([0, 1], [False, True], torch.Generator(), torch.device("cpu")) if each is not None]

    first = read(words("a cat", "a dog"))
    monkeypatch.setattr("ldm.train.words.run", lambda *_: pytest.fail("made again"))
    assert all(torch.equal(one, other) for one, other in zip(first, read(words("a cat", "a dog")), strict=True))
    others = [copy.deepcopy(tower) for tower in box.towers]
    with torch.no_grad():
        next(others[0].parameters()).add_(1)
    for made in (lambda: words("a cat", "a dog", towers=others), lambda: words("a cat", "an owl")):
        with pytest.raises(pytest.fail.Exception):
            made()
    file = tmp_path / "words.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(pytest.fail.Exception):  # damaged
        words("a cat", "a dog")


def test_features_beyond_what_memory_is_meant_to_hold_are_made_at_each_step(box: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Words(box.towers, ["a cat"], [None]).live
    monkeypatch.setattr("ldm.train.words.HELD", 2 * 4 * (77 * box.family.unet.context_dim + box.towers[1].shape.projection) - 1)
    assert Words(box.towers, ["a cat"], [None]).live


def test_a_state_is_of_its_pictures_order_and_of_its_model(
    box: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from ldm.train.running import start

    def begun(repeats: int, keep: int | None, *, resume: bool, more: float = 0.0, name: str = "box", seed: int = 1) -> list[str]:
        found, said = collect(folder), list[str]()
        found.examples = [replace(each, repeats=repeats, keep=keep) for each in found.examples]
        found.hints = {"size": 512, "batch": OPTIM.batch}
        parts = copy.deepcopy(box.unet), copy.deepcopy(box.vae), box.towers
        with torch.no_grad():
            next(parts[1].parameters()).add_(more)
        limits = Limits(say=said.append)
        run = start(Pipeline(box.family, *parts, source=name), recipe(seed=seed), found, tmp_path, resume=resume, limits=limits)
        run.trainer.save()
        return said

    said = begun(1, None, resume=False)
    assert next(line for line in said if "left out" in line) == "the dataset file's size 512 is left out: the recipe has 64"
    assert not any("batch" in line for line in said)
    begun(1, None, resume=True)
    begun(1, None, resume=True, name="renamed")
    monkeypatch.setattr("ldm.train.prepared._latent", lambda *_: pytest.fail("encoded for a run that is refused"))
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for repeats, keep in ((2, None), (1, 1)):
        with pytest.raises(InputError, match=r"state-00000000\.json: of other data: go on with"):
            begun(repeats, keep, resume=True)
    with pytest.raises(InputError, match="of another model: go on with"):
        begun(1, None, resume=True, more=0.01)
    with pytest.raises(InputError, match="of another recipe and another model: go on with"):
        begun(1, None, resume=True, more=0.01, seed=2)
    assert kept == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_samples_of_blocks_that_are_computed_again_ask_for_nothing_more(
    box: Pipeline, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(box, data, checkpointing=True)
    monkeypatch.setattr("ldm.train.tune.checkpoint", lambda *_, **__: pytest.fail("computed again"))
    with torch.no_grad():
        task.loss(0)
    with pytest.raises(pytest.fail.Exception):
        task.loss(0)


def test_a_run_that_failed_goes_on_slower(box: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from ldm.errors import NumericError
    from ldm.train.running import Run, start

    def begun(*, resume: bool, checkpointing: bool = False, **changed: Any) -> Run:
        parts = copy.deepcopy(box.unet), box.vae, box.towers
        made = recipe(optim=replace(OPTIM, **changed), checkpointing=checkpointing)
        return start(Pipeline(box.family, *parts, source="box"), made, collect(folder), tmp_path, resume=resume, limits=Limits())

    own = TuneTask.loss

    def wild(self: TuneTask, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        loss, figures = own(self, step)
        return loss * (float("nan") if step == 2 else 1.0), figures

    with monkeypatch.context() as patch, pytest.raises(NumericError, match="lower the learning rate and resume"):
        patch.setattr(TuneTask, "loss", wild)
        train(begun(resume=False).trainer, Limits())
    lines = (tmp_path / "tune" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1 and '"step": 2' in lines[0]  # what led to it is in the log
    run = begun(resume=True, lr=1e-5, clip=0.1, steps=5)
    assert run.trainer.step == 2 and train(run.trainer, Limits()) == 5
    for changed in ({"batch": 2}, {"accumulate": 2}, {"weight_decay": 0.1}):
        with pytest.raises(InputError, match="of another recipe: go on with"):
            begun(resume=True, **changed)
    assert begun(resume=True, batch=1, accumulate=3, checkpointing=True).trainer.step == 5  # what is asked for where memory runs out


def test_noise_alone_is_learned_only_where_its_level_counts(box: Pipeline) -> None:
    from dataclasses import replace

    from ldm.train.tune import check

    family = replace(box.family, prediction="v")
    check(family, recipe(zero_terminal=True))
    for weighting in ("min-snr", "debiased"):
        with pytest.raises(InputError, match=f"the weighting '{weighting}'"):
            check(family, recipe(zero_terminal=True, loss=LossRecipe(weighting)))


def test_every_picture_weighs_the_same_in_batches_of_any_size(box: Pipeline, data: Prepared) -> None:
    """Over an epoch of unequal batches the sum of the gradients is that of each picture alone, over the batch's size."""
    task = task_of(box, data)
    sizes = [len(task.batches.rows(step)) for step in range(task.batches.steps)]
    assert len(set(sizes)) > 1 and sum(sizes) == len(data.rows)
    trainer = Trainer(task, OPTIM, Path("unused"))
    wanted = [torch.zeros_like(parameter) for parameter in task.unet.parameters()]
    for step, size in enumerate(sizes):
        loss, figures = task.loss(step)
        assert figures["pictures"] == size
        for total, part in zip(wanted, torch.autograd.grad(loss, list(task.unet.parameters())), strict=True):
            total += part * size / OPTIM.batch
    for trainer.step in range(len(sizes)):
        trainer._gradients()
    for total, parameter in zip(wanted, task.unet.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "told"), [(("transformer",), None), (("transformer", "convolution"), '{"conv_dim": "4", "conv_alpha": "2.0"}')]
)
def test_convolutions_are_told_as_sd_scripts_tells_them(
    box: Pipeline, folder: Path, tmp_path: Path, targets: tuple[Any, ...], told: str | None
) -> None:
    from ldm.train.running import lora_metadata, start

    lora = LoraRecipe(4, 2.0, targets)
    parts = copy.deepcopy(box.unet), box.vae, [copy.deepcopy(tower) for tower in box.towers]
    made = recipe(train="lora", lora=lora)
    run = start(Pipeline(box.family, *parts, source="box"), made, collect(folder), tmp_path, resume=False, limits=Limits())
    assert isinstance(run.task, TuneTask)
    assert lora_metadata(run, run.task, lora).get("ss_network_args") == told


def own(box: Pipeline) -> Pipeline:
    """With a UNet, and towers, to be trained."""
    return Pipeline(box.family, copy.deepcopy(box.unet), box.vae, [copy.deepcopy(tower) for tower in box.towers], source="box")


@pytest.mark.parametrize("lora", [None, LoraRecipe(4, 4.0, ("transformer", "convolution", "towers"))])
def test_pictures_are_of_the_weights_as_they_are_now(box: Pipeline, folder: Path, tmp_path: Path, lora: LoraRecipe | None) -> None:
    from dataclasses import replace

    from ldm.train.running import start

    made = recipe(train="lora" if lora else "unet", lora=lora, optim=replace(OPTIM, lr=0.01, warmup=0))
    runs = [start(own(box), made, collect(folder), tmp_path / name, resume=False, limits=Limits()) for name in "ab"]

    def pictured(at: int) -> torch.Tensor:
        return runs[at].pipeline.generate("a red thing", width=64, height=64, steps=1, seed=1).latents

    before = pictured(0)
    for _ in range(2):
        runs[0].trainer.advance()
    runs[1].task.module.load_state_dict(runs[0].task.module.state_dict())
    now = pictured(1)
    assert (pictured(0) - now).norm() < 1e-5 * now.norm() < 1e-2 * (before - now).norm()


def test_samples_by_the_moving_average_leave_no_trace(box: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the state, nor in memory, of which the exchange takes none."""
    from dataclasses import replace

    from ldm.ops import conv
    from ldm.runtime import graph
    from ldm.train.running import start

    forgotten: list[int] = []
    monkeypatch.setattr(graph, "forget", lambda: forgotten.append(1))
    made = recipe(optim=replace(OPTIM, lr=0.01, warmup=0))
    runs = [start(own(box), made, collect(folder), tmp_path / name, resume=False, limits=Limits()) for name in "ab"]
    runs[0].trainer.advance()
    run, pipeline = runs[1], runs[1].pipeline
    run.trainer.advance()
    weights = [*pipeline.unet.parameters(), *pipeline.vae.parameters()]
    learned, (name, mean) = dict(pipeline.unet.named_parameters()), next(iter(run.trainer.ema.mean.items()))
    places = learned[name].data_ptr(), mean.data_ptr()
    with pytest.raises(ZeroDivisionError), run.averaged():
        assert (mean.data_ptr(), learned[name].data_ptr()) == places
        pipeline.generate("a red thing", width=64, height=64, steps=1, seed=1)
        assert conv.held(weights) > 0 and not forgotten
        raise ZeroDivisionError
    assert (learned[name].data_ptr(), mean.data_ptr()) == places and conv.held(weights) == 0 and forgotten
    states = []
    for each in runs:
        each.trainer.advance()
        each.trainer.save()
        states.append(load_state(each.trainer.folder, pytest.fail))
    assert states[0] is not None and states[1] is not None and states[0][1].keys() == states[1][1].keys()
    assert all(torch.equal(value, states[1][1][name]) for name, value in states[0][1].items())


def test_a_model_that_is_no_more_what_it_was_is_not_copied(box: Pipeline, folder: Path, tmp_path: Path) -> None:
    import shutil

    from ldm.checkpoint.safetensors import read_header
    from ldm.errors import FileError
    from ldm.resources import weights
    from ldm.train.running import start, write

    file, there = weights() / "ldm-emoji.safetensors", tmp_path / "model.safetensors"
    base = read_header(shutil.copyfile(file, there))
    run = start(own(box), recipe(), collect(folder), tmp_path / "run", resume=False, limits=Limits())
    write(run, base, tmp_path / "a.safetensors")
    for change, why in ((lambda: there.write_bytes(file.read_bytes() + b"x"), "it was changed since"), (there.unlink, "No such file")):
        change()
        with pytest.raises(FileError, match=rf"model\.safetensors: {why}.*: put the model back, or say with -m where") as caught:
            write(run, base, tmp_path / "b.safetensors")
        assert caught.value.code == "E3009" and not (tmp_path / "b.safetensors").exists()


def test_a_run_that_is_stopped_before_its_pictures_are_encoded_goes_on_with_them(
    box: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.errors import LdmError
    from ldm.train import prepared
    from ldm.train.running import start

    def begun(name: str, limits: Limits) -> list[torch.Tensor]:
        task = start(own(box), recipe(), collect(folder), tmp_path / name, resume=True, limits=limits).task
        assert isinstance(task, TuneTask)
        return task.data.z

    wanted, asked, said = begun("whole", Limits()), list[int](), list[str]()
    with pytest.raises(LdmError, match="stopped before all pictures were encoded"):
        begun("part", Limits(stop=lambda: len(asked) > 1 or bool(asked.append(1)), say=said.append))  # type: ignore[func-returns-value]
    assert any("kept in" in line and line.endswith(": 2") for line in said)
    with pytest.raises(LdmError, match="more --minutes"):
        begun("part", Limits(minutes=5, begun=-1e9))
    encode, encoded = prepared._latent, list[int]()

    def counted(*given: Any) -> torch.Tensor:
        encoded.append(1)
        if len(encoded) == 2:
            raise KeyboardInterrupt
        return encode(*given)

    monkeypatch.setattr(prepared, "_latent", counted)
    with pytest.raises(KeyboardInterrupt):
        begun("part", Limits())
    found = begun("part", Limits(minutes=0))  # prepares
    assert len(encoded) == 4 and all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
    assert sorted(path.name for path in (tmp_path / "part").glob("*.json")) == ["latents.json", "words.json"]


def test_pictures_that_can_be_opened_no_more_are_known_before_older_ones_are_replaced(box: Pipeline, folder: Path, tmp_path: Path) -> None:
    import shutil

    from ldm.train.running import start

    shutil.copytree(folder, tmp_path / "pictures")
    start(own(box), recipe(), collect(tmp_path / "pictures"), tmp_path / "run", resume=False, limits=Limits()).trainer.save()
    kept = (tmp_path / "run" / "latents.json").read_bytes()
    (tmp_path / "pictures" / "1.png").write_bytes(b"cut")
    with pytest.raises(InputError, match="of data of which other pictures could be opened: go on with"):
        start(own(box), recipe(), collect(tmp_path / "pictures"), tmp_path / "run", resume=True, limits=Limits())
    assert (tmp_path / "run" / "latents.json").read_bytes() == kept


def test_memory_that_runs_out_in_the_preparation_is_named(
    box: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.errors import MemoryNeedError
    from ldm.train.running import start

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("ldm.train.prepared._latent", full)
    with pytest.raises(
        MemoryNeedError, match=r"preparing the run: out of memory \(2.00 GiB more asked for\): take a smaller pictures.size"
    ):
        start(own(box), recipe(), collect(folder), tmp_path, resume=False, limits=Limits())


def test_a_lora_of_long_captions_can_be_read_again(box: Pipeline, folder: Path, tmp_path: Path) -> None:
    import json
    from dataclasses import replace

    from ldm.checkpoint.safetensors import read_header
    from ldm.resources import weights
    from ldm.train.running import start, write

    run = start(own(box), recipe(train="lora", lora=LoraRecipe(1, 1.0)), collect(folder), tmp_path, resume=False, limits=Limits())
    assert isinstance(run.task, TuneTask)
    long = [f"often, {k}{99_000 * chr(34)}" for k in range(180)]
    run.task.data = replace(run.task.data, captions=["rare", *long], rows=list(range(181)))
    write(run, read_header(weights() / "ldm-emoji.safetensors"), tmp_path / "x.safetensors")
    told = read_header(tmp_path / "x.safetensors").metadata["ss_tag_frequency"]
    tags = json.loads(told)["pictures"]
    assert (tags["often"], tags["rare"]) == (180, 1) and len(tags) > 3 and len(told) <= 2**20
