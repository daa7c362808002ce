"""Rows D5, D6, D7 and G6: pictures from strangers, texts in pictures, other programs' texts, and the mark that says what made them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ldm import opening, pictures
from ldm.errors import InputError
from ldm.metadata import foreign, png
from ldm.pictures import Marks
from scripts.faults import Figure
from scripts.faults.picturefiles import AVIF, bombs, file, scene

ENDINGS = [ending for ending in pictures.FORMATS if AVIF or ending != ".avif"]
BATCH = 5000  # mutants that one process opens, so that a crash is one, and is seen
WEBP = 16.5  # bytes a pixel of its decoder, which holds RGBA four times


def d5(count: int | None = None) -> Figure:
    """Bombs and mutated pictures are opened, each batch in a process of its own; then the memory of whole ones is measured."""
    count = 100_000 if count is None else count
    refused = _bombs()
    told: Counter[str] = Counter()
    largest, slowest, crashes = 0, 0.0, 0
    for first in range(0, count, BATCH):
        run = [sys.executable, "-m", "scripts.faults.picturefiles", str(first), str(min(BATCH, count - first))]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        if done.returncode:
            crashes += 1
            continue
        said = json.loads(done.stdout)
        told.update(said["told"])
        largest, slowest = max(largest, said["largest"]), max(slowest, said["slowest"])
    others = [each for each in told if each not in ("opened", "read", "refused")]
    peaks = _peaks(20 if count >= 100_000 else 4)
    worst = {kind: max(peak / channels for name, (peak, channels) in peaks.items() if name.endswith(kind)) for kind in _kinds(peaks)}
    reached = (
        f"{count} mutated files: {told['opened']} opened, {crashes} processes lost, {len(others)} other errors {others[:2] or ''}, "
        f"slowest {slowest:.2f} s, largest decoded {largest} pixels; {refused} of {len(bombs())} bombs refused undecoded; "
        "peak a pixel and channel " + ", ".join(f"{kind} {value:.2f}" for kind, value in sorted(worst.items()))
    )
    within = all(peak <= (WEBP if name.endswith("webp") else 4 * channels) for name, (peak, channels) in peaks.items())
    goal = f"0 crashes, only refusals in one line; 0 decodes over 40 MP; peak <= 4 x pixels x channels (WebP {WEBP} x pixels)"
    return Figure(goal, reached, not crashes and not others and refused == len(bombs()) and largest <= opening.MAX_PIXELS and within)


def _kinds(peaks: Mapping[str, Any]) -> set[str]:
    return {name.rpartition(".")[2] for name in peaks}


def _bombs() -> int:
    """How many bombs are refused for their size with nothing decoded."""
    from PIL import ImageFile

    decoded, load, refused = 0, ImageFile.ImageFile.load, 0

    def watched(self: ImageFile.ImageFile) -> Any:
        nonlocal decoded
        decoded += 1
        return load(self)

    ImageFile.ImageFile.load = watched  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in bombs().items():
                path = Path(folder, name)
                path.write_bytes(content)
                try:
                    opening.open_picture(path)
                except InputError as error:
                    refused += "million pixels" in str(error)
    finally:
        ImageFile.ImageFile.load = load  # type: ignore[method-assign]
    return refused - decoded


def _peaks(millions: int) -> dict[str, tuple[float, int]]:
    """(bytes a pixel, channels) of opening a large picture of each format; empty where the system does not say."""
    if not sys.platform.startswith("linux"):
        return {}
    side = int((millions * 1e6) ** 0.5)
    turned = Image.Exif()
    turned[0x0112] = 6
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("RGB", "RGBA", "L", "I;16"):
            Path(folder, f"{mode}.png").write_bytes(file(scene(side, side, mode), "PNG", compress_level=1))
        for name, options in (
            ("plain", {}),
            ("progressive", {"progressive": True, "subsampling": 0}),
            ("turned", {"exif": turned.tobytes()}),
        ):
            Path(folder, f"{name}.jpg").write_bytes(file(scene(side, side), "JPEG", **options))
        Path(folder, "cmyk.jpg").write_bytes(file(scene(side, side, "CMYK"), "JPEG"))
        for mode in ("RGB", "RGBA"):
            Path(folder, f"{mode}.webp").write_bytes(file(scene(side, side, mode), "WEBP", method=0))
            if AVIF:
                Path(folder, f"{mode}.avif").write_bytes(file(scene(side, side, mode), "AVIF", speed=10))
        names = sorted(map(str, Path(folder).iterdir()))
        done = subprocess.run([sys.executable, "-m", "scripts.faults.picturepeak", *names], capture_output=True, text=True, check=True)
    return {name: (peak, channels) for name, (peak, channels) in json.loads(done.stdout).items()}


def d6(count: int | None = None) -> Figure:
    """Random texts of 0 to 1 MiB and every character go through PNG files; keys are tried against the rules; exiftool reads some."""
    count = 100_000 if count is None else count
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(_texts(count)):
            path = Path(folder, "a.png")
            marks = Marks(parameters=text, record=json.dumps({"prompt": text}) if number % 10 == 0 else None)
            saved = pictures.save(Image.new("RGB", (1, 1)), path, marks, overwrite=True)
            different += pictures.read(saved.path).texts != marks.texts()
        rules = sum(_refused(key) is not legal for key, legal in KEYS.items())
        agreed, asked = _exiftool_texts(Path(folder), min(count, 1000))
    others = f"exiftool agrees on {agreed} of {asked}" if asked else "exiftool is not installed"
    reached = f"{count} texts and all scalar values: {different} differences; {rules} of {len(KEYS)} keys judged wrongly; {others}"
    return Figure("0 differences, key rules kept, exiftool agrees on 1,000", reached, not different and not rules and agreed == asked)


# key: whether it must be refused
KEYS = {"parameters": False, "ldm": False, "é": False, "a b": False, "x" * 79: False, "~": False} | dict.fromkeys(
    ("", " a", "a ", "a  b", "x" * 80, "a\0b", "a\nb", "日", "\x7f", "\xa0", "a\tb", "\ud800"), True
)


def _refused(key: str) -> bool:
    try:
        png.check(key, "")
    except InputError:
        return True
    return False


def _texts(count: int) -> Iterator[str]:
    """All scalar values but NUL, then random texts: most short, some up to 1 MiB."""
    scalars = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
    yield from (scalars[start : start + 250_000] for start in range(0, len(scalars), 250_000))
    dice = random.Random(6)
    pools = [scalars[:127], scalars[:255], scalars[:0xD7FF], scalars, "\n\r\t &<>\"'\\:,{}"]
    for number in range(count):
        pool = pools[number % len(pools)]
        size = dice.randrange(2**18) if number % 1000 == 0 else int(2 ** dice.uniform(0, 10)) - 1
        yield "".join(dice.choices(pool, k=size))


def _exiftool_texts(folder: Path, count: int) -> tuple[int, int]:
    """(files of which exiftool says the text that was written, files); texts without control characters, which it does not print."""
    tool = shutil.which("exiftool")
    if tool is None:
        return 0, 0
    dice = random.Random(7)
    pool = [chr(code) for code in (*range(0x20, 0x7F), *range(0xA0, 0xD800), *range(0xE000, 0xFDD0), *range(0x10000, 0x1FFFE))]
    texts = {f"{number}.png": "".join(dice.choices(pool[: 95 if number % 3 == 0 else None], k=20)) for number in range(count)}
    for name, text in texts.items():
        pictures.save(Image.new("RGB", (1, 1)), folder / name, Marks(parameters=text))
    said = subprocess.run(
        [tool, "-json", "-charset", "utf8", "-PNG:Parameters", "-r", "-ext", "png", str(folder)], capture_output=True, check=True
    )
    found = {Path(each["SourceFile"]).name: str(each.get("Parameters")) for each in json.loads(said.stdout.decode())}
    return sum(found.get(name) == text for name, text in texts.items()), count


def d7(count: int | None = None) -> Figure:
    """Other programs' texts, and damaged ones, are read while an audit hook watches for code that is run, processes and sockets."""
    from tests.metadata.strangers import STRANGERS

    count = 100_000 if count is None else count
    wrong = sum(_reading(each.texts) != (each.dialect, each.prompt, each.negative, dict(each.settings)) for each in STRANGERS)
    dice, errors = random.Random(8), Counter[str]()
    pool = [each.texts for each in STRANGERS if all(len(text) < 10_000 for text in each.texts.values())]
    seen = _watch()
    for _ in range(count):
        texts = {key: _mutated(dice, text, pool) for key, text in dice.choice(pool).items()}
        try:
            foreign.read(texts)
        except Exception as error:  # what is counted here
            errors[f"{type(error).__name__}: {error}"] += 1
    executed = list(seen)
    seen.append("done")
    fixtures = f"{len(STRANGERS) - wrong} of {len(STRANGERS)} fixtures as expected"
    reached = f"{fixtures}; {count} mutants: {sum(errors.values())} exceptions {list(errors)[:2] or ''}, {len(executed)} events"
    return Figure("all fixtures; 0 exceptions; 0 code run, processes or sockets", reached, not (wrong or errors or executed))


