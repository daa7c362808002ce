"""A prompt as chunks of tokens with their weights, one list of 77 ids a chunk, for each tower."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from ldm.checks import check_text
from ldm.text.language import pieces
from ldm.text.tokenizer import COMMA, END, LENGTH, encode, padded

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile

CHUNK = LENGTH - 2  # tokens of the prompt among them, between start and end
BACKTRACK = 20  # how far before the end of a chunk "comma-20" looks for a comma
SHORT = 8  # under "plain" a run of fewer tokens is not cut

Rule = Literal["plain", "comma-20", "cut"]
Token = tuple[int, float]  # id, weight

_UNREAD = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>|\bembedding:\S+")  # has no meaning in any profile
_LITERAL = {  # what a syntax takes literally and another does not
    "comfyui": re.compile(r"\bBREAK\b|\bAND\b|\[[^\[\]]*\]"),
    "none": re.compile(r"\bBREAK\b|\bAND\b|\[[^\[\]]*\]|\([^()]*\)"),
}


class TowerText(NamedTuple):
    """What one tower reads of a prompt: (n, 77) ids and as many weights; start, end and padding have weight 1."""

    ids: list[list[int]]
    weights: list[list[float]]


def chunks(tokens: Sequence[int], rule: Rule = "plain") -> list[list[int]]:
    """Tokens of one weight -> at least one chunk of at most 75; put together they are the tokens again, except under "cut".

    "plain" cuts after every 75, as ComfyUI does where no word has a weight. "comma-20" ends a chunk after the last comma among its last 20
    tokens, if there is one and the next token is no comma (stable-diffusion-webui `modules/sd_hijack_clip.py`, its default backtracking).
    "cut" drops all beyond 75 (diffusers, generative-models).
    """
    return [[token for token, _ in chunk] for chunk in weighted([[(token, 1.0) for token in tokens]], rule)]


def weighted(runs: Sequence[Sequence[Token]], rule: Rule) -> list[list[Token]]:
    """Runs of tokens of one weight -> chunks, as `chunks` says; under "plain" a run of fewer than 8 tokens is not cut but moved whole.

    Source of the last: ComfyUI `comfy/sd1_clip.py`.
    """
    if rule == "plain":
        return _whole_runs(runs)
    tokens = [token for run in runs for token in run]
    if rule == "cut":
        return [tokens[:CHUNK]]
    made, start = [], 0
    while len(tokens) - start > CHUNK:
        end = _comma_end(tokens, start + CHUNK)
        made.append(tokens[start:end])
        start = end
    return [*made, tokens[start:]]


def _comma_end(tokens: Sequence[Token], end: int) -> int:
    """The end moved back to after the last comma of the 20 tokens before it."""
    commas = [k for k in range(end - BACKTRACK, end) if tokens[k][0] == COMMA]
    return commas[-1] + 1 if commas and tokens[end][0] != COMMA else end


def _whole_runs(runs: Sequence[Sequence[Token]]) -> list[list[Token]]:
    made: list[list[Token]] = [[]]
    for run in runs:
        start = 0
        while len(run) - start > CHUNK - len(made[-1]):
            if len(run) >= SHORT:
                end = start + CHUNK - len(made[-1])
                made[-1] += run[start:end]
                start = end
            made.append([])
        made[-1] += run[start:]
    return made


@lru_cache(maxsize=16)
def parsed(text: str, rules: Profile, *, pad: int = END) -> list[list[Token]]:
    """A text in the language of `rules`, without choices, editing and AND, as chunks of tokens with their weights; `pad`: the tower's.

    Raises InputError with the column. What BREAK parts is chunked apart; nothing before one is an empty chunk, nothing after the last none.
    """
    exclaimed = rules.bigg_exclamation == "pad" and pad == 0
    parts: list[list[list[Token]]] = [[]]
    for piece in pieces(text, rules.syntax):
        if piece.cut:
            parts.append([])
        else:
            parts[-1].append([(token, piece.weight) for token in encode(piece.text, rules.text_cleaning, exclaimed=exclaimed)])
    made = [weighted(part, rules.chunking) for part in parts]
    return [chunk for part in (made[:-1] if len(made) > 1 and made[-1] == [[]] else made) for chunk in part]


def length(texts: Iterable[str], rules: Profile) -> int:
    """How many chunks the longest of the texts has, in any tower."""
    pads = (END, 0) if rules.bigg_exclamation == "pad" else (END,)
    return max(len(parsed(text, rules, pad=pad)) for text in texts for pad in pads)


def tower_texts(texts: Sequence[str], pads: Sequence[int], rules: Profile, count: int = 1) -> list[TowerText]:
    """One text and one padding token a tower -> what each reads, with the same n: shorter ones get empty chunks at their end.

    n is `count` at least. Raises InputError for a text over the limit, with NUL, with what was not UTF-8, or that cannot be read.
    """
    for text in texts:
        check_text("prompt", text)
    read = [parsed(text, rules, pad=pad) for text, pad in zip(texts, pads, strict=True)]
    count = max(count, *map(len, read))
    return [_tower_text([*each, *[[]] * (count - len(each))], pad) for each, pad in zip(read, pads, strict=True)]


def _tower_text(read: Sequence[Sequence[Token]], pad: int) -> TowerText:
    ids = [padded([token for token, _ in chunk], pad) for chunk in read]
    weights = [[1.0, *(weight for _, weight in chunk), *[1.0] * (LENGTH - 1 - len(chunk))] for chunk in read]
    return TowerText(ids, weights)


def warnings_for(text: str, rules: Profile) -> list[str]:
    """What a user should know before the run: words that have no meaning here, or none yet; tokens that "cut" drops."""
    notes = [f"taken as plain words, with no other meaning: {_few(_UNREAD, text)}"] if _UNREAD.search(text) else []
    literal = _LITERAL.get(rules.syntax)
    if literal is not None and literal.search(text):
        notes.append(f"profile {rules.name} takes as plain words what others give a meaning: {_few(literal, text)}")
    extra = len(encode(text, rules.text_cleaning)) - CHUNK if rules.chunking == "cut" else 0
    return [*notes, f"the prompt is cut: its last {extra} of {CHUNK + extra} tokens are not read"] if extra > 0 else notes


def _few(meant: re.Pattern[str], text: str) -> str:
    words = list(dict.fromkeys(meant.findall(text)))
    shown = ", ".join(word if len(word) <= 40 else f"{word[:37]}..." for word in words[:3])
    return shown if len(words) <= 3 else f"{shown} and {len(words) - 3} more"
