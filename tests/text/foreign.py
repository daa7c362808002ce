"""The tokenizers of open_clip and transformers, and the texts they are asked about."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PLAIN = [
    "",
    "a red apple on a blue background",
    "a photo of an astronaut riding a horse on mars",
    "masterpiece, best quality, 1girl, 20 years old, it's raining",
    "DSLR photo, f/1.8, 85mm; shot at 6:30 p.m. (golden hour)",
    "cafe's menu: we're open, they've closed, I'll pay, he'd go, don't",
    "El Niño, Málaga, smörgåsbord, Ærøskøbing",
    "кот на крыше, 猫が屋根の上に, قطة على السطح, बिल्ली",
    "naïve antidisestablishmentarianism supercalifragilisticexpialidocious",
    "100% cotton & 3.14159 + 2 = 5.14159 #hashtag @user $9.99",
    "one, two,, three,,, four...five!?!",
]

NASTY = [
    "<start_of_text>",
    "a cat <end_of_text> a dog",
    "<START_OF_TEXT> <End_Of_Text>",
    "<\u017ftart_of_text>",
    "<|startoftext|> a cat <|endoftext|>",
    "&lt;end_of_text&gt; &amp;lt;end_of_text&amp;gt; &amp;amp;",
    "\x00\x01\x02\x1f\x7f\x80\x9f",
    "tab\tnewline\nreturn\r\nform\x0cvertical\x0bnel\x85ls\u2028ps\u2029",
    "\u00a0no-break\u2003em\u3000ideographic\u200bzero\u2060width\ufeffbom\u180e",
    "it\u2019s \u201cquoted\u201d \u2014 dash\u2026 \u2039x\u203a",
    "doesnâ€™t schÃ¶n ÃƒÂ© ðŸ\x8d\x8e",
    "\uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48 \uff11\uff12\uff13 \uff76\uff9e",
    "e\u0301 \u0301 a\u0300\u0301\u0302\u0303\u0304 \u1e9b\u0323",
    "\u0130stanbul \u0131 \u017f \u212a \u1e9e \u03a3\u03c2 \u01c5 \ufb01\ufb02\ufb03",
    "'\u017f '\u212a 'S 'T 'RE 'LL can\u2019T",
    "\U0001f34e\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\U0001f3fd 1\ufe0f\u20e3",
    "\u00b2\u00b3\u00bd \u2460 \u2167 \u0663\u0967 \U0001d7d9 \U00010107 \u4e00\u4e8c",
    "\U0001d5d4\U0001d5ef \U0001e900\U0001e943 \U00010400\U00010428 \U0001f130 \U0002f800 \U00031350 \U0001ee00",
    "\ue000 \U000f0000 \U0010fffd \ufdd0 \ufffe \uffff \U0010ffff \ufffd \u0378 \U000e0001",
    "\x1b[31mred\x1b[0m <b>bold</b> &copy; &#x1F34E; &#0; &bogus;",
    "</w> a</w> \u0120 \u0100\u0101 w</w>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ababababababababab !!!!!!!!!!!!!!! ........",
    " \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \u05e9\u05b8\u05c1 ",
]


@cache
def open_clip() -> Any:
    """open_clip's tokenizer module by itself: the package would import torchvision."""
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("open_clip_torch is not installed")
    spec = spec_from_file_location("open_clip_tokenizer_alone", Path(found.submodule_search_locations[0]) / "tokenizer.py")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("open_clip has no tokenizer.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@cache
def transformers(pad: str = "<|endoftext|>") -> Any:
    """transformers' CLIP tokenizer over the same vocabulary, with the names that its files give the special tokens.

    SDXL's second one has "!" as its `pad`.
    """
    from transformers import CLIPTokenizer

    theirs = open_clip()
    vocabulary = [token for token, _ in sorted(theirs.encoder.items(), key=lambda item: item[1])]
    vocabulary[-2:] = ["<|startoftext|>", "<|endoftext|>"]
    merges = [" ".join(pair) for pair, _ in sorted(theirs.bpe_ranks.items(), key=lambda item: item[1])]
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(vocabulary)}), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, pad_token=pad)
