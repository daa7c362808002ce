"""What users and files say: bytes in words, seeds, sizes; the package's own needs; licences. Rows D1, D3, D4, G1 and G5."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import ldm
from ldm.checkpoint import licences
from ldm.checkpoint.safetensors import Header, read_header
from ldm.checkpoint.writer import save
from ldm.commands import main
from ldm.resources import published, weights
from ldm.runtime import need
from scripts.faults import Figure, tiny

ROOT = Path(__file__).parents[2]
SMALL = {"--prompt": "a cat", "--width": "32", "--height": "24", "--steps": "1", "--cfg": "2", "--seed": "5"}
REFUSAL = re.compile(r"ldm: error E[23]\d{3}: [^\n]+\n")


@dataclass(frozen=True)
class Run:
    """What became of a command line."""

    code: int
    loaded: bool
    sampled: bool
    said: str  # on stderr
    cpu: float  # seconds, in this process

    @property
    def verdict(self) -> str:
        """made; refused, in one line and before the model is loaded; or what went wrong."""
        if self.code == 0 and self.sampled:
            return "made"
        if self.code == 2 and not self.loaded and REFUSAL.fullmatch(self.said):
            return "refused"
        place = "after sampling started" if self.sampled else "after the load" if self.loaded else "before the load"
        return f"exit {self.code} {place}: {self.said[-200:]!r}"


def run(words: Sequence[str], folder: Path) -> Run:
    """A command line of `ldm sample` in this process, on a model that is so small that a picture takes milliseconds."""
    pipeline = tiny.tiny()
    out, said = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    load, sample = mock.Mock(return_value=pipeline), mock.Mock(wraps=pipeline.sample)
    with (
        mock.patch.dict(vars(ldm), {"load": load}),
        mock.patch.object(pipeline, "sample", sample),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
        contextlib.chdir(folder),
    ):
        start = time.process_time()
        code = main(["sample", *words])
        cpu = time.process_time() - start
    said.flush()
    text = said.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return Run(code, load.called, sample.called, text, cpu)


def line(**changes: str | None) -> list[str]:
    """The words of a small job with some of its flags changed; None leaves one out."""
    flags = SMALL | {f"--{name.replace('_', '-')}": text for name, text in changes.items()}
    return [*(f"{flag}={text}" for flag, text in flags.items() if text is not None), "--no-hash"]


# D1: the flags that take text; each gets a word with the byte in it
TEXTS = ("prompt", "negative", "output", "name", "model", "vae", "models_dir", "sampler", "schedule", "profile", "set", "preset")
TEXTS += ("params", "from_file", "from_image", "latents", "seed", "size", "sigmas", "type", "device")


BROKEN = (b"\xed\xa0\x80", b"\xed\xb3\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80")  # half surrogates, NUL in two bytes, beyond Unicode
LOCALES: tuple[dict[str, str], ...] = (
    {"LC_ALL": "C.UTF-8"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


def byte_cases() -> Iterator[tuple[str, bytes]]:
    """(flag, word): every byte that a word can hold (the system ends a word at byte 0) in every flag; whole characters cut and joined."""
    for flag in TEXTS:
        yield from ((flag, b"a " + bytes([byte])) for byte in range(1, 256))
    for text in (b"\xc3\xa9", b"\xf0\x9f\x90\xb1", *BROKEN, b"\xef\xbf\xbf", b"\xe2\x80\xae"):
        yield from ((flag, word) for flag in ("prompt", "negative") for word in (text, text[:-1], text[::-1], b"\xff" + text))


def said_in_files() -> Iterator[tuple[list[str], str, bytes]]:
    """(words, name, content): NUL and half surrogates, which no word can hold, in files that hold a job."""
    for bad in ("\\u0000", "\\ud800", "\\udcff", "\\udfff\\ud800", "\\ud83d"):
        for field in ("prompt", "negative"):
            job = f'{{"prompt": "a cat", "{field}": "a{bad}"}}'.replace('"prompt": "a cat", "prompt"', '"prompt"').encode()
            yield ["--params", "job.json"], "job.json", job
            yield ["--from-file", "jobs.jsonl"], "jobs.jsonl", job
    for byte in range(256):
        yield ["--from-file", "jobs.txt"], "jobs.txt", b"a cat " + bytes([byte])
        yield ["--from-file", "jobs.csv"], "jobs.csv", b"prompt\na cat " + bytes([byte])
    yield ["--params", "job.json"], "job.json", b'{"prompt": "a \xff"}'


def elsewhere(locale: dict[str, str]) -> Run:
    """A byte that is no UTF-8 as the system hands it over, in a process of its own."""
    words = [sys.executable, "-m", "ldm", "sample", "-p", b"a \xff"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | locale, capture_output=True, check=False)
    said = done.stderr.decode()
    return Run(done.returncode, "loading" in said, "sampling" in said, said, 0.0)


def d1(count: int | None = None) -> Figure:
    """Bytes 0 to 255 in the words of a command and in files of jobs: refused before the load, or a whole picture."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for at, (flag, word) in enumerate(tiny.some(list(byte_cases()), count)):
            folder = Path(name, str(at))
            folder.mkdir()
            found[run(line(**{flag: os.fsdecode(word)}), folder).verdict] += 1
        for at, (words, file, content) in enumerate(tiny.some(list(said_in_files()), count)):
            folder = Path(name, f"file{at}")
            folder.mkdir()
            (folder / file).write_bytes(content)
            found[run([*words, *line(prompt=None)], folder).verdict] += 1
        found += Counter(elsewhere(locale).verdict for locale in LOCALES)
    made, refused = found.pop("made", 0), found.pop("refused", 0)
    reached = (
        f"{made} pictures, {refused} refused before the load, {found.total()} otherwise{f' {dict(found.most_common(3))}' if found else ''}"
    )
    return Figure("0 failures after the load", reached, not found and made > 0 < refused)


