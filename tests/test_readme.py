"""The README tells the truth: its tables are the code's, its links lead somewhere, its error texts are what the command says."""

from __future__ import annotations

import contextlib
import copy
import errno
import inspect
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ldm
from ldm import doctor, resources
from ldm.checkpoint.memory import size
from ldm.checkpoint.safetensors import read_header
from ldm.commands import main
from ldm.limits import LIMITS
from ldm.models.shapes import load_family
from ldm.options import KNOBS
from ldm.runtime import need
from ldm.runtime.keeping import Keeper
from scripts import docs
from scripts.faults import tiny
from scripts.faults.kinds import sparse
from tests.pages import PAGES, ROOT, blocks, commands

README = (ROOT / "README.md").read_text(encoding="utf-8")
BOX = resources.weights() / "ldm-emoji.safetensors"


def test_the_top_is_a_command_a_picture_and_sdxl_in_one_command() -> None:
    first = commands(ROOT / "README.md")[:2]
    assert [each.text.split(" -p")[0] for each in first] == ["make sample", "python -m ldm.sample -m sd_xl_base_1.0.safetensors"]
    assert README.index("```sh\nmake sample") < README.index("![") < README.index("## SDXL in one command")
    assert {block.language for block in blocks(ROOT / "README.md")} == {"sh", "python"}


def test_the_table_of_flags_has_only_flags_that_are_there() -> None:
    rows = "\n".join(re.findall(r"^\| (`-.*)", README, re.MULTILINE))
    words = {one or two for one, two in re.findall(r"`(-[\w-]+)|, `(-[\w-]+)", rows)}
    assert words <= {flag for knob in KNOBS.values() for flag in knob.flags} | {"--version"} and len(words) > 20
    for name in ("width", "steps", "cfg", "batch", "seed"):
        assert str(LIMITS[name]).removesuffix(LIMITS[name].note) in rows


def test_what_is_made_from_the_code_is_as_the_code_has_it() -> None:
    assert docs.PATH.read_text(encoding="utf-8") == docs.text(), "python -m scripts.docs"
    assert docs.readme(README) == README, "python -m scripts.docs"
    from ldm.diffusion import samplers, schedules

    page = docs.text()
    for name in (*samplers.SAMPLERS, *schedules.SCHEDULES, *resources.names("profiles")):
        assert f"`{name}`" in page and re.search(rf"^\| (samplers|schedules|profiles) \|.*\b{name}\b", README, re.MULTILINE), name


def test_a_name_more_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "SCHEDULES", (*docs.SCHEDULES, "another"))
    assert docs.readme(README) != README and "`another`" in docs.text()


def test_the_memory_that_is_said_is_what_is_counted() -> None:
    """One of its four cells: counting each takes seconds."""
    counted = need.need(need.Plan(load_family("sdxl-base"), 1024, 1024, 2, torch.float32, torch.float32))
    assert f"| weights | {size(counted.weights)} |" in README
    assert f"| 1024x1024 in all | {size(counted.total)} |" in README


