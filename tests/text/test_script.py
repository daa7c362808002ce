"""What a prompt says over a run: parts, forms, calls, both towers, the negative, choices."""

from __future__ import annotations

import pytest

from ldm.diffusion.profiles import load_profile, override
from ldm.errors import InputError
from ldm.options import Job
from ldm.text import script
from ldm.text.script import Part, read

A1111, COMFYUI, SGM = (load_profile(name) for name in ("a1111", "comfyui", "sgm"))
SIGMAS = (14.0, 5.0, 2.0, 1.0, 0.0)


def both(*texts: str) -> tuple[tuple[str, str], ...]:
    return tuple((text, text) for text in texts)


def test_a_plain_prompt_is_one_part() -> None:
    for rules in (A1111, COMFYUI, SGM):
        assert read("prompt", "a cat", None, rules, 3) == (Part(both("a cat"), at=(0, 0, 0)),)


def test_parts_and_forms() -> None:
    assert read("prompt", "[a:b:2] AND c :0.5", None, A1111, 4) == (
        Part(both("a", "b"), (1, 1), (0, 0, 0, 1)),
        Part(both(" c"), (1,), (0, 0, 0, 0), 0.5),
    )
    assert read("prompt", "[a|b]", None, A1111, 5) == (Part(both("a", "b"), (3, 2), (0, 0, 1, 0, 1)),)
    for rules in (COMFYUI, SGM):
        assert read("prompt", "[a:b:2] AND c :0.5", None, rules, 4) == (Part(both("[a:b:2] AND c :0.5"), at=(0,) * 4),)


def test_a_negative_has_no_parts() -> None:
    assert read("negative", "a AND [b:c:1]", None, A1111, 3)[0].texts == both("a AND b", "a AND c")


def test_the_second_text_changes_beside_the_first() -> None:
    (one, two) = read("prompt", "[a:b:1] AND c", "[d:e:2]", A1111, 4)
    assert one.texts == (("a", "d"), ("b", "d"), ("b", "e"))
    assert one.at == (0, 0, 1, 2)
    assert two.texts == ((" c", "d"), (" c", "e"))


def job(**fields: object) -> Job:
    return Job(**{"prompt": "a", "sigmas": SIGMAS, "sampler": "euler", "cfg": 5.0, "seed": 3, **fields})  # type: ignore[arg-type]


def test_the_negative_is_read_where_guidance_needs_it() -> None:
    assert script.of(job(), A1111)[1] is not None
    assert script.of(job(cfg=1.0), A1111)[1] is None
    assert script.of(job(cfg=1.0, prompt="a :0.9"), A1111)[1] is not None
    assert script.of(job(cfg=1.0, prompt="a AND b"), A1111)[1] is not None


def test_calls_are_the_denoisers() -> None:
    assert [len(script.of(job(prompt="[a:b:0.5]", sampler=name), A1111)[0][0].at) for name in ("euler", "heun")] == [4, 8]
    asked = [job(prompt="[a:b:0.5]", sampler=name, steps=5) for name in ("ddim", "dpm_adaptive")]  # which make fewer calls, or more
    assert [len(script.of(each, A1111)[0][0].at) for each in asked] == [5, 5]


def test_words_follow_the_seed_of_the_picture() -> None:
    choosing = job(prompt="{a|b|c|d}", negative="{e|f}", batch=8)
    alone = [script.words(job(prompt="{a|b|c|d}", negative="{e|f}", seed=3 + k), COMFYUI, 0) for k in range(8)]
    assert script.apart(choosing, COMFYUI)
    assert [script.words(choosing, COMFYUI, k) for k in range(8)] == alone
    assert len(set(alone)) > 1
    assert not script.apart(job(prompt="{a|b}"), COMFYUI)
    assert not script.apart(job(prompt="{a}", batch=8), COMFYUI)
    whole = override(COMFYUI, {"batch_noise": "one-draw"})
    assert not script.apart(choosing, whole)
    assert {script.words(choosing, whole, k) for k in range(8)} == {alone[0]}
    assert script.words(choosing, override(COMFYUI, {"choices": "literal"}), 1) == ("{a|b|c|d}", "{e|f}")


@pytest.mark.parametrize(
    ("text", "second", "message"),
    [
        ("a (b:11)", None, "^prompt: column 4: weight 11 is not allowed: -10 to 10$"),
        ("a cat AND a (b:11)", None, "^prompt: column 14: "),
        ("a", "a (b:11)", "^prompt_2: column 4: "),
        ("(a [b:c:2]:11)", None, r"^prompt at step 2, '\(a b:11\)': column 2: "),
        ("a :50", None, "^prompt: column 4: "),
        ("{" * 60, None, "^prompt: column 51: "),
    ],
)
def test_refusals_say_where(text: str, second: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("prompt", text, second, A1111, 8)


def test_a_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputError, match="limit is 0 to 100000"):
        read("prompt", "a" * 1_000_000, None, COMFYUI, 8)
