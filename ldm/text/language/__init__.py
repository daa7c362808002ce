"""The prompt languages of other programs, read in linear time: every text gives a prompt, or one InputError with the column.

From the outside in: `choices` ({a|b}, by the seed), `editing.split` (AND), `editing.parse` ([a:b:0.5]), then for each text that is
left `pieces` ((a:1.2), BREAK). No torch here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ldm.text.language.piece import Piece

Syntax = Literal["a1111", "comfyui", "none"]


def pieces(text: str, syntax: Syntax, start: int = 0) -> list[Piece]:
    """The text as runs of one weight, in order, at least one. InputError counts its columns from `start`."""
    from ldm.text.language import a1111, comfyui, piece

    if syntax == "a1111":
        return a1111.parse(text, start)
    return comfyui.parse(text, start) if syntax == "comfyui" else [piece.Piece(text)]


def render(parsed: list[Piece], syntax: Syntax) -> str:
    """A text that `pieces` reads as `parsed`."""
    from ldm.text.language import a1111, comfyui

    if syntax == "a1111":
        return a1111.render(parsed)
    return comfyui.render(parsed) if syntax == "comfyui" else "".join(piece.text for piece in parsed)