def _reading(texts: Mapping[str, str]) -> tuple[str, str, str, dict[str, str]]:
    found = foreign.read(texts)
    return found.dialect, found.info.prompt, found.info.negative, dict(found.info.settings)


def _watch() -> list[str]:
    """The events of code, processes and sockets from now on, until "done" stands in the list: a hook cannot be taken off."""
    seen: list[str] = []

    def hook(event: str, _: Any) -> None:
        if "done" not in seen and event.startswith(
            ("exec", "compile", "import", "os.", "subprocess.", "socket.", "pickle.", "open", "ctypes.")
        ):
            seen.append(event)

    sys.addaudithook(hook)
    return seen


def _mutated(dice: random.Random, text: str, pool: list[dict[str, str]]) -> str:
    for _ in range(dice.choice((0, 1, 1, 2, 5))):
        at, length = dice.randrange(len(text) + 1), dice.choice((1, 1, 5, 50))
        other = dice.choice([each for texts in pool for each in texts.values()] or [""])
        start = dice.randrange(len(other) + 1)
        inside = dice.choice(
            (
                "",
                '"',
                "{",
                "}",
                "[",
                "]",
                ":",
                ",",
                "\n",
                "null",
                "1e999",
                "-1",
                "NaN",
                "\\ud800",
                "\0",
                "9" * 5000,
                other[start : start + 50],
            )
        )
        text = text[:at] + inside + text[at + length * dice.randrange(2) :]
    return text


