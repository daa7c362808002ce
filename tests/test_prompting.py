"""What the prompt language does to a picture: laws that hold whatever the weights of the model are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ldm
from ldm.diffusion.profiles import load_profile
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.metadata import a1111
from ldm.metadata.native import Record
from ldm.pipeline import Pipeline, Result
from scripts import synthetic

SMALL: dict[str, Any] = {"width": 48, "height": 48, "steps": 4, "cfg": 6.0, "seed": 5, "sampler": "euler"}

pytestmark = pytest.mark.filterwarnings("ignore:profile")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return ldm.load(synthetic.write(tmp_path_factory.mktemp("model") / "tiny.safetensors", synthetic.tiny("sdxl-base"), dtype="F32"))


def made(pipeline: Pipeline, prompt: str, negative: str | None = "blur", **fields: Any) -> torch.Tensor:
    return pipeline.generate(prompt, negative, **{**SMALL, "profile": "a1111", **fields}).latents


@pytest.mark.parametrize(("text", "same"), [("[cat:dog:9]", "cat"), ("[cat:dog:0]", "dog"), ("[cat|cat]", "cat"), ("a {cat}", "a {cat}")])
def test_forms_that_are_one_are_the_plain_prompt(text: str, same: str, pipeline: Pipeline) -> None:
    assert torch.equal(made(pipeline, text), made(pipeline, same))


def test_words_change_on_the_way(pipeline: Pipeline) -> None:
    seen: dict[str, list[torch.Tensor]] = {"cat": [], "[cat:dog:2]": []}
    for text, steps in seen.items():
        pipeline.generate(text, "blur", **SMALL, profile="a1111", on_step=lambda step, steps=steps: steps.append(step.x0))
    same = [torch.equal(one, two) for one, two in zip(*seen.values(), strict=True)]
    assert same == [True, True, True, False]  # calls 0 to 2 are told of the cat


def test_the_negative_changes_too(pipeline: Pipeline) -> None:
    assert torch.equal(made(pipeline, "a", "[cat:dog:0]"), made(pipeline, "a", "dog"))
    assert torch.equal(made(pipeline, "a", "cat AND dog"), made(pipeline, "a", "cat AND dog", overrides={"syntax": "comfyui"}))


@pytest.mark.parametrize(
    ("text", "fields", "same", "others"),
    [
        ("cat AND cat :0.5", {}, "cat", {"cfg": 9.0}),
        ("cat :0.5", {}, "cat", {"cfg": 3.0}),
        ("cat :2", {"cfg": 1.0}, "cat", {"cfg": 2.0}),
        ("cat AND dog :0", {}, "cat", {}),
        ("cat AND dog", {}, "dog AND cat", {}),
    ],
)
def test_weights_of_texts_side_by_side(text: str, fields: dict[str, Any], same: str, others: dict[str, Any], pipeline: Pipeline) -> None:
    assert relative_error(made(pipeline, text, **fields), made(pipeline, same, **others)) < 1e-4


def test_a_picture_of_a_batch_has_its_own_words(pipeline: Pipeline) -> None:
    text = "a {cat|dog|house} in {rain, rain, rain|snow}"
    batch: Result = pipeline.generate(text, **SMALL, batch=3)
    for k in range(3):
        alone = pipeline.generate(text, **{**SMALL, "seed": 5 + k})
        assert torch.equal(batch.latents[k : k + 1], alone.latents)
        record = Record(batch.job, batch.seeds[k], k, "m", "sdxl-base", None, "cpu", "float32", "2", "0")
        words = a1111.from_record(record, load_profile("comfyui")).prompt
        assert "{" not in words
        assert torch.equal(pipeline.generate(words, **{**SMALL, "seed": 5 + k}).latents, alone.latents)
    assert (batch.seeds, len(batch.images), batch.job.prompt) == ([5, 6, 7], 3, text)


def test_the_second_text_is_the_last_towers(pipeline: Pipeline) -> None:
    plain = made(pipeline, "cat", profile="comfyui")
    assert torch.equal(made(pipeline, "cat", profile="comfyui", prompt_2="cat", negative_2="blur"), plain)
    assert not torch.equal(made(pipeline, "cat", profile="comfyui", prompt_2="dog"), plain)
    assert not torch.equal(made(pipeline, "cat", profile="comfyui", negative_2="dog"), plain)
    assert not torch.equal(made(pipeline, "cat", None, negative_2="dog"), made(pipeline, "cat", None))  # an empty one is zeros here


def test_weights_have_an_effect_by_the_profile(pipeline: Pipeline) -> None:
    both = [made(pipeline, text, profile="comfyui") for text in ("a (cat:1.4)", "a cat")]
    assert not torch.equal(*both)
    rules = {"syntax": "comfyui", "weighting": "none"}
    assert torch.equal(made(pipeline, "a (cat:1.4)", profile="comfyui", overrides=rules), made(pipeline, "a cat", profile="comfyui"))


def test_what_cannot_be_read_is_refused_before_the_towers_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "towers", [])
    for fields in ({"prompt": "a (b:11)"}, {"prompt": "a", "prompt_2": "(b:11)"}, {"prompt": "a", "negative": "(b:11)"}):
        with pytest.raises(InputError, match="weight 11 is not allowed"):
            pipeline.generate(**fields, **SMALL)  # type: ignore[arg-type]
