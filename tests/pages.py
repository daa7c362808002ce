"""The commands and the examples of the pages that people read: README.md and docs/*.md."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("ldm", "python", "make", "pip", "pytest")
MARK = "†"  # behind a command that the tests do not run whole


@dataclass(frozen=True)
class Command:
    page: str
    text: str  # without comment and mark
    marked: bool
    is_line: bool  # not a span of prose

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


@dataclass(frozen=True)
class Block:
    """A fenced example; `section` counts the second-level headings before it."""

    language: str
    text: str
    section: int


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(each[1], each[2], len(re.findall("^## ", text[: each.start()], re.MULTILINE))) for each in found]


def commands(page: Path) -> list[Command]:
    """Every command line of a page: in fenced `sh` blocks, in indented blocks, and in spans of code that begin with a program's name."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines() if line.strip()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    starts = "|".join(PROGRAMS)
    lines += re.findall(rf"^    ((?:{starts}) .*)$", prose, re.MULTILINE)
    spans = [span + after for span, after in re.findall(rf"`((?:{starts}) [^`\n]+)`( {MARK})?", prose)]
    return [*(_command(page.name, line, True) for line in lines), *(_command(page.name, span, False) for span in spans)]


def _command(page: str, line: str, is_line: bool) -> Command:
    text = re.sub(rf"\s+(#|{MARK}).*$", "", line.strip())
    return Command(page, text, bool(re.search(rf"(\s|# ){MARK}", line)), is_line)
