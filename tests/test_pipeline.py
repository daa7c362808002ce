"""From a file to pictures at tiny width: seed laws, batches, stopping, threads, non-finite values, a VAE of its own."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ldm
from ldm import ops
from ldm.devices import dtype_of
from ldm.diffusion import samplers
from ldm.errors import InputError, MemoryNeedError, NumericError
from ldm.measure import relative_error
from ldm.options import Job
from ldm.pipeline import Pipeline, Result
from ldm.resolve import resolve
from ldm.runtime import autoencoding
from ldm.text.conditioning import Conditioning
from scripts import synthetic

SMALL = {"width": 64, "height": 48, "steps": 3, "cfg": 5.0, "seed": 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("model") / "tiny.safetensors", synthetic.tiny("sdxl-base"), dtype="F32")


@pytest.fixture
def pipeline(checkpoint: Path) -> Pipeline:
    return ldm.load(checkpoint, device="cpu")


@pytest.mark.filterwarnings("ignore:profile a1111")
@pytest.mark.parametrize("profile", ["comfyui", "a1111"])
@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_picture_k_is_that_of_its_own_seed(pipeline: Pipeline, sampler: str, profile: str) -> None:
    together = pipeline.generate("a cat", "a dog", batch=3, sampler=sampler, profile=profile, **SMALL)
    assert together.seeds == [5, 6, 7]
    alone = pipeline.generate("a cat", "a dog", sampler=sampler, profile=profile, **SMALL | {"seed": 6})
    assert (together.latents[1] - alone.latents[0]).abs().max() <= 1e-6
    assert together.images[1].tobytes() == alone.images[0].tobytes()
    assert not torch.equal(together.latents[0], together.latents[1])


def test_a_large_batch_is_its_pictures(pipeline: Pipeline) -> None:
    small = SMALL | {"sampler": "euler_a", "width": 32, "height": 32}
    together = pipeline.generate("a cat", "a dog", batch=16, **small).latents
    for k in (0, 7, 15):
        assert torch.equal(together[k], pipeline.generate("a cat", "a dog", **small | {"seed": 5 + k}).latents[0])


def test_two_prompts_in_one_batch(pipeline: Pipeline) -> None:
    """`sample` takes a row of conditioning a picture, or one for all, of unequal lengths too."""
    conds = [pipeline.encode(text, size=(48, 64)) for text in ("a cat", "a red house by the sea")]
    uncond = pipeline.encode("word " * 100, size=(48, 64))
    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0)) * 14
    run = {"sigmas": (14.0, 3.0, 0.0), "sampler": "euler", "cfg": 4.0, "noise": lambda i, sigma, sigma_next: torch.zeros(1)}
    both = Conditioning(torch.cat([cond.context for cond in conds]), torch.cat([cond.vector for cond in conds]))
    together = pipeline.sample(both, uncond, x, **run)
    for k, cond in enumerate(conds):
        assert relative_error(together[k : k + 1], pipeline.sample(cond, uncond, x[k : k + 1], **run)) < 1e-6
    with pytest.raises(InputError, match="3 pictures with conditioning of"):
        pipeline.sample(both, uncond, torch.cat([x, x[:1]]), **run)
    with pytest.raises(InputError, match=r"cfg 4\.0 needs"):
        pipeline.sample(both, None, x, **run)


def test_the_references_of_all_operations_give_the_same_picture(pipeline: Pipeline) -> None:
    fast = pipeline.generate("a cat", **SMALL).latents
    with ops.reference():
        assert ops.use_reference()
        slow = pipeline.generate("a cat", **SMALL).latents
    assert not ops.use_reference()
    assert relative_error(fast, slow) < 1e-5


def test_results_are_plain_tensors(pipeline: Pipeline) -> None:
    result, cond = pipeline.generate("a cat", **SMALL), pipeline.encode("a cat", size=(64, 64))
    weight = torch.ones((), requires_grad=True)
    (result.latents * weight).sum().backward()
    cond.context.mul_(2)


def test_a_closed_pipeline_says_so(pipeline: Pipeline) -> None:
    pipeline.close()
    pipeline.close()
    with pytest.raises(InputError, match="closed"):
        pipeline.generate("a cat", **SMALL)


def test_to_takes_names(pipeline: Pipeline) -> None:
    assert pipeline.to("cpu", "bfloat16").dtype == torch.bfloat16
    assert dtype_of(pipeline.vae) == torch.float32
    assert dtype_of(pipeline.to(vae_dtype="bfloat16").vae) == torch.bfloat16
    assert dtype_of(pipeline.to(dtype="float32").vae) == torch.bfloat16
    with pytest.raises(InputError, match="dtype 'bf17'"):
        pipeline.to(dtype="float16", vae_dtype="bf17")
    assert pipeline.dtype == torch.float32
    with pytest.raises(InputError, match="dtype 'bf17'"):
        pipeline.to(dtype="bf17")


def test_the_vae_follows_an_explicit_dtype_alone(checkpoint: Path) -> None:
    """Where the family does not ask for float32."""
    pipeline = ldm.load(checkpoint, device="cpu", vae_dtype="bfloat16")
    pipeline.family = replace(pipeline.family, vae_dtype="auto")
    for words in ({}, {"dtype": "auto"}, {"device": "cpu"}, {"dtype": torch.float32, "vae_dtype": "auto"}):
        assert (pipeline.to(**words).dtype, dtype_of(pipeline.vae)) == (torch.float32, torch.bfloat16), words
    assert dtype_of(pipeline.to(dtype="float16").vae) == torch.float16
    assert dtype_of(pipeline.to(dtype="bfloat16", vae_dtype="float32").vae) == torch.float32


def test_notes_are_the_callers(pipeline: Pipeline) -> None:
    with pytest.warns(UserWarning, match="negative prompt has no effect") as seen:
        pipeline.generate("a cat", "a dog", **SMALL | {"cfg": 1.0})
    with pytest.warns(UserWarning, match="profile a1111: its lcm") as more:
        pipeline.generate("a cat", profile="a1111", sampler="lcm", **SMALL)
    with pytest.warns(UserWarning, match="BREAK"):
        pipeline.generate("a cat BREAK a dog", **SMALL)
    assert {warning.filename for warning in (*seen, *more)} == {__file__}


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 33, 32), torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
def test_images_that_cannot_be_encoded(pipeline: Pipeline, image: torch.Tensor) -> None:
    with pytest.raises(InputError, match="encode_image"):
        pipeline.encode_image(image)


def test_the_same_call_gives_the_same_picture(pipeline: Pipeline) -> None:
    first, second = (pipeline.generate("a cat", sampler="dpmpp_sde", **SMALL) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    other = pipeline.generate("a cat", sampler="dpmpp_sde", **SMALL | {"seed": 9})
    assert not torch.equal(first.latents, other.latents)


def test_threads_share_a_pipeline(pipeline: Pipeline) -> None:
    jobs = [SMALL | {"seed": seed, "sampler": name} for seed, name in enumerate(samplers.SAMPLERS)]
    serial = [pipeline.generate("a cat", **job).latents for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        parallel = list(pool.map(lambda job: pipeline.generate("a cat", **job).latents, jobs))
    assert all(torch.equal(one, two) for one, two in zip(serial, parallel, strict=True))


def test_stop_decodes_the_last_prediction(pipeline: Pipeline) -> None:
    seen = []

    def on_step(step: samplers.Step) -> bool:
        seen.append(step.x0)
        return len(seen) < 2

    result = pipeline.generate("a cat", on_step=on_step, **SMALL)
    assert result.stopped_at == 2
    assert len(seen) == 2
    assert torch.equal(result.latents, seen[-1])
    assert pipeline.generate("a cat", on_step=lambda step: None, **SMALL).stopped_at is None


def test_the_job_is_resolved(pipeline: Pipeline) -> None:
    job = pipeline.generate("a cat", steps=2, width=64, height=64).job
    assert (job.sampler, job.schedule, job.cfg) == ("dpmpp_2m", "karras", 5.0)
    assert job.sigmas is not None and len(job.sigmas) == 3 and job.sigmas[-1] == 0.0
    again = pipeline.generate("a cat", sigmas=torch.tensor(job.sigmas), seed=np.int64(job.seed or 0), width=64, height=64)
    assert (again.job.steps, again.job.schedule, again.job.sigmas) == (2, None, job.sigmas)
    assert type(again.job.seed) is int
    full = resolve(Job("a cat"), pipeline.family)[0]
    assert (full.width, full.height, full.steps) == (1024, 1024, 30)


@pytest.mark.filterwarnings("ignore:cfg 1")
def test_guidance_scale_one_needs_no_negative(pipeline: Pipeline) -> None:
    one = pipeline.generate("a cat", "a dog", **SMALL | {"cfg": 1.0})
    assert torch.equal(one.latents, pipeline.generate("a cat", "another", **SMALL | {"cfg": 1.0}).latents)
    near = pipeline.generate("a cat", "a dog", **SMALL | {"cfg": 1.0 + 1e-6})
    assert relative_error(near.latents, one.latents) < 1e-4


def test_prompts_of_unequal_length(pipeline: Pipeline) -> None:
    long = "a red cat on a green sofa beside a blue lamp, " * 12
    assert pipeline.encode(long, size=(48, 64)).context.shape[1] > 77
    both = [pipeline.generate(*texts, **SMALL).latents for texts in ((long, "a dog"), ("a dog", long))]
    assert all(latents.isfinite().all() for latents in both)


def test_empty_negative_follows_the_profile(pipeline: Pipeline) -> None:
    """ComfyUI encodes "", A1111 takes zeros for it; other negatives are encoded by both."""
    empty = {name: pipeline.generate("a cat", "", profile=name, overrides={"rng": "cpu"}, **SMALL).latents for name in ("comfyui", "a1111")}
    forced = pipeline.generate("a cat", "", profile="a1111", overrides={"rng": "cpu", "empty_negative": "encode"}, **SMALL).latents
    assert relative_error(forced, empty["comfyui"]) < relative_error(empty["a1111"], empty["comfyui"])


def test_sizes_reach_the_picture(pipeline: Pipeline) -> None:
    one = pipeline.encode("a cat", size=(64, 64))
    assert torch.equal(one.vector, pipeline.encode("a cat", size=(64, 64), original=(64, 64), crop=(0, 0), target=(64, 64)).vector)
    for change in ({"original": (32, 64)}, {"crop": (0, 8)}, {"target": (64, 32)}):
        assert not torch.equal(one.vector, pipeline.encode("a cat", size=(64, 64), **change).vector)


def test_the_second_tower_may_read_another_text(pipeline: Pipeline) -> None:
    one, other = pipeline.encode("a cat", size=(64, 64)), pipeline.encode("a cat", size=(64, 64), text_2="a dog")
    width = pipeline.towers[0].shape.width
    assert torch.equal(one.context[..., :width], other.context[..., :width])
    assert not torch.equal(one.context[..., width:], other.context[..., width:])


def test_encode_and_decode_images(pipeline: Pipeline) -> None:
    z = pipeline.encode_image(torch.zeros(1, 3, 32, 48))
    assert z.shape == (1, 4, 4, 6)
    image = pipeline.decode(z)
    assert image.shape == (1, 3, 32, 48)
    assert image.abs().max() <= 1
    mean, _ = pipeline.vae.encode(torch.zeros(1, 3, 32, 48))
    assert torch.allclose(z, mean * 0.13025)


@pytest.mark.parametrize("step", [0, 2])
def test_non_finite_latents_name_the_step(pipeline: Pipeline, step: int) -> None:
    calls = []

    def poison(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return out.index_fill(1, torch.tensor([0]), float("nan")) if len(calls) == step + 1 else out

    hook = pipeline.unet.register_forward_hook(poison)
    with pytest.raises(NumericError, match=rf"sampling: .* step {step + 1} of 3"):
        pipeline.generate("a cat", sampler="euler", **SMALL)
    hook.remove()


def test_the_vae_is_tried_again_with_more_range(checkpoint: Path) -> None:
    """Weights that overflow in half precision: the same picture as in float32, a warning, and the VAE as it was."""
    pipeline, wide = (ldm.load(checkpoint, device="cpu", vae_dtype=kind) for kind in ("float16", "float32"))
    for each in (pipeline, wide):
        each.vae.decoder.mid.block_1.conv1.weight.mul_(2.0**15)
        each.vae.decoder.mid.block_1.norm2.weight.mul_(2.0**-2)
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="not finite in float16"):
        image = pipeline.decode(z)
    assert next(pipeline.vae.parameters()).dtype == torch.float16
    assert relative_error(image, wide.decode(z)) < 0.05


def test_a_broken_vae_is_an_error(pipeline: Pipeline) -> None:
    pipeline.vae.decoder.conv_in.weight.fill_(float("inf"))
    with pytest.raises(NumericError, match="VAE decode"):
        pipeline.generate("a cat", **SMALL)


@pytest.mark.parametrize("error", [NumericError("broken"), KeyboardInterrupt(), MemoryError()], ids=lambda error: type(error).__name__)
def test_what_breaks_a_decode_carries_what_was_made_before(
    pipeline: Pipeline, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.generate("a cat", batch=3, **SMALL)
    assert whole.vae_dtypes == ["float32"] * 3
    pictures, convert = iter([None, error]), autoencoding.to_pil

    def breaking(image: torch.Tensor) -> object:
        broken = next(pictures)
        if broken is not None:
            raise broken
        return convert(image)

    monkeypatch.setattr(autoencoding, "to_pil", breaking)
    with pytest.raises(MemoryNeedError if isinstance(error, MemoryError) else type(error)) as caught:
        pipeline.generate("a cat", batch=3, **SMALL)
    made: Result = getattr(caught.value, "result", None)
    assert [each.tobytes() for each in made.images] == [whole.images[0].tobytes()]
    assert torch.equal(made.latents, whole.latents) and made.seeds == whole.seeds and made.job == whole.job
    assert made.vae_dtypes == ["float32"]


def test_an_error_before_the_latents_carries_nothing(pipeline: Pipeline) -> None:
    with pytest.raises(InputError) as caught:
        pipeline.generate("a cat", **SMALL | {"width": 7})
    assert caught.value.result is None


def test_the_dtype_that_the_vae_decoded_in_is_told(checkpoint: Path) -> None:
    pipeline = ldm.load(checkpoint, device="cpu", vae_dtype="float16")
    assert pipeline.generate("a cat", **SMALL).vae_dtypes == ["float16"]
    passes = itertools.count()

    def overflow(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        return out * float("inf") if out.dtype == torch.float16 and next(passes) == 0 else out

    pipeline.vae.decoder.conv_in.register_forward_hook(overflow)
    with pytest.warns(RuntimeWarning, match="decoding again in bfloat16"):
        assert pipeline.generate("a cat", batch=2, **SMALL).vae_dtypes == ["bfloat16", "float16"]


def test_a_vae_from_another_file(checkpoint: Path, tmp_path: Path) -> None:
    family = synthetic.tiny("sdxl-base")
    same = synthetic.write_vae(tmp_path / "vae.safetensors", family, dtype="F32")
    pipeline, plain = ldm.load(checkpoint, device="cpu", vae=same), ldm.load(checkpoint, device="cpu")
    assert pipeline.vae_source == "vae.safetensors"
    assert pipeline.vae.state_dict().keys() == plain.vae.state_dict().keys()
    assert np.isfinite(np.asarray(pipeline.generate("a cat", **SMALL).images[0])).all()


def test_half_precision_stays_near(checkpoint: Path) -> None:
    """bfloat16 networks: latents float32 outside, within bfloat16's own error of float32's."""
    half, full = ldm.load(checkpoint, device="cpu", dtype="bfloat16"), ldm.load(checkpoint, device="cpu")
    assert half.dtype == torch.bfloat16
    assert next(half.vae.parameters()).dtype == torch.float32
    ours = half.generate("a cat", **SMALL).latents
    assert ours.dtype == torch.float32
    assert relative_error(ours, full.generate("a cat", **SMALL).latents) < 0.1


def test_the_refiner_runs(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "refiner.safetensors", synthetic.tiny("sdxl-refiner"), dtype="F16")
    pipeline = ldm.load(path, device="cpu")
    first = pipeline.encode("a cat", size=(64, 64))
    assert torch.equal(first.vector, pipeline.encode("a cat", size=(64, 64), aesthetic=6.0).vector)
    assert not torch.equal(first.vector, pipeline.encode("a cat", size=(64, 64), aesthetic=2.5).vector)
    assert pipeline.generate("a cat", **SMALL).latents.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 65}, "width 65"),
        ({"sampler": "eulr"}, "eulr"),
        ({"schedule": "karas"}, "karas"),
        ({"profile": "comfy"}, "comfyui"),
        ({"overrides": {"rngg": "cpu"}}, "rng"),
        ({"steps": 0}, "steps 0"),
        ({"seed": 2**64}, "seed"),
        ({"sigmas": (1.0, 2.0)}, "sigmas"),
        ({"sigmas": 3.0}, "sigmas"),
        ({"sigmas": [3.0, None]}, "sigmas"),
        ({"batch": None}, "batch"),
        ({"profile": 3}, "profile"),
        ({"overrides": "rng=cpu"}, "overrides"),
        ({"overrides": {"drop_penultimate": 3}}, "drop_penultimate"),
        ({"overrides": {"ensd": 1.5}}, "ensd"),
        ({"overrides": {3: "x"}}, "unknown profile field"),
    ],
)
def test_values_out_of_range(pipeline: Pipeline, change: dict[str, object], message: str) -> None:
    values = SMALL | change
    if "sigmas" in change:
        del values["steps"]
    with pytest.raises(InputError, match=message):
        pipeline.generate("a cat", **values)


def test_what_load_refuses(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="dtype 'float99'"):
        ldm.load(checkpoint, dtype="float99")
    for name in ("xpu", "meta", "cuda:-1"):
        with pytest.raises(InputError, match="is not known"):
            ldm.load(checkpoint, device=name)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"device cuda: .* sees 0 of that kind"):
            ldm.load(checkpoint, device="cuda")


def test_rows_of_a_prediction_are_those_of_the_whole(pipeline: Pipeline) -> None:
    """What dpm_adaptive asks for each picture: its rows alone, one row of conditioning for all pictures or one a picture."""
    from ldm.diffusion.prediction import Prediction

    conds = [pipeline.encode(text, size=(48, 64)) for text in ("a dog", "a cat", "the sea", "a red house")]
    for picked, count in ((conds[:2], 3), (conds, 1), (conds, 2)):
        context, vector = torch.cat([each.context for each in picked]), torch.cat([each.vector for each in picked])
        x = torch.randn(len(picked) * count, 4, 6, 8, generator=torch.Generator().manual_seed(1))
        whole = Prediction(pipeline.unet, context, vector, count=count)
        pictures = len(x) // 2
        for k in range(pictures):
            rows = [k, pictures + k]
            torch.testing.assert_close(whole.rows(rows)(x[rows], 500.0), whole(x, 500.0)[rows], rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:cfg 1")
def test_cfg_pp_sees_the_negative_at_cfg_1(pipeline: Pipeline) -> None:
    job = SMALL | {"sampler": "euler_cfg_pp", "cfg": 1.0}
    made = [pipeline.generate("a cat", negative, **job).latents for negative in ("a dog", "the sea")]
    assert not torch.equal(*made)
    assert not torch.equal(made[0], pipeline.generate("a cat", "a dog", **job | {"sampler": "euler"}).latents)
