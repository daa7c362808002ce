"""What is said on stderr: a line is written at once, so that a signal's own line never lands in the middle of it."""

from __future__ import annotations

import io
import sys

import pytest

from ldm.commands.streams import say


class Pieces(io.StringIO):
    """Every call of `write` apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def test_lines_and_their_ends_are_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Pieces()
    monkeypatch.setattr(sys, "stderr", stream)
    say("loading a\x1b[2Jfile\nand more")
    assert stream.pieces == ["loading a\\x1b[2Jfile\nand more\n"]


def test_a_stream_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    say("nothing", quiet=True)
    monkeypatch.setattr(sys, "stderr", None)
    say("nowhere")