TOP = 2**64 - 1
SEEDS: dict[str, int | None] = {  # the word: the seed of the picture, -1: a random one, None: refused
    **{str(seed): seed for seed in (0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, TOP)},
    "-1": -1,
    "+7": 7,
    "007": 7,
    " 7 ": 7,
    "3-3": 3,
    **dict.fromkeys((str(2**64), str(-2), str(-(2**63)), "1" * 40, "9" * 5000)),
    **dict.fromkeys(
        ("1.5", "1.0", "1e3", "abc", "", " ", "0x10", "1_000", "nan", "inf", "-0", "--1", "1,", ",1", "9-1", "1-", "\u0661", "1;2", "None")
    ),
}
VALUES: tuple[tuple[Any, bool], ...] = (  # the same from Python: what is no whole number is refused
    *((seed, True) for seed in (0, 2**63, TOP, -1, None)),
    *((seed, False) for seed in (2**64, -2, 1.5, 1.0, "1", "abc", True, float("nan"), float("inf"), [1], (1,), b"1", 1j, 10**5000)),
)


def d3(count: int | None = None) -> Figure:
    """The table of seeds, as flags, in files of jobs and from Python: the very seed, or a refusal that says the range or what to give."""
    wrong = [problem for word, seed in tiny.some(list(SEEDS.items()), count) for problem in _seed_problems(word, seed)]
    pipeline = tiny.tiny()
    for value, good in VALUES:
        came = tiny.outcome(lambda value=value: pipeline.generate("a cat", **{**tiny.SMALL, "steps": 1, "seed": value}).latents)
        wrong += [] if came == ("finite" if good else "refused") else [f"{value!r}: {came}"]
    total = 2 * len(tiny.some(list(SEEDS), count)) + len(VALUES)
    return Figure("all as the table says", f"{total - len(wrong)} of {total} {wrong[:3] or ''}".strip(), not wrong)


def _seed_problems(word: str, seed: int | None) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        Path(name, "job.json").write_text(json.dumps({"seed": word}))
        for words in (line(seed=word), line(seed=None, params="job.json")):
            found = run(words, Path(name))
            if found.verdict != ("refused" if seed is None else "made"):
                yield f"{word!r}: {found.verdict}"
            elif seed is None and not re.search("0 to 18446744073709551615|give a whole number|give rising ranges", found.said):
                yield f"{word!r}: no range in {found.said!r}"
            elif seed not in (None, -1) and f"  seed {seed}  " not in found.said:
                yield f"{word!r}: another seed in {found.said!r}"


SIDES = (("0", "16"), ("7", "16"), ("1025", "1024"), ("1000000", "8192"))
LIMITED: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {  # the value: its range, and (word, the nearest legal value that is named)
    "width": ("16 to 8192, multiples of 8", (*SIDES, ("-8", "16"), ("1028", "1032"), ("9" * 40, "8192"))),
    "height": ("16 to 8192, multiples of 8", (*SIDES, ("-1", "16"), ("8193", "8192"))),
    "steps": ("1 to 1000", (("0", ""), ("-1", ""), ("1001", ""), ("1000000", ""))),
    "batch": ("1 to 64", (("0", ""), ("-1", ""), ("65", ""), ("1000000", ""))),
    "cfg": ("0 to 100", (("-1", ""), ("101", ""), ("1e6", ""), ("nan", ""), ("inf", ""))),
}  # fmt: skip
MILLISECONDS = 100
FREE = 6 * 10**9  # bytes: what a machine has that a large picture does not fit into


