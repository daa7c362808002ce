"""`ldm prompt "..."`: how a prompt is read, without torch: chunks, tokens, weights, what is cut, what changes on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ldm.checks import check_text
from ldm.commands.streams import printable
from ldm.diffusion import profiles
from ldm.diffusion.profiles import Profile
from ldm.errors import InputError
from ldm.flags import Parser
from ldm.options import KNOBS
from ldm.text import prompt, script
from ldm.text.tokenizer import END, decode, encode
from ldm.values import assignment

TEXTS = ("prompt", "negative", "prompt_2", "negative_2")
TOWERS = {"CLIP-L": END, "bigG": 0}  # SDXL's, with what each pads with; a model with one tower reads what the last one reads
STEPS = 20


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code; raises InputError with the column of what cannot be read."""
    options = parser().parse_args(argv)
    rules = profiles.override(profiles.load_profile(options.profile), dict(options.overrides))
    facts = read({name: getattr(options, name) for name in TEXTS}, rules, options.steps, options.seed)
    for line in [json.dumps(facts)] if options.format == "json" else _lines(facts):
        print(line)
    print(end="", flush=True)
    return 0


def parser() -> Parser:
    made = Parser(prog="ldm prompt", description="Say how a prompt is read, before any run.", allow_abbrev=False)
    made.add_argument("prompt", metavar="TEXT", help="the prompt; one that starts with a dash after --")
    for name in TEXTS[1:]:
        made.add_argument(*KNOBS[name].flags, dest=name, metavar="TEXT", help=KNOBS[name].help)
    made.add_argument("--profile", default="comfyui", metavar="NAME", help=f"{KNOBS['profile'].help} (default comfyui)")
    overrides: dict[str, Any] = {"dest": "overrides", "action": "append", "default": [], "type": assignment}
    made.add_argument("--set", metavar="FIELD=VALUE", help=KNOBS["overrides"].help, **overrides)
    text = f"calls of the denoiser: the steps, twice as many for a sampler with two evaluations a step (default {STEPS})"
    made.add_argument("--steps", default=STEPS, type=int, metavar="N", help=text)
    made.add_argument("-s", "--seed", default=0, type=int, metavar="N", help="of the picture, by which choices are made (default 0)")
    made.add_argument("--format", default="human", choices=("human", "json"), metavar="NAME", help="human or json (default human)")
    made.add_argument("--debug", action="store_true", help=KNOBS["debug"].help)
    return made


def read(texts: dict[str, str | None], rules: Profile, calls: int, seed: int) -> dict[str, Any]:
    """The facts, as plain data."""
    if not 1 <= calls <= 10_000:
        raise InputError(f"--steps {calls} is not allowed: 1 to 10000")
    for name, text in texts.items():
        if text is not None:
            check_text(name, text)
    said = {name: texts[name] for name in ("prompt", "negative") if texts[name] is not None or texts[f"{name}_2"] is not None}
    about = {name: getattr(rules, name) for name in ("syntax", "weighting", "chunking", "choices")}
    found = {
        name: {
            "parts": [_part(part, rules) for part in script.read(name, text or "", texts[f"{name}_2"], rules, calls, seed)],
            "notes": prompt.warnings_for(script.chosen(name, text or "", rules, seed), rules),
        }
        for name, text in said.items()
    }
    return {"profile": rules.name, **about, "calls": calls, "seed": seed, **found}


def _part(part: script.Part, rules: Profile) -> dict[str, Any]:
    runs = [(place, len(list(group))) for place, group in groupby(part.at)]
    starts = [sum(length for _, length in runs[:k]) for k in range(len(runs))]
    schedule = [{"from": start, "to": start + length - 1, "text": place} for start, (place, length) in zip(starts, runs, strict=True)]
    texts = [{tower: _tower(text, rules, pad) for (tower, pad), text in zip(TOWERS.items(), pair, strict=True)} for pair in part.texts]
    return {"weight": part.weight, "schedule": schedule, "texts": texts}


def _tower(text: str, rules: Profile, pad: int) -> dict[str, Any]:
    chunks = prompt.parsed(text, rules, pad=pad)
    exclaimed = rules.bigg_exclamation == "pad" and pad == 0
    dropped = encode(text, rules.text_cleaning, exclaimed=exclaimed)[prompt.CHUNK :] if rules.chunking == "cut" else []
    shown = [[{"id": token, "text": decode([token]), "weight": weight} for token, weight in chunk] for chunk in chunks]
    cut = {"tokens": len(dropped), "text": decode(dropped).strip()}
    return {"text": text, "tokens": sum(map(len, chunks)), "chunks": shown, "cut": cut}


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    rules = ", ".join(f"{name} {facts[name]}" for name in ("syntax", "weighting", "chunking", "choices"))
    yield f"profile {facts['profile']}: {rules}; {facts['calls']} calls of the denoiser"
    for name in ("prompt", "negative"):
        for k, part in enumerate(facts.get(name, {}).get("parts", ())):
            parts = facts[name]["parts"]
            alone = len(parts) == 1 and part["weight"] == 1
            yield name if alone else f"{name}, part {k + 1} of {len(parts)}, weight {part['weight']:g}"
            yield from _schedule_lines(part)
        yield from (f"  note: {printable(note)}" for note in facts.get(name, {}).get("notes", ()))


def _schedule_lines(part: dict[str, Any]) -> Iterator[str]:
    for place, text in enumerate(part["texts"]):
        if len(part["texts"]) > 1:
            spans = [_span(stretch["from"], stretch["to"]) for stretch in part["schedule"] if stretch["text"] == place]
            more = f" and {len(spans) - 8} times more" if len(spans) > 8 else ""
            yield f"  calls {', '.join(spans[:8])}{more}: {printable(next(iter(text.values()))['text'])}"
        alike = text["CLIP-L"] == text["bigG"]
        for tower in list(TOWERS)[:1] if alike else TOWERS:
            yield from _tower_lines(text[tower], "both towers" if alike else tower)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _tower_lines(read: dict[str, Any], tower: str) -> Iterator[str]:
    yield f"  {tower}: {_count(read['tokens'], 'token')} in {_count(len(read['chunks']), 'chunk')}"
    for number, chunk in enumerate(read["chunks"], 1):
        yield f"    {number}: {_count(len(chunk), 'token')}: {_shown(chunk)}"
    if read["cut"]["tokens"]:
        yield f"    cut: {_count(read['cut']['tokens'], 'token')}: {printable(read['cut']['text'])}"


def _shown(chunk: Sequence[dict[str, Any]]) -> str:
    """Runs of one weight; a weight other than 1 stands in brackets behind its words."""
    runs = []
    for weight, group in groupby(chunk, lambda token: float(token["weight"])):
        text = decode([token["id"] for token in group]).strip()
        runs.append(printable(text) + ("" if weight == 1 else f" [{weight:.4g}]"))
    return " | ".join(runs)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
