"""The README tells the truth: its commands parse, its tables are the code's, its error texts are what the command says."""

from __future__ import annotations

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ldm
from ldm import resources
from ldm.commands import VERBS, info, main
from ldm.errors import InputError
from ldm.flags import given, parser
from ldm.layers import layered
from ldm.limits import LIMITS
from ldm.options import KNOBS, validate
from scripts import docs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def test_there_are_commands_and_no_other_kinds_of_block() -> None:
    assert "make sample" in COMMANDS and "make test" in COMMANDS
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) <= {"sh", "python"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_exists_and_its_flags_are_accepted(command: str) -> None:
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "ldm.sample"] or words[:2] == ["ldm", "sample"]:
        flags = given(parser("ldm sample", ""), words[3 if words[0] == "python" else 2 :])
        job = layered(flags, {"prompt": "of the picture"} if "from_image" in flags else None)
        validate(job)
        assert job.profile in resources.names("profiles")
    elif words[:2] == ["ldm", "info"]:
        assert info.parser().parse_args(words[2:]).files
    elif words[0] == "ldm":
        assert words[1] in VERBS and import_module(f"ldm.commands.{words[1]}").parser().parse_args(words[2:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        assert all(re.search(rf"^{word.split('=')[0]} \?=", makefile, re.MULTILINE) for word in words[1:] if "=" in word)
    else:
        assert words == ["pip", "install", "."]


def test_the_table_of_flags_has_only_flags_that_are_there_and_the_page_has_them_all() -> None:
    rows = "\n".join(re.findall(r"^\| (`-.*)", README, re.MULTILINE))
    shown = set(re.findall(r"`(-[\w-]+)|, `(-[\w-]+)", rows))
    words = {one or two for one, two in shown}
    assert words <= {flag for knob in KNOBS.values() for flag in knob.flags} | {"--version"} and len(words) > 20
    assert docs.PATH.read_text(encoding="utf-8") == docs.text(), "python -m scripts.docs"
    for name in ("width", "steps", "cfg", "batch", "seed"):
        assert str(LIMITS[name]).removesuffix(LIMITS[name].note) in rows


def listed(row: str) -> list[str]:
    found = re.search(rf"^\| {row} \| (.*) \|$", README, re.MULTILINE)
    assert found is not None
    return [word.split()[0] for word in found[1].split(", ")]


def test_the_names_are_the_codes_names() -> None:
    from ldm.diffusion import samplers, schedules

    assert listed("samplers") == list(samplers.SAMPLERS)
    assert sorted(listed("schedules")) == sorted(schedules.SCHEDULES)
    assert sorted(listed("profiles")) == sorted(resources.names("profiles"))


def test_the_python_block_uses_names_that_exist() -> None:
    for block in blocks("python"):
        compile(block, "README.md", "exec")
        for name in re.findall(r"\bldm\.(\w+)\(", block):
            assert name in ldm.__all__
    keywords = inspect.signature(ldm.Pipeline.generate).parameters
    assert {"prompt", "negative", "seed", "on_step"} <= set(keywords)
    assert {"images", "latents", "seeds", "job", "stopped_at"} <= set(ldm.Result.__annotations__)


def test_relative_links_and_named_files_exist() -> None:
    for target in [*re.findall(r"\]\((?!https?:|#)([^)]+)\)", README), *re.findall(r"`((?:scripts|weights|configs)/[\w./-]+)`", README)]:
        assert (ROOT / target).exists(), target


REFUSED = [
    ["-p", "x", "-W", "1025"],
    ["-p", "x", "-m", "sdxl.safetensors"],
    ["-p", "x", "--sampler", "dpmpp4m"],
    ["-p", "a cat \udcff"],
    [],
    ["-p", "x", "--latents", "cat.safetensors"],
]


class Overflowing(torch.nn.Module):
    """A VAE whose float16 is too narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))
        self.shape = SimpleNamespace(scale=1.0)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 3, 8, 8), float("inf") if z.dtype == torch.float16 else 0.0)


def said_of_a_vae_that_overflows() -> str:
    pipeline: Any = SimpleNamespace(vae=Overflowing())
    with pytest.warns(RuntimeWarning) as notes:
        ldm.Pipeline.decode(pipeline, torch.zeros(1, 4, 1, 1))
    return f"ldm: note: {notes[0].message}"  # as the command shows a warning


def test_the_error_texts_are_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cat.safetensors").touch()
    said = [said_of_a_vae_that_overflows()]
    for words in REFUSED:
        assert main(["sample", *words]) == InputError.exit_code
        said.append(capsys.readouterr().err.strip())
    assert sorted(one or two for one, two in re.findall(r"^- (?:`(ldm: [^`]*)`|``(ldm: .*?)``): ", README, re.MULTILINE)) == sorted(said)


@pytest.mark.parametrize("name", ["README.md", "weights/README.md"])
def test_nothing_is_left_to_be_filled_in(name: str) -> None:
    assert re.findall(r"^.*<!-- figures.*$|^CARD$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE) == []
