"""Weights on the towers' states, against the two rules written out again over transformers' towers: plain, slow, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ldm.diffusion.profiles import Profile, load_profile, override
from ldm.measure import relative_error
from ldm.models.clip import CLIPText
from ldm.models.shapes import Family
from ldm.runtime.telling import Teller
from ldm.text import script
from ldm.text.conditioning import Conditioning
from ldm.text.prompt import chunks
from ldm.text.tokenizer import padded
from tests.models.tiny import drawn, tiny
from tests.text import foreign

A1111, COMFYUI = load_profile("a1111"), load_profile("comfyui")
SIZE = {"size": (64, 64)}
Words = Sequence[tuple[str, float]]  # what a prompt means: words with their weights, "" a new chunk
CASES: list[tuple[str, Words]] = [
    ("a (red:1.3) cat", [("a", 1), ("red", 1.3), ("cat", 1)]),
    ("a (red:0.4) (cat:-1.5), old house", [("a", 1), ("red", 0.4), ("cat", -1.5), (", old house", 1)]),
    ("(very, very old:1.2) " + "house " * 90, [("very, very old", 1.2), ("house " * 90, 1)]),
    ("(x:0)", [("x", 0)]),
]


@pytest.fixture(scope="module")
def family() -> Family:
    return tiny("sdxl-base")


@pytest.fixture(scope="module")
def towers(family: Family) -> list[CLIPText]:
    return [drawn(CLIPText(shape), seed) for seed, shape in enumerate(family.towers)]  # type: ignore[misc]


@pytest.fixture(scope="module")
def theirs(towers: list[CLIPText]) -> list[torch.nn.Module]:
    from tests.models.foreign import transformers_tower

    return [transformers_tower(tower) for tower in towers]


def told(
    towers: list[CLIPText], family: Family, rules: Profile, text: str, second: str | None = None, calls: int = 8
) -> list[Conditioning]:
    with torch.inference_mode():
        return Teller(towers, family, rules).course(script.read("prompt", text, second, rules, calls), SIZE).conds


def chunked(words: Words) -> list[list[tuple[int, float]]]:
    """Chunks of (id, weight) where no comma and no short run is in the way."""
    tokens = [(token, weight) for word, weight in words for token in foreign.open_clip().encode(word)]
    cut = chunks([token for token, _ in tokens])
    ends = [sum(map(len, cut[: k + 1])) for k in range(len(cut))]
    return [tokens[end - len(each) : end] for end, each in zip(ends, cut, strict=True)]


def states(tower: torch.nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return tower(torch.tensor([ids]), output_hidden_states=True).hidden_states[-2][0]


def column(context: Tensor, family: Family, k: int) -> Tensor:
    return context.split([tower.width for tower in family.towers], -1)[k]


@pytest.mark.parametrize(("text", "words"), CASES)
def test_comfyui_moves_tokens_from_the_empty_prompt(
    text: str, words: Words, towers: list[CLIPText], theirs: list[torch.nn.Module], family: Family
) -> None:
    (cond,) = told(towers, family, COMFYUI, text)
    for k, (tower, shape) in enumerate(zip(theirs, family.towers, strict=True)):
        empty, wanted = states(tower, padded([], shape.pad_token)), []
        for chunk in chunked(words):
            z = states(tower, padded([token for token, _ in chunk], shape.pad_token))
            for place, (_, weight) in enumerate(chunk, 1):
                z[place] = empty[place] + weight * (z[place] - empty[place])
            wanted.append(z)
        assert relative_error(column(cond.context[0], family, k), torch.cat(wanted)) < 1e-5


@pytest.mark.parametrize(("text", "words"), CASES)
def test_a1111_multiplies_and_keeps_the_mean_of_chunk_and_tower(
    text: str, words: Words, towers: list[CLIPText], theirs: list[torch.nn.Module], family: Family
) -> None:
    (cond,) = told(towers, family, override(A1111, {"chunking": "plain"}), text)
    for k, (tower, shape) in enumerate(zip(theirs, family.towers, strict=True)):
        wanted = []
        for chunk in chunked(words):
            z = states(tower, padded([token for token, _ in chunk], shape.pad_token))
            before = z.mean()
            for place, (_, weight) in enumerate(chunk, 1):
                z[place] *= weight
            wanted.append(z * (before / z.mean()))
        assert relative_error(column(cond.context[0], family, k), torch.cat(wanted)) < 1e-5


def test_a1111_takes_the_mean_over_all_forms_of_a_prompt(
    towers: list[CLIPText], theirs: list[torch.nn.Module], family: Family
) -> None:
    first, second = told(towers, family, A1111, "(cat:1.4) [in|at] rain", calls=5)
    forms: list[Words] = [[("cat", 1.4), (word, 1), ("rain", 1)] for word in ("in", "at")]
    for k, (tower, shape) in enumerate(zip(theirs, family.towers, strict=True)):
        plain = [states(tower, padded([token for token, _ in chunked(each)[0]], shape.pad_token)) for each in forms]
        scaled = [z.clone() for z in plain]
        for z in scaled:
            z[1] *= 1.4
        stretches = [0, 1, 0, 1, 0]  # five steps: three of the one, two of the other
        before, after = (torch.stack([many[form] for form in stretches]).mean() for many in (plain, scaled))
        for z, cond in zip(scaled, (first, second), strict=True):
            assert relative_error(column(cond.context[0], family, k), z * (before / after)) < 1e-5


@pytest.mark.parametrize("rules", [A1111, COMFYUI], ids=["a1111", "comfyui"])
def test_weights_leave_the_pooled_vector_alone(rules: Profile, towers: list[CLIPText], family: Family) -> None:
    (cond,), (plain,) = (told(towers, family, rules, text) for text in ("a (red:1.3) cat", "a red cat"))
    assert torch.equal(cond.vector, plain.vector)
    assert not torch.equal(cond.context, plain.context)


@pytest.mark.parametrize("text", ["", "a cat", "cat, " * 60])
def test_without_weights_every_rule_gives_the_same_bits(text: str, towers: list[CLIPText], family: Family) -> None:
    (none,) = told(towers, family, override(COMFYUI, {"weighting": "none"}), text)
    for rules in (COMFYUI, override(COMFYUI, {"weighting": "scale-mean"})):
        (cond,) = told(towers, family, rules, text)
        assert torch.equal(cond.context, none.context)
    assert torch.equal(told(towers, family, A1111, f"{text}[|a]")[0].context, none.context)  # nor does another form change it


def test_forms_of_one_prompt_have_one_length(towers: list[CLIPText], family: Family) -> None:
    assert {cond.context.shape[1] for cond in told(towers, family, A1111, "[a:" + "cat " * 80 + ":3]")} == {154}


def test_the_last_tower_reads_the_second_text(towers: list[CLIPText], family: Family) -> None:
    texts = (("a cat", "a (dog:1.3)"), ("a cat",), ("a (dog:1.3)",))
    (both,), (first,), (second,) = (told(towers, family, COMFYUI, *each) for each in texts)
    assert torch.equal(column(both.context, family, 0), column(first.context, family, 0))
    assert torch.equal(column(both.context, family, 1), column(second.context, family, 1))
    assert torch.equal(both.vector, second.vector)
