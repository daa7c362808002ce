"""What a prompt says over a run: the texts that AND joins, each with its weight, and which text each call of the denoiser is told.

No torch here: `ldm prompt` shows it before any model is loaded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ldm.checks import check_text
from ldm.errors import InputError
from ldm.options import alone
from ldm.text.language import choices, editing, pieces

if TYPE_CHECKING:
    from ldm.diffusion.profiles import Profile
    from ldm.options import Job

Texts = tuple[str, str]  # what the last tower reads stands second
Stretches = Sequence[tuple[int, str]]  # last step, counted from 1, and text


@dataclass(frozen=True)
class Part:
    """One of the texts that AND joins. `times`: in how many stretches of steps each of `texts` stands."""

    texts: tuple[Texts, ...]
    times: tuple[int, ...] = (1,)
    at: tuple[int, ...] = (0,)  # which of them, by call of the denoiser; the last goes on
    weight: float = 1.0


def of(job: Job, rules: Profile) -> tuple[tuple[Part, ...], tuple[Part, ...] | None]:
    """What the prompt and the negative of a finished job say; no negative where guidance has no need of it.

    Raises InputError with the column of what cannot be read.
    """
    from ldm.diffusion import samplers

    solver, seed = samplers.get(str(job.sampler), rules), job.seed or 0
    steps = int(job.steps or len(job.sigmas or ()) - 1)
    calls = steps * (2 if solver.evaluations == 2 else 1)  # what A1111 plans for, however many there will be
    told = read("prompt", job.prompt, job.prompt_2, rules, calls, seed)
    if job.cfg == 1 and [part.weight for part in told] == [1] and not solver.needs_uncond:
        return told, None
    return told, read("negative", job.negative or "", job.negative_2, rules, calls, seed)


def apart(job: Job, rules: Profile) -> bool:
    """Whether the pictures of a finished job have words of their own, by their seeds: unless the noise is that of a whole batch."""
    whole = rules.batch_noise == "one-draw" or rules.brownian == "batch"
    texts = (job.prompt, job.negative, job.prompt_2, job.negative_2)
    return job.batch > 1 and not whole and rules.choices == "by-seed" and any(choices.has(text) for text in texts if text)


def words(job: Job, rules: Profile, place: int) -> tuple[str, str]:
    """The prompt and the negative that picture `place` of a finished job is made of, choices made."""
    seed = int((alone(job, place) if apart(job, rules) else job).seed or 0)
    return chosen("prompt", job.prompt, rules, seed), chosen("negative", job.negative or "", rules, seed)


@lru_cache(maxsize=32)
def read(name: str, text: str, second: str | None, rules: Profile, calls: int, seed: int = 0) -> tuple[Part, ...]:
    """The parts of one prompt; `second` is what the last tower reads, where it differs: it has no AND, and stands beside each part.

    A negative has no AND either: there the word is a word. Raises InputError, which calls the text by `name`.
    """
    alike = second is None
    beside = None if second is None else _stretches(f"{name}_2", chosen(f"{name}_2", second, rules, seed), rules, calls, 0)
    made = []
    for each, weight, start in _parts(name, chosen(name, text, rules, seed), rules):
        own = _stretches(name, each, rules, calls, start)
        made.append(_part(own, own if alike or beside is None else beside, calls, weight))
    return tuple(made)


def chosen(name: str, text: str, rules: Profile, seed: int) -> str:
    """The text with its choices made, where the profile makes them."""
    kind = name.removesuffix("_2")  # both towers' words follow the same draws
    try:
        made = choices.chosen(text, seed, kind) if rules.choices == "by-seed" else text
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    check_text(name, made)
    return made


def _parts(name: str, text: str, rules: Profile) -> list[tuple[str, float, int]]:
    if rules.syntax != "a1111" or name == "negative":
        return [(text, 1.0, 0)]
    try:
        return editing.split(text)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _stretches(name: str, text: str, rules: Profile, calls: int, start: int) -> Stretches:
    """The text over the steps, every one of its forms read once, so that what cannot be is known before any model is loaded."""
    where = name
    try:
        found = editing.schedule(editing.parse(text, start), calls) if rules.syntax == "a1111" else [(calls, text)]
        for each, end in {each: end for end, each in found}.items():
            where = name if each == text else f"{name} at step {end}, {each[:40]!r}"
            pieces(each, rules.syntax, start if each == text else 0)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return found


def _part(own: Stretches, beside: Stretches, calls: int, weight: float) -> Part:
    """The stretches of both texts as those of pairs."""
    ends = sorted({end for end, _ in own} | {end for end, _ in beside})
    pairs = [(own[bisect_left(own, end, key=_end)][1], beside[bisect_left(beside, end, key=_end)][1]) for end in ends]
    counts = Counter(pairs)
    places = {pair: k for k, pair in enumerate(counts)}
    at = tuple(places[pairs[k]] for k in editing.by_call(ends, calls))
    return Part(tuple(counts), tuple(counts.values()), at, weight)


def _end(stretch: tuple[int, str]) -> int:
    return stretch[0]
