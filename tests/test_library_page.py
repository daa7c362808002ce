"""docs/library.md and the Python of README.md: every example runs, and prints what stands behind `# ->`."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ldm
from ldm import resources
from ldm.checkpoint.lora import Pair, lora_items
from ldm.checkpoint.writer import save
from ldm.commands import main
from ldm.models.shapes import load_family
from tests.pages import ROOT, Block, blocks

PAGE = ROOT / "docs/library.md"
EXAMPLES = [block for block in blocks(PAGE) if block.language == "python"]
SECTIONS = sorted({block.section for block in EXAMPLES})
APPLE = ["sample", "-p", "a red apple on a blue background", "-s", "1", "--size", "64x64", "--steps", "1", "-o", "apple.png", "-q"]


def promised(block: Block) -> list[str]:
    return re.findall(r"# -> (.*)$", block.text, re.MULTILINE)


def play(section: list[Block]) -> None:
    """The examples of one section, in one namespace of their own."""
    names: dict[str, object] = {"__name__": "example"}
    for block in section:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, "docs/library.md", "exec"), names)
        assert out.getvalue().splitlines() == promised(block), block.text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the files that the page names: a stand-in for the official one, and a LoRA of one layer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd_xl_base_1.0.safetensors").symlink_to(resources.weights() / "ldm-emoji.safetensors")
    width = load_family("emoji").unet.model_channels
    pair = Pair(torch.ones(1, width), torch.ones(4 * width, 1), 1.0)
    save(tmp_path / "style.safetensors", lora_items({"lora_unet_time_embed_0": pair}, torch.float16))
    return tmp_path


@pytest.mark.parametrize("section", SECTIONS)
def test_the_examples_of_a_section(section: int, folder: Path) -> None:
    examples = [block for block in EXAMPLES if block.section == section]
    if any("without torch" in block.text or '"torch" in sys.modules' in block.text for block in examples):
        assert main(APPLE) == 0
        text = "\n".join(block.text for block in examples)
        words = [sys.executable, "-c", text]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
        assert done.stdout.splitlines() == [line for block in examples for line in promised(block)], done.stderr
    else:
        play(examples)


def test_the_readme_s_python(folder: Path) -> None:
    examples = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert examples
    for block in examples:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block.text, "README.md", "exec"), {"__name__": "example"})
        assert "seed=42" in out.getvalue() and Path("lighthouse.png").is_file()


def test_the_page_is_not_thin() -> None:
    assert len(EXAMPLES) >= 15 and sum(len(promised(block)) for block in EXAMPLES) >= 20
    text = PAGE.read_text(encoding="utf-8")
    methods = [name for name in vars(ldm.Pipeline) if not name.startswith("_") and callable(getattr(ldm.Pipeline, name))]
    assert {"generate", "run", "encode", "sample", "decode", "encode_image", "to", "close"} <= set(methods)
    assert all(re.search(rf"\b{name}\b", text) for name in methods)
    assert all(f"`{name}`" in text for name in ldm.Result.__annotations__)


def test_an_example_that_prints_something_else_is_found() -> None:
    with pytest.raises(AssertionError):
        play([Block("python", "print(1)  # -> 2\n", 0)])
    play([Block("python", "a = 2\n", 0), Block("python", "print(a)  # -> 2\n", 0)])
    with pytest.raises(NameError):
        play([Block("python", "a\n", 0)])
