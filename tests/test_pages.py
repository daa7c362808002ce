"""Every command of README.md and docs/*.md is run.

What a page cannot presuppose is stood in for: official files by the model in the box, pictures and prompt files by small ones, the Hub by a
server on the loopback, an installed environment by the running one. Pictures are small and take one step where the command leaves that
open, experiments have small counts (of the rows of docs/reliability.md one is run, the others by tests/faults). A command that is not run
even so has a † on its page, and its reason here: its arguments alone are parsed.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest
from PIL import Image

from ldm import doctor, resources
from ldm.commands import VERBS, main
from ldm.flags import given, parser
from scripts.experiments import page as experiments
from scripts.faults.__main__ import ROWS
from scripts.faults.__main__ import main as faults
from tests import things
from tests.pages import MARK, PAGES, ROOT, Command, commands

COMMANDS = list({command.text: command for page in PAGES for command in commands(page)}.values())
BOX = resources.weights() / "ldm-emoji.safetensors"
SIZES = {"width", "height", "size", "ar", "from_image"}  # fields of a job that say how large a picture is
SMALL = {  # the scripts that are run, with what makes them short
    "scripts.bench": ["--runs", "1"],
    "scripts.evaluate": ["--count", "1"],
    "scripts.grid": ["--prompts", "two.txt"],
    "scripts.replay": ["--count", "1"],
    "scripts.style": [],
    "scripts.synthetic": ["--scale", "tiny"],
}
RUN_ROW = "A1"
NOT_RUN = {
    "pip install .": "installs: tests/test_wheel.py makes the wheel that it installs, and runs it",
    "pip install . --constraint FILE": "installs",
    'pip install ".[hub]"': "installs, from the network",
    "python -m scripts.parity stages": "minutes: tests/models/test_parity.py runs the stages one by one",
    "python -m scripts.parity picture --checkpoint FILE": "weights of full size: tests/test_full.py runs it where they are asked for",
    "python -m scripts.parity refiner --checkpoint FILE": "weights of full size: tests/test_full.py runs it where they are asked for",
    "python -m scripts.bench load --checkpoint FILE": "weights of full size, and an idle machine",
    **dict.fromkeys(
        (f"python -m scripts.bench --only {row}" for row in ("step-256", "step-512", "step-512-int8")),
        "weights of full size, and an idle machine: tests/bench runs slices",
    ),
    "python -m scripts.bench": "an hour, and an idle machine: tests/bench runs every row at tiny sizes",
    "python -m scripts.bench --only step-256,vae-512 --minutes 15": "weights of full size, and an idle machine: tests/bench runs slices",
    "python -m scripts.bench --json bench.json --write": "writes the page: tests/bench writes another",
    "python -m scripts.bench --tune": "a GPU: tests/bench writes a table of figures that are made up",
    "python -m scripts.bench --small": "half a minute: tests/bench runs it",
    "python -m scripts.parity page": "minutes: tests/parity runs its parts",
    "ldm parity --checkpoint sd_xl_base_1.0.safetensors": "weights of full size, and diffusers: tests/parity runs it on small ones",
    "python scripts/emoji.py things": "a font that not every machine has: other things are there for the commands after it",
    **dict.fromkeys(
        (*experiments.COMMANDS, "python -m scripts.experiments --write"),
        "minutes, or it writes the page: tests/train/test_experiments.py runs every experiment and writes another page",
    ),
    "python -m scripts.needs --run FILE --size 512 --max-memory 8GiB": "weights of full size: tests/runtime has small ones",
    "python -m scripts.needs": "minutes, and an idle machine: tests/runtime/test_need.py counts the same",
}


class Parsed(Exception):
    """The arguments were accepted."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, with what they name."""
    home = tmp_path_factory.mktemp("pages")
    (home / "models").mkdir()
    (home / "models/sd_xl_base_1.0.safetensors").symlink_to(BOX)
    (home / "prompts.txt").write_text("a red apple on a blue background --d 7 --w 64 --h 64\n")
    (home / "pictures").mkdir()
    shutil.copy(ROOT / "docs" / "grid.png", home / "pictures")
    (home / "pictures" / "grid.txt").write_text("a sheet of many things")
    (home / "things").mkdir()
    things.write(home / "things")
    Image.new("RGB", (48, 64), "red").save(home / "pictures" / "red.png")
    (home / "pictures" / "red.txt").write_text("red and nothing else")
    (home / "two.txt").write_text("a red apple on a blue background\na robot on a brown background\n")
    with contextlib.chdir(home):
        assert main(["sample", "-p", "a red apple on a blue background", "-s", "3", *TINY, "-q", "-o", "stand-in.png"]) == 0
    return home


