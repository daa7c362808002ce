"""Context and vector: check values, orders, the zero rule, and independence of what is encoded beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.profiles import load_profile
from ldm.errors import InputError
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family, load_family
from ldm.text import conditioning
from ldm.text.conditioning import Conditioning, decide_zero, encode, fourier, size_numbers, zeroed
from ldm.text.course import same_length
from ldm.text.prompt import CHUNK, tower_texts
from tests.models.tiny import tiny

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text(encoding="utf-8"))
SIZES: dict[str, Any] = {"size": (768, 512), "original": (1000, 900), "crop": (8, 24), "target": (640, 704)}


@pytest.fixture(scope="module", params=["sdxl-base", "sdxl-refiner"])
def family(request: pytest.FixtureRequest) -> Family:
    return tiny(request.param)


@pytest.fixture(scope="module")
def towers(family: Family) -> list[CLIPText]:
    torch.manual_seed(0)
    return [CLIPText(shape).eval() for shape in family.towers]


def encoded(text: str, towers: list[CLIPText], family: Family) -> Conditioning:
    texts = tower_texts([text] * len(towers), [tower.shape.pad_token for tower in towers], load_profile("comfyui"))
    with torch.inference_mode():
        return encode(towers, family, [texts], size_numbers(family.numbers, size=(768, 512)))[0]


def test_published_check_values() -> None:
    row = fourier(torch.tensor([[1024.0]]))[0]
    assert row[:3].tolist() == pytest.approx([0.98735362, -0.53761721, 0.68345720], abs=1e-7)
    assert row[128:131].tolist() == pytest.approx([-0.15853338, -0.84318900, 0.72999060], abs=1e-7)
    assert fourier(torch.tensor([[999.0]]), 320)[0, :3].tolist() == pytest.approx([0.99964982, 0.80267751, -0.27806213], abs=1e-7)


@pytest.mark.parametrize("case", GOLDEN["sinusoids"], ids=lambda case: f"{case['value']}-{case['dim']}")
def test_equals_diffusers_sinusoid(case: dict[str, list[float]]) -> None:
    ours = fourier(torch.tensor([[case["value"]]]), int(case["dim"]))[0]  # type: ignore[call-overload]
    torch.testing.assert_close(ours, torch.tensor(case["features"]), rtol=0, atol=1e-6)


def test_each_number_is_its_own_sinusoid_in_order() -> None:
    numbers = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    alone = [[fourier(numbers[i : i + 1, k : k + 1], 8)[0] for k in range(3)] for i in range(2)]
    assert torch.equal(fourier(numbers, 8), torch.stack([torch.cat(row) for row in alone]))


def test_order_of_the_numbers() -> None:
    base, refiner = load_family("sdxl-base"), load_family("sdxl-refiner")
    assert size_numbers(base.numbers, **SIZES) == [1000, 900, 8, 24, 640, 704]
    assert size_numbers(refiner.numbers, **SIZES) == [1000, 900, 8, 24, 6.0]
    assert size_numbers(refiner.numbers, **SIZES, aesthetic=2.5)[-1] == 2.5 == conditioning.AESTHETIC_NEGATIVE
    assert size_numbers(base.numbers, size=(768, 512)) == [768, 512, 0, 0, 768, 512]
    assert base.unet.vector_dim == 1280 + 256 * 6
    assert refiner.unet.vector_dim == 1280 + 256 * 5


def test_order_of_the_numbers_equals_diffusers() -> None:
    pipelines = pytest.importorskip("diffusers")
    theirs = pipelines.StableDiffusionXLPipeline._get_add_time_ids

    class Projection:
        in_features = 2816

    class Network:
        class config:
            addition_time_embed_dim = 256

        class add_embedding:
            linear_1 = Projection

    class Pipe:
        unet = Network

    sizes = [SIZES[name] for name in ("original", "crop", "target")]
    ids: Tensor = theirs(Pipe, *sizes, dtype=torch.float32, text_encoder_projection_dim=1280)
    assert ids.tolist() == [size_numbers(load_family("sdxl-base").numbers, **SIZES)]


def test_shapes_and_parts(family: Family, towers: list[CLIPText]) -> None:
    text = "a cat, " * 60
    cond = encoded(text, towers, family)
    ids = [each.ids for each in tower_texts([text] * len(towers), [tower.shape.pad_token for tower in towers], load_profile("comfyui"))]
    assert cond.context.shape == (1, 77 * 3, family.unet.context_dim)
    assert cond.vector.shape == (1, family.unet.vector_dim)
    column = 0
    with torch.inference_mode():
        for tower, chunks in zip(towers, ids, strict=True):
            out = tower(torch.tensor(chunks))
            part = cond.context[0, :, column : column + tower.shape.width]
            torch.testing.assert_close(part, torch.cat(list(out.penultimate)), rtol=0, atol=1e-6)
            column += tower.shape.width
        pooled = towers[-1](torch.tensor(ids[-1][:1])).pooled
    width = towers[-1].shape.projection
    torch.testing.assert_close(cond.vector[:, :width], pooled, rtol=0, atol=1e-6)
    numbers = torch.tensor([size_numbers(family.numbers, size=(768, 512))])
    assert torch.equal(cond.vector[:, width:], fourier(numbers, family.size_embedding))


def test_long_prompts_run_a_few_chunks_at_a_time(family: Family, towers: list[CLIPText], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded("a cat, " * 200, towers, family)
    monkeypatch.setattr(conditioning, "CHUNKS_AT_ONCE", 2)
    parts = encoded("a cat, " * 200, towers, family)
    torch.testing.assert_close(whole.context, parts.context, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.vector, parts.vector, rtol=0, atol=1e-6)


def test_a_prompt_does_not_depend_on_what_was_encoded_before(family: Family, towers: list[CLIPText]) -> None:
    first = encoded("a red apple", towers, family)
    for other in ("", "a blue boat, " * 70, "a red apple"):
        encoded(other, towers, family)
        again = encoded("a red apple", towers, family)
        assert torch.equal(first.context, again.context)
        assert torch.equal(first.vector, again.vector)


def test_low_precision_towers_give_float32(family: Family) -> None:
    torch.manual_seed(0)
    cond = encoded("a cat", [CLIPText(shape).eval().bfloat16() for shape in family.towers], family)
    assert cond.context.dtype == cond.vector.dtype == torch.float32
    exact = fourier(torch.tensor([size_numbers(family.numbers, size=(768, 512))]), family.size_embedding)
    assert torch.equal(cond.vector[:, family.towers[-1].projection :], exact)


@pytest.mark.parametrize(
    ("rule", "none", "empty", "spaces", "text"),
    [
        ("encode", False, False, False, False),
        ("zeros-if-none", True, False, False, False),
        ("zeros-if-empty", True, True, False, False),
        ("zeros", True, True, True, True),
    ],
)
def test_zero_rule(rule: conditioning.EmptyNegative, none: bool, empty: bool, spaces: bool, text: bool) -> None:
    assert [decide_zero(rule, negative) for negative in (None, "", " ", "ugly")] == [none, empty, spaces, text]


NO, YES = (False, False), (True, True)


@pytest.mark.parametrize(
    ("rule", "text", "second", "negative", "wanted"),
    [
        ("zeros-any", "", "style", False, (False, True)),
        ("zeros-any", "a cat", "", False, (True, False)),
        ("zeros-any", "", None, False, YES),
        ("zeros-any", None, "style", True, (False, True)),
        ("zeros-if-empty", "", "style", True, NO),
        ("zeros-if-empty", "", None, False, NO),
        ("zeros", "ugly", None, True, YES),
        ("zeros", "a cat", None, False, NO),
    ],
)
def test_which_towers_read_nothing(rule: Any, text: str | None, second: str | None, negative: bool, wanted: tuple[bool, bool]) -> None:
    assert conditioning.emptied(rule, text, second, negative=negative) == wanted
    scored = conditioning.emptied(rule, text, second, negative=negative, aesthetic=True)
    assert scored == (NO if rule in ("zeros", "zeros-any") else wanted)


@pytest.mark.parametrize("towers", [(True, False), (False, True)], ids=["last", "others"])
def test_zeros_for_one_tower(towers: tuple[bool, bool]) -> None:
    family = tiny("sdxl-base")
    first, last, pooled = family.towers[0].width, family.towers[-1].width, family.towers[-1].projection
    cond = Conditioning(torch.ones(1, 77, first + last), torch.ones(1, family.unet.vector_dim))
    zero = zeroed(cond, family, towers)
    assert (bool(zero.context[..., :first].any()), bool(zero.context[..., first:].any())) == (not towers[1], not towers[0])
    assert bool(zero.vector[:, :pooled].any()) != towers[0] and zero.vector[:, pooled:].all()


def test_zeroed_keeps_the_sizes(family: Family, towers: list[CLIPText]) -> None:
    cond = encoded("", towers, family)
    zero = zeroed(cond, family)
    width = family.towers[-1].projection
    assert not zero.context.any()
    assert not zero.vector[:, :width].any()
    assert torch.equal(zero.vector[:, width:], cond.vector[:, width:])
    assert zero.context.shape == cond.context.shape
    assert cond.context.any()
    assert cond.vector[:, :width].any()


def conds(*counts: int) -> list[Conditioning]:
    torch.manual_seed(0)
    return [Conditioning(torch.randn(1, 77 * count, 8), torch.zeros(1, 4)) for count in counts]


@pytest.mark.parametrize(("counts", "common"), [((1, 1), 1), ((1, 3), 3), ((2, 3), 6), ((4, 6), 12)])
def test_contexts_repeat_to_the_common_length(counts: tuple[int, int], common: int) -> None:
    given = conds(*counts)
    for before, after, count in zip(given, same_length(*given), counts, strict=True):
        assert torch.equal(after.context, torch.cat([before.context] * (common // count), 1))
        assert after.vector is before.vector


def test_attention_over_a_repeated_context_is_unchanged() -> None:
    given = conds(2, 3)
    query = torch.randn(1, 16, 8, dtype=torch.float64)
    for before, after in zip(given, same_length(*given), strict=True):
        one, many = (each.context.double() for each in (before, after))
        wanted = torch.nn.functional.scaled_dot_product_attention(query, one, one)
        torch.testing.assert_close(torch.nn.functional.scaled_dot_product_attention(query, many, many), wanted, rtol=0, atol=1e-12)


def test_a_common_length_beyond_the_longest_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="40 and 39 chunks"):
        same_length(*conds(40, 39))
    assert 40 * CHUNK < 100_000
