"""A prompt as chunks of tokens, one list of 77 ids a chunk, for each tower."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ldm.options import check_text
from ldm.text.tokenizer import COMMA, END, START, encode

LENGTH = 77  # ids a tower reads
CHUNK = LENGTH - 2  # tokens of the prompt among them, between start and end
BACKTRACK = 20  # how far before the end of a chunk "comma-20" looks for a comma

Rule = Literal["plain", "comma-20", "cut"]

_MEANT = re.compile(r"\bBREAK\b|\bAND\b|<(?:lora|lyco|hypernet):[^<>]*>|\bembedding:\S+|\([^()]*\)|\[[^\[\]]*\]|\{[^{}|]*\|[^{}]*\}")


def chunks(tokens: Sequence[int], rule: Rule = "plain") -> list[list[int]]:
    """Tokens -> at least one chunk of at most 75; put together they are the tokens again, except under "cut".

    "plain" cuts after every 75, as ComfyUI does where no word has a weight. "comma-20" ends a chunk after the last comma among its last 20
    tokens, if there is one and the next token is no comma (stable-diffusion-webui `modules/sd_hijack_clip.py`, its default backtracking).
    "cut" drops all beyond 75 (diffusers, generative-models).
    """
    if rule == "cut":
        return [list(tokens[:CHUNK])]
    made, start = [], 0
    while len(tokens) - start > CHUNK:
        end = _comma_end(tokens, start + CHUNK) if rule == "comma-20" else start + CHUNK
        made.append(list(tokens[start:end]))
        start = end
    return [*made, list(tokens[start:])]


def _comma_end(tokens: Sequence[int], end: int) -> int:
    """The end moved back to after the last comma of the 20 tokens before it."""
    commas = [k for k in range(end - BACKTRACK, end) if tokens[k] == COMMA]
    return commas[-1] + 1 if commas and tokens[end] != COMMA else end


def padded(chunk: Sequence[int], pad: int) -> list[int]:
    """One chunk as its 77 ids: start, tokens, end, padding. CLIP-L pads with the end token, OpenCLIP's towers with 0."""
    ids = [START, *chunk, END]
    return ids + [pad] * (LENGTH - len(ids))


def tower_ids(texts: Sequence[str], pads: Sequence[int], rule: Rule = "plain") -> list[list[list[int]]]:
    """One text and one padding token a tower -> (n, 77) ids a tower, with the same n: shorter texts get empty chunks at their end.

    Raises InputError for a text over the limit, with NUL, or with what was not UTF-8.
    """
    for text in texts:
        check_text("prompt", text)
    cut = [chunks(encode(text), rule) for text in texts]
    count = max(map(len, cut))
    return [[padded(chunk, pad) for chunk in [*own, *[[]] * (count - len(own))]] for own, pad in zip(cut, pads, strict=True)]


def warnings_for(text: str, rule: Rule = "plain") -> list[str]:
    """What a user should know before the run: words taken literally that prompt languages give a meaning; tokens that "cut" drops."""
    found = list(dict.fromkeys(_MEANT.findall(text)))
    notes = [f"taken as plain words, with no other meaning: {_few(found)}"] if found else []
    extra = len(encode(text)) - CHUNK if rule == "cut" else 0
    return [*notes, f"the prompt is cut: its last {extra} of {CHUNK + extra} tokens are not read"] if extra > 0 else notes


def _few(words: Sequence[str]) -> str:
    shown = ", ".join(word if len(word) <= 40 else f"{word[:37]}..." for word in words[:3])
    return shown if len(words) <= 3 else f"{shown} and {len(words) - 3} more"