def g6(count: int | None = None) -> Figure:
    """Pictures of all formats, sizes and lengths of text are written with marks and without; our reader and exiftool look for them."""
    count = 1000 if count is None else count
    dice = random.Random(9)
    with tempfile.TemporaryDirectory() as folder:
        marked, bare = Path(folder, "marked"), Path(folder, "bare")
        ours = silent = 0
        for where in (marked, bare):
            where.mkdir()
        for number in range(count):
            picture = scene(dice.choice((8, 64, 100)), dice.choice((8, 64, 100)))
            name = f"{number}{ENDINGS[number % len(ENDINGS)]}"
            prompt = "a 狐 🦊 " * dice.choice((0, 1, 100, 10_000))
            marks = Marks(prompt, json.dumps({"prompt": prompt})) if number % 4 else Marks()
            found = pictures.read(pictures.save(picture, marked / name, marks).path)
            ours += found.source == marks.source and found.tool == marks.tool and found.texts == marks.texts()
            plain = pictures.read(pictures.save(picture, bare / name, None).path)
            silent += plain.source is plain.tool is None and not plain.texts
        theirs, quiet = _exiftool_marks(marked), _exiftool_marks(bare)
    reached = f"{ours} of {count} read by us, {theirs} by exiftool; {silent} of {count} silent without marks, {quiet} with one for exiftool"
    tools = (count, 0) if shutil.which("exiftool") else (None, None)
    return Figure("100 % marked; 0 marks where none are wanted", reached, (ours, silent, theirs, quiet) == (count, count, *tools))


def _exiftool_marks(folder: Path) -> int | None:
    """The files of which exiftool says the digital source type; None where it is not installed."""
    tool = shutil.which("exiftool")
    if tool is None:
        return None
    kinds = [part for ending in ENDINGS for part in ("-ext", ending[1:])]
    done = subprocess.run([tool, "-json", "-XMP-iptcExt:DigitalSourceType", *kinds, str(folder)], capture_output=True, check=False)
    return sum(each.get("DigitalSourceType") == Marks().source for each in json.loads(done.stdout or b"[]"))
