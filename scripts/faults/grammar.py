"""Prompts that nobody would write, in every language that is read. Row D2, with the prompt files of `jobs`."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable

from ldm.diffusion.profiles import Profile, load_profile
from ldm.errors import InputError
from ldm.text import prompt, script
from ldm.text.language import pieces
from scripts.faults import Figure, jobs

NAMES = ("a1111", "comfyui", "sgm")
CALLS = 30
PIECES = (
    *"()[]{}:|\\,$ \n\t", "((", "))", "[[", "]]", "(a:1.2)", "(b:", ":0.5]", ":.5)", ":1e9)", ":nan)", ":-3)", "[a:b:0.5]", "[a::2]",
    "[a|b|]", "[a:", "|b]", " BREAK ", " AND ", ":0.7 AND", "{a|b}", "{2$$a|b|c}", "{1-3$$ and $$", "$$", "\\(", "\\]", "\\{",
    "1.2.3", "0.5", "-1", "9" * 30, "a", "word, ", "naïve", "猫", "🍎", "é", "\x7f", "\u2028", "\0", "\ud800", "<lora:x:1>",
    "embedding:x", "!" * 9,
)  # fmt: skip


def fuzzed(chance: random.Random) -> str:
    """A prompt put together from what the languages are made of."""
    return "".join(chance.choices(PIECES, k=chance.randrange(1, 16)))


def uncaught(text: str, rules: Profile) -> list[str]:
    """What is wrong with the answer to a prompt: another exception than an InputError of one line, or a weight outside the limits."""
    try:
        for name in ("prompt", "negative"):
            for part in script.read.__wrapped__(name, text, None, rules, CALLS):
                for first, _ in part.texts:
                    pieces(first, rules.syntax)
        return []
    except InputError as error:
        return [f"{text!r} by {rules.name}: {len(str(error).splitlines())} lines"] if "\n" in str(error) else []
    except Exception as error:
        return [f"{text!r} by {rules.name}: {type(error).__name__}"]


PATHOLOGICAL: dict[str, Callable[[int], str]] = {
    "open brackets": lambda n: "(" * n,
    "open square brackets": lambda n: "[" * n,
    "open braces": lambda n: "{" * n,
    "closed brackets": lambda n: ")]}" * (n // 3),
    "nested": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "nested to the limit": lambda n: "(" * 20 + "(a:0.9)b" * ((n - 40) // 8) + ")" * 20,
    "both kinds to the limit": lambda n: "([" * 20 + "(a:0.9)" * ((n - 80) // 7) + "])" * 20,
    "pairs": lambda n: "(a)" * (n // 3),
    "weights": lambda n: "(a:1.2)" * (n // 7),
    "edits": lambda n: "[a:b:0.5]" * (n // 9),
    "nested edits": lambda n: "[" * 40 + "[a:b:0.5]" * ((n - 320) // 9) + ":c:0.5]" * 40,
    "alternations": lambda n: "[a|b]" * (n // 5),
    "broken edits": lambda n: "[a:b:" * (n // 5),
    "bars": lambda n: "[" + "|" * (n - 2) + "]",
    "colons": lambda n: "(a" + ":" * n,
    "colon and spaces": lambda n: ("(a:" + " " * 100) * (n // 103),
    "spaces": lambda n: "a" + " " * (n - 2) + "b",
    "digits": lambda n: "(a:" + "9" * n,
    "breaks": lambda n: " BREAK" * (n // 6),
    "ands": lambda n: "a AND " * (n // 6),
    "and weights": lambda n: "a :1 AND " * (n // 9),
    "choices": lambda n: "{a|b}" * (n // 5),
    "choices of many": lambda n: "{99$$" + "a|" * (n // 2) + "}",
    "nested choices": lambda n: "{" * 40 + "{a|b}" * ((n - 120) // 5) + "|c}" * 40,
    "backslashes": lambda n: "\\" * n,
    "escapes": lambda n: "\\(" * (n // 2),
    "commas": lambda n: "," * n,
    "words": lambda n: "word, " * (n // 6),
    "one word": lambda n: "a" * n,
}
HOSTILE = {
    "100,000 open brackets": "(" * 100_000,
    "10,000 nested brackets": "(" * 10_000 + "a" + ")" * 10_000,
    "10,000 nested edits": "[" * 10_000 + "a" + ":b:0.5]" * 10_000,
    "1 MB": "a (b:1.2) " * 100_000,
    "100 edits": "[a:b:0.5]" * 100,
    "alternations of many periods": "".join(f"[{'|' * k}]" for k in range(1, 400)),
    "choices between choices": "{99$${99$$" + "x" * 9000 + "$$a|b|c|d|e|f|g|h}$$a|b|c|d|e|f|g|h}",
    "a weight of 1e9": "(a:1e9) (b:1000000000)",
    "a lone surrogate": "a \ud800",
    "NUL": "a \0",
}


def answer(text: str, rules: Profile) -> float:
    """Seconds of processor time to an answer, tokens included."""
    script.read.cache_clear()
    prompt.parsed.cache_clear()
    start = time.thread_time()
    with contextlib.suppress(InputError):
        for part in script.read("prompt", text, None, rules, CALLS):
            prompt.length(part.texts[0], rules)
    return time.thread_time() - start


def growth(make: Callable[[int], str], rules: Profile, small: int = 6_250, large: int = 100_000) -> tuple[float, float]:
    """(ms for 10 KB, exponent of the time over the size), best of five; times below 1 ms count as that. Tokens are not in it."""

    def best(size: int) -> float:
        return min(_reading(make(size)[:size], rules) for _ in range(5))

    first, last = (max(best(size), 1e-3) for size in (small, large))
    return 1000 * best(10_000), math.log(last / first) / math.log(large / small)


def _reading(text: str, rules: Profile) -> float:
    start = time.thread_time()
    with contextlib.suppress(InputError):
        script.read.__wrapped__("prompt", text, None, rules, CALLS)
    return time.thread_time() - start


def d2(count: int | None = None) -> Figure:
    """Fuzzed prompts and prompt files, the time that pathological ones take, and what is to have an answer in 2 s."""
    files, chance, total = jobs.d2(count), random.Random(5), count or 1_000_000
    profiles = [load_profile(name) for name in NAMES]
    wrong: list[str] = []
    for k in range(total):
        wrong += uncaught(fuzzed(chance), profiles[k % len(profiles)])
    times = {(name, rules.name): growth(make, rules) for name, make in PATHOLOGICAL.items() for rules in profiles[:2]}
    slow, steep = (max(times, key=lambda name: times[name][at]) for at in (0, 1))
    longest = max((answer(text, rules), name) for name, text in HOSTILE.items() for rules in profiles)
    reached = f"{total} prompts in {len(NAMES)} languages, {len(wrong)} uncaught {wrong[:3] or ''}; {len(times)} pathological: at most "
    reached += f"{times[slow][0]:.1f} ms for 10 KB ({', '.join(slow)}), exponent at most {times[steep][1]:.2f} ({', '.join(steep)}); "
    reached += f"{len(HOSTILE)} hostile ones answered in {longest[0]:.2f} s at most ({longest[1]})"
    good = not wrong and times[slow][0] <= 20 and times[steep][1] <= 1.1 and longest[0] <= 2
    return Figure(f"{files.goal}; an answer in 2 s", f"{files.reached}; {reached}", files.good and good)