TINY = ["--steps", "1", "--size", "64x64"]


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LDM_CACHE_DIR", str(folder / "cache"))
    return folder


def stand_in(words: list[str]) -> list[str]:
    """The words with the model in the box for FILE; what else they name and is not there is put there."""
    outputs = {words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-o", "--out", "--output", "--latents", "--export")}
    words = [str(BOX) if word == "FILE" and words[at - 1] != "--out" else word for at, word in enumerate(words)]
    for word in words:
        path = Path(word)
        if word in outputs or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            path.symlink_to(BOX)
        elif path.suffix in (".png", ".jpg", ".webp", ".avif"):
            shutil.copy("stand-in.png", path)
    return words


def small(words: list[str]) -> list[str]:
    """The words of `ldm sample`, for a small picture in one step where they leave that open."""
    said = given(parser("ldm sample", ""), words)
    more = [] if SIZES & set(said) else TINY[2:]
    more += [] if {"steps", "sigmas", "from_image"} & set(said) else TINY[:2]
    return [*words, *more, *([] if {"resume", "skip_existing"} & set(said) else ["--overwrite"])]


def short(words: list[str]) -> list[str]:
    """The words of `ldm train`, with two small steps of the recipe that they name."""
    if words[1] == "report":
        return words
    text = (ROOT / words[1]).read_text(encoding="utf-8")
    less = {"size": 32, "crop": 16, "pictures": 4, "steps": 2, "batch": 2}
    text = re.sub(rf"^({'|'.join(less)}) = \d+", lambda found: f"{found[1]} = {less[found[1]]}", text, flags=re.MULTILINE)
    Path("short.toml").write_text(text.replace("bfloat16", "float32"))
    return ["train", "short.toml", *words[2:]]


def run_ldm(words: list[str]) -> None:
    if words[0] == "sample":
        words = ["sample", *small(words[1:])]
    if words[0] == "train":
        words = short(words)
    assert main(words) == 0, words


def run_module(name: str, words: list[str]) -> int:
    """`python -m NAME WORDS` in this process."""
    module: Any = import_module(name)
    needs = [each for each in inspect.signature(module.main).parameters.values() if each.default is each.empty]
    with mock.patch.object(sys, "argv", [name, *words]):
        return module.main(*[words for _ in needs]) or 0


def run_script(name: str, words: list[str]) -> None:
    if name != "scripts.faults":
        assert name in SMALL, f"{name}: say in SMALL what makes it short, or mark the command with {MARK} and say why in NOT_RUN"
        assert run_module(name, words + SMALL[name]) == 0
    elif words[0] == RUN_ROW:
        assert faults([RUN_ROW, "--count", "300"]) == 0
    else:
        assert words[0] in ROWS
        parse_only([f"{name}.__main__", *words])


def run_make(words: list[str], place: Path) -> None:
    """In a copy of the folder's Makefile, where everything is installed already, on the running interpreter."""
    home = place / "make"
    (home / ".venv").mkdir(parents=True, exist_ok=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, home)
    for name in ("constraints.txt", ".ready", ".ready-test"):  # one after the other: the last is the newest
        (home / ".venv" / name).touch()
    target = next(word for word in words if "=" not in word)
    python = {"sample": f"PY={sys.executable}", "test": f"PY={sys.executable}", "lint": "PY=echo", "setup": "PY=false", "clean": "PY=false"}
    arguments = {"sample": f"ARGS={' '.join(TINY)}", "test": "ARGS=--version"}
    words = [
        *(word for word in words if not word.startswith("ARGS=")),
        python[target],
        *([arguments[target]] if target in arguments else []),
    ]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "TORCH"))}  # this may itself run under make
    env = plain | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["make", *words], cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (home / ".venv").exists() == (target != "clean")
    if target == "sample":
        assert (home / done.stdout.split()[-1]).is_file()


