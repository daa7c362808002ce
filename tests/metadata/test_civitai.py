"""Our `parameters` text by the rules of Civitai's reader (civitai/civitai, src/utils/metadata/automatic.metadata.ts), written from them.

Blank lines do not count. The settings are the first line that starts with "Steps: ", cut at commas, each part at its last colon; a value
in quotes would be taken for a list of its own and lost. The rest is the prompt up to "Negative prompt:", then the negative.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from ldm.diffusion.profiles import load_profile
from ldm.metadata import a1111
from tests.metadata.test_native import RECORD

NAMES = {"Seed": "seed", "CFG scale": "cfgScale", "Sampler": "sampler", "Steps": "steps", "Clip skip": "clipSkip"}  # Civitai's own


def read(text: str) -> dict[str, str]:
    lines = [line for line in text.split("\n") if line.strip()]
    details = next(line for line in lines if line.startswith("Steps: "))
    lines.remove(details)
    parts = [part.split(":") for part in details.split(",")]
    found = {NAMES.get(part[-2].strip(), part[-2].strip()): part[-1].strip() for part in parts if len(part) > 1}
    prompt, *negative = [part.strip() for part in "\n".join(lines).split("Negative prompt:")]
    return {**found, "prompt": prompt, "negativePrompt": " ".join(negative).strip(), "details": details}


# What these rules keep: lines without outer space, which do not look like the words that they go by.
LINES = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1).filter(
    lambda line: line == line.strip() and not line.startswith(("Steps: ", "Template: ", "Negative ")) and "Negative prompt:" not in line
)
PROMPTS = st.lists(LINES, min_size=1, max_size=4).map("\n".join)
MODELS = st.from_regex(r"[A-Za-z0-9_][\w .+()\[\]-]{0,30}[\w)]", fullmatch=True)


@given(PROMPTS, st.just("") | PROMPTS, MODELS, st.integers(0, 2**64 - 1))
@example('a cat, Seed: 3, "Model: x"', "(blurry:1.4), {text}", "sd_xl_base_1.0", 7)
def test_every_field_is_found(prompt: str, negative: str, model: str, seed: int) -> None:
    job = replace(RECORD.job, prompt=prompt, negative=negative)
    record = replace(RECORD, job=job, seed=seed, model=f"{model}.safetensors", model_sha256="31e35c80fc" + "0" * 54)
    found = read(a1111.write(a1111.from_record(record, load_profile("a1111"))))
    assert (found["prompt"], found["negativePrompt"]) == (prompt, negative)
    assert (found["seed"], found["steps"], found["cfgScale"], found["sampler"]) == (str(seed), "2", "4.0", "Euler")
    assert (found["Model"], found["Model hash"], found["Size"]) == (model, "31e35c80fc", "128x128")
    assert found["Version"] == "ldm 0.1.0" and '"' not in found["details"]