def d4(count: int | None = None) -> Figure:
    """Values outside their range, and sizes inside it that memory does not hold: what is said, and how soon."""
    wrong, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        run(line(width="1025"), Path(name))  # what a process imports once is not counted
        cases = tiny.some([(field, limits, *case) for field, (limits, table) in LIMITED.items() for case in table], count)
        for field, limits, word, nearest in cases:
            found = run(line(**{field: word}), Path(name))
            slowest = max(slowest, 1000 * found.cpu)
            named = f": the nearest is {nearest}" if nearest else ""
            if found.verdict != "refused" or f"{limits}{named}\n" not in found.said:
                wrong.append(f"{field} {word[:12]}: {found.said!r}")
        with mock.patch.object(need, "free_memory", lambda device: FREE):
            large = run(line(width="8192", height="8192"), Path(name))
    said = large.said.splitlines()[-1]
    estimate = re.fullmatch(r"ldm: error E4001: 8192x8192 in float32 \([\d.]+ \wB of weights, ([\d.]+ GB) to compute\) needs .*: .*", said)
    wrong += [] if estimate and large.code == 1 and not large.loaded else [large.said]
    reached = f"{len(cases) + 1 - len(wrong)} of {len(cases) + 1}, each before the load {wrong[:3] or ''}; at most {slowest:.1f} ms, "
    reached += f"the estimate of 8192x8192 ({estimate[1] if estimate else '?'}) {large.cpu:.1f} s"
    goal = f"range, nearest legal value, memory estimate; {MILLISECONDS} ms of CPU, before the load"
    return Figure(goal, reached, not wrong and slowest <= MILLISECONDS)


MOST_PACKAGES = 12
INSIDE = {"yaml": "pyyaml", "PIL": "pillow", "open_clip": "open_clip_torch"}  # module: its package, where the names differ
ASKED_FOR = {"huggingface_hub", "triton"}  # an extra, and what torch brings where there is a GPU


def g1(count: int | None = None) -> Figure:
    """The direct dependencies: how many, and that they are all that the package imports."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=\[; ]", each)[0] for each in said["dependencies"]}
    used = {INSIDE.get(name, name) for path in (ROOT / "ldm").rglob("*.py") for name in imported(path.read_text(encoding="utf-8"))}
    strangers = used - declared - ASKED_FOR - set(sys.stdlib_module_names) - {"ldm"}
    unbound = [each for each in said["dependencies"] if not re.search(">=[0-9]", each)]
    reached = f"{len(declared)}; imported but not declared: {sorted(strangers) or 0}; without a floor: {unbound or 0}"
    return Figure(
        f"at most {MOST_PACKAGES} direct dependencies, all declared",
        reached,
        len(declared) <= MOST_PACKAGES and not strangers and not unbound,
    )


def imported(source: str) -> set[str]:
    """The first names of the modules that a file imports, wherever it does."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    taken = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in plain | taken}


def g5(count: int | None = None) -> Figure:
    """Licences: said once at the first use of each public file that has one, shown, and in every file made of others."""
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, {"LDM_CACHE_DIR": f"{name}/cache"}):
        public = [_as_published(each) for each in published()]
        restricted = {each["licence"] for each in published() if "licence" in each}
        notices = [text for header in public * 2 if (text := licences.notice(header))]
        told = len(notices) == len(restricted) > 0 and all(any(f"the {each}," in text for text in notices) for each in restricted)
        pairs = [(one, two) for one in public for two in public]
        kept = sum(_kept(Path(name, f"{at}.safetensors"), pair) for at, pair in enumerate(tiny.some(pairs, count)))
    total = len(tiny.some(pairs, count))
    reached = f"{len(notices)} notices for {len(restricted)} licences over {2 * len(public)} uses; "
    reached += f"{kept} of {total} files made of others carry theirs"
    return Figure("named once; every file made of others carries it", reached, told and kept == total)


def _as_published(row: dict[str, Any]) -> Header:
    """A header of the name and size of a public file."""
    box = read_header(weights() / "ldm-emoji.safetensors")
    said = box.metadata if row["name"] == box.path.name else {}
    return replace(box, path=Path(row["name"]), size=row["size"], metadata=said)


def _kept(path: Path, sources: Sequence[Header]) -> bool:
    said = {"modelspec.title": "merged", licences.KEY: "none", **licences.carried(sources)}
    made = read_header(save(path, [("a", "F32", (), bytes(4))], said))
    wanted = {licences.licence(header) for header in sources} - {""}
    kept = made.metadata[licences.KEY]
    return all(each in kept for each in wanted) if wanted else kept == "none"