def test_the_names_of_the_python_block_exist() -> None:
    keywords = inspect.signature(ldm.Pipeline.generate).parameters
    assert {"prompt", "negative", "seed", "on_step"} <= set(keywords)
    assert {"images", "latents", "seeds", "job", "stopped_at"} <= set(ldm.Result.__annotations__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:scripts|weights|configs|tests)/[\w./-]+)`", text if page.name == "README.md" else ""):
        assert (ROOT / target).exists(), target  # elsewhere such a name can be another program's file


REFUSED = {  # what is asked for: words of `ldm sample`
    "width": ["-W", "1025"],
    "absent": ["-m", "sdxl.safetensors"],
    "sampler": ["--sampler", "dpmpp4m"],
    "bytes": ["-p", "a cat \udcff"],
    "latents": ["--latents", "cat.safetensors"],
    "device": ["--device", "cuda:9"],
    "lfs": ["-m", "lfs/model.safetensors"],
    "html": ["-m", "html/model.safetensors"],
    "pickle": ["-m", "model.ckpt"],
    "cut": ["-m", "cut/model.safetensors"],
    "sd15": ["-m", "sd15/model.safetensors"],
    "nan": ["-m", "nan/model.safetensors", "--size", "64x64"],
    "digest": ["-m", "ldm-emoji.safetensors", "--verify"],
    "memory": ["--size", "8192x8192"],
}


def make_files() -> None:
    """The files of `REFUSED` in the working folder."""
    for name in ("lfs", "html", "cut", "sd15", "nan"):
        Path(name).mkdir()
    Path("cat.safetensors").touch()
    Path("lfs/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6938078334\n")
    Path("html/model.safetensors").write_text("<!DOCTYPE html><html><body>Please log in.</body></html>")
    Path("model.ckpt").write_bytes(b"PK\3\4" + bytes(200))
    Path("cut/model.safetensors").write_bytes(BOX.read_bytes()[:9_000_000])
    sparse("v1-5-pruned-emaonly.safetensors", Path("sd15/model.safetensors"))
    shutil.copy(BOX, "nan/model.safetensors")
    end = read_header(BOX).tensors["model.diffusion_model.out.2.weight"].end
    for path, value in (("nan/model.safetensors", b"\x00\x7e"), ("ldm-emoji.safetensors", b"\x01\x00")):
        if not Path(path).exists():
            shutil.copy(BOX, path)
        with open(path, "r+b") as file:
            file.seek(end - 2)
            file.write(value)


class Overflowing(torch.nn.Module):
    """A VAE whose float16 is too narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))
        self.shape = SimpleNamespace(scale=1.0)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 3, 8, 8), float("inf") if z.dtype == torch.float16 else 0.0)


def overflow_said() -> str:
    pipeline: Any = SimpleNamespace(vae=Overflowing(), keeper=Keeper())
    with pytest.warns(RuntimeWarning) as notes:
        ldm.Pipeline.decode(pipeline, torch.zeros(1, 4, 1, 1))
    return f"ldm: note: {notes[0].message}"  # as the command shows a warning


def broken() -> ldm.Pipeline:
    """A model that predicts nothing finite."""
    pipeline = tiny.tiny()
    pipeline.unet = copy.deepcopy(pipeline.unet)
    next(pipeline.unet.parameters()).fill_(torch.nan)
    return pipeline


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No room for files of pictures in `folder`."""
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().parent == folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield


def torchvision_said(monkeypatch: pytest.MonkeyPatch) -> str:
    """`ldm doctor`'s line where torchvision was made for another torch."""
    last = "RuntimeError: operator torchvision::nms does not exist"
    probe: Any = SimpleNamespace(communicate=lambda timeout: ("", f"Traceback ...\n{last}\n"), returncode=1)
    monkeypatch.setattr(doctor, "_version", lambda package: "0.24.0")
    return " ".join(str(doctor._torchvision(probe)).split())


def all_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """The texts of the page's errors, each provoked."""
    small = ["--size", "32x24", "--steps", "2", "-s", "1", "--cfg", "5"]
    monkeypatch.setattr(need, "free_memory", lambda device: 6 * 10**9)

    def last(words: list[str], code: int) -> str:
        assert main(["sample", *words]) == code, words
        return capsys.readouterr().err.strip().splitlines()[-1]

    for name, words in REFUSED.items():
        yield last([*(["-p", "x"] if "-p" not in words else []), *words], 1 if name == "memory" else 2)
    yield last([], 2)
    with full_disk(Path.cwd() / "pictures"):
        yield last(["-p", "x", *small, "-o", "pictures", "--no-hash"], 1)
    monkeypatch.setitem(vars(ldm), "load", lambda *path, **options: broken())
    yield last(["-p", "x", *small], 1)
    yield overflow_said()
    yield torchvision_said(monkeypatch)


QUOTED = re.compile(r"^- (?:`((?:ldm:|note) [^`]*)`|``((?:ldm:|note) .*?)``): \S", re.MULTILINE)


def as_pattern(text: str) -> str:
    """A quoted text, in which "..." stands for anything."""
    return ".*".join(map(re.escape, " ".join(text.split()).split("...")))


def test_the_error_texts_are_what_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    make_files()
    quoted = [one or two for one, two in QUOTED.findall(README)]
    said = [re.sub(r"(\w+)/model\.", "model.", text) for text in all_said(monkeypatch, capsys)]
    unsaid = [text for text in quoted if not any(re.fullmatch(as_pattern(text), each) for each in said)]
    unquoted = [each for each in said if not any(re.fullmatch(as_pattern(text), each) for text in quoted)]
    assert (unsaid, unquoted) == ([], [])
    assert len(quoted) == len(said) == len(REFUSED) + 5


@pytest.mark.parametrize("name", ["README.md", "weights/README.md"])
def test_nothing_is_left_to_be_filled_in(name: str) -> None:
    assert re.findall(r"^.*<!-- figures.*$|^CARD$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE) == []
