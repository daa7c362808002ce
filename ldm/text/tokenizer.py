"""CLIP's byte-pair tokens: open_clip's merges and cleaning, or transformers', run by `tokenizers`, without importing either.

Sources: open_clip `src/open_clip/tokenizer.py`, SimpleTokenizer with its default cleaning "lower"; transformers'
`models/clip/tokenization_clip.py`. Words are split by the `regex` package,
because the Unicode classes of the engine inside `tokenizers` are of another Unicode version.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import regex
from tokenizers.models import BPE

from ldm.errors import InputError

LENGTH = 77  # ids a tower reads
START = 49406
END = 49407
COMMA = 267  # a comma that ends a word
LITERAL = {"<|startoftext|>": START, "<|endoftext|>": END}  # the same in transformers, in these letters alone
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}  # these words of a prompt are the tokens themselves, as in open_clip
MERGES = END - 1 - 512  # the file lists more than CLIP has; the first 512 tokens are bytes, alone and at the end of a word
SUFFIX = "</w>"

Cleaning = Literal["ftfy", "none"]


def encode(text: str, cleaning: Cleaning = "ftfy", *, exclaimed: bool = False) -> list[int]:
    """Token ids of a text, without start and end: defined for any text. Raises InputError where open_clip is not installed.

    `cleaning`: "ftfy" as open_clip has it, "none" as transformers has it, which mends nothing. `exclaimed`: every "!" is a token of its
    own, 0, as where it is the padding of transformers' tokenizer (SDXL's second).
    """
    whole = {**(LITERAL if cleaning == "none" else {}), **({"!": 0} if exclaimed else {})}
    parts = re.split(f"({'|'.join(map(re.escape, whole))})", text) if whole else [text]
    return [token for part in parts for token in ([whole[part]] if part in whole else _tokens(part, cleaning))]


def _tokens(text: str, cleaning: Cleaning) -> list[int]:
    letters, model, own = _letters(), _model(), SPECIAL if cleaning == "ftfy" else {}
    words = _pattern().findall(_clean(text)) if cleaning == "ftfy" else _plain_pattern().findall(_composed(text))
    ids: list[int] = []
    for word in words:
        spelt = word.encode("utf-8").decode("latin-1").translate(letters)
        ids += [own[word]] if word in own else [token.id for token in model.tokenize(spelt)]
    return ids


def decode(ids: Iterable[int]) -> str:
    """The cleaned text of token ids, a space after each word; bytes that are not UTF-8 become U+FFFD."""
    vocabulary, codes = _vocabulary(), {letter: code for code, letter in _letters().items()}
    spelt = "".join(vocabulary[each] for each in ids)
    return bytes(codes[letter] for letter in spelt).decode("utf-8", "replace").replace(SUFFIX, " ")


def padded(tokens: Sequence[int], pad: int) -> list[int]:
    """One chunk as its 77 ids: start, tokens, end, padding. CLIP-L pads with the end token, OpenCLIP's towers with 0."""
    ids = [START, *tokens, END]
    return ids + [pad] * (LENGTH - len(ids))


def _clean(text: str) -> str:
    """Mended (mojibake, curly quotes, HTML entities), single spaces, lower case."""
    mended = text if text.isascii() and text.isprintable() and "&" not in text else _mended(text)
    return " ".join(mended.split()).lower()


def _composed(text: str) -> str:
    """Composed characters, lower case letter by letter."""
    valid = text if text.isascii() else unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    return "".join(letter.lower() for letter in valid)


def _mended(text: str) -> str:
    import ftfy  # as many modules as the rest of the text: printable ASCII does without

    return html.unescape(html.unescape(ftfy.fix_text(text)))


@cache
def _pattern() -> regex.Pattern[str]:
    """CLIP's words: special tokens, English endings, runs of letters, single digits, runs of anything else but spaces."""
    return regex.compile("|".join([*SPECIAL, WORDS]), regex.IGNORECASE)


@cache
def _plain_pattern() -> regex.Pattern[str]:
    """The same without special tokens, of text in lower case."""
    return regex.compile(WORDS)


@cache
def _letters() -> dict[int, str]:
    """byte -> the character it is spelt with in the vocabulary: itself where it prints, otherwise the next from U+0100 up."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(0x100 + k) for k, byte in enumerate(hidden)}


@cache
def _merges() -> list[tuple[str, str]]:
    lines = gzip.decompress(_merges_file().read_bytes()).decode("utf-8").split("\n", MERGES + 1)
    pairs = (line.split() for line in lines[1 : MERGES + 1])
    return [(left, right) for left, right in pairs]


def _merges_file() -> Path:
    """Found, not imported: open_clip pulls in torchvision."""
    spec = PathFinder.find_spec("open_clip") or find_spec("open_clip")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "bpe_simple_vocab_16e6.txt.gz"
        if path.is_file():
            return path
    raise InputError("CLIP's vocabulary is not there: it comes with the package open_clip_torch, install it with pip")


@cache
def _vocabulary() -> list[str]:
    """Token of each id."""
    letters = list(_letters().values())
    return [*letters, *(letter + SUFFIX for letter in letters), *(left + right for left, right in _merges()), *SPECIAL]


@cache
def _model() -> BPE:
    ids = {token: k for k, token in enumerate(_vocabulary())}
    return BPE(ids, _merges(), end_of_word_suffix=SUFFIX)