def parse_only(words: list[str]) -> None:
    """The arguments of a script, accepted by its own parser, and nothing more."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any, **more: Any) -> NoReturn:
        parse(self, *arguments, **more)
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop), pytest.raises(Parsed):
        run_module(words[0], words[1:])


def is_name(command: Command) -> bool:
    """Whether prose only names a verb, or a pattern, by it."""
    pattern = r"(ldm|python -m ldm)( --help| --version| \w+| \w+ \.\.\.)|python -m ldm\.sample( \.\.\.)?"
    return not command.is_line and re.fullmatch(pattern, command.text) is not None


@contextlib.contextmanager
def hub(words: list[str], place: Path) -> Iterator[None]:
    """A server in the Hub's place, with the file that `ldm pull` is asked for."""
    from scripts.faults.hub import as_environment, environment, weights
    from scripts.faults.hubserver import Repo, serving

    repo, _, file = words[1].partition(":")
    with (
        serving(**{repo.replace("/", "__"): Repo({file or "a.safetensors": weights(1000)})}) as server,
        as_environment(environment(server, place)),
    ):
        yield


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text)
def test_the_command_runs(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.marked == (command.text in NOT_RUN), f"{command.page}: a command that is not run has a {MARK}, and a reason here"
    words = command.words
    if is_name(command):
        named = [word for word in words if word not in ("ldm", "python", "-m", "...")]
        assert set(named) <= {*VERBS, "VERB", "ldm.sample", "--help", "--version"}
    elif words[0] == "make":
        run_make(words[1:], place)
    elif words[0] == "pytest":
        assert all((ROOT / word.partition("::")[0]).exists() for word in words[1:] if not word.startswith("-"))
    elif words[0] == "pip":
        assert command.marked
    elif command.marked and words[0] == "ldm":
        import_module(f"ldm.commands.{words[1]}").parser().parse_args(words[2:])
    elif command.marked:
        parse_only(words[2:] if words[1] == "-m" else [words[1].removesuffix(".py").replace("/", "."), *words[2:]])
    elif words[:3] == ["python", "-m", "ldm.sample"]:
        run_ldm(stand_in(["sample", *words[3:]]))
    elif words[:3] == ["python", "-m", "ldm"] or words[0] == "ldm":
        words = stand_in(words[3 if words[0] == "python" else 1 :])
        monkeypatch.setattr(doctor, "_probe", lambda module: None)  # torchvision's import costs seconds, and has tests of its own
        with hub(words, place) if words[0] == "pull" else contextlib.nullcontext():
            run_ldm(words)
    elif words[:2] == ["python", "-m"]:
        run_script(words[2], stand_in(words[3:]))
    else:
        run_script(words[1].removesuffix(".py").replace("/", "."), stand_in(words[2:]))


def test_every_page_has_its_commands_and_says_what_the_mark_means() -> None:
    assert len(COMMANDS) > 40 and set(NOT_RUN) <= {command.text for command in COMMANDS}
    for page in PAGES:
        marked = [command for command in commands(page) if command.marked]
        text = page.read_text(encoding="utf-8")
        assert (f"\n{MARK} Not run by the tests" in text) == bool(marked), page.name


def test_every_row_has_its_reduced_run() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/faults").glob("test_*.py"))
    assert [row for row in ROWS if not re.search(rf"\b{row}\b", tests, re.IGNORECASE)] == []
