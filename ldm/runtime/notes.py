"""Notes to whoever called the library, as Python's warnings."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

INSIDE = (*(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent)), contextlib.__file__)


def note(text: str, kind: type[Warning] = UserWarning) -> None:
    """A warning that points at the nearest line outside this package, torch and decorators, however deep the call is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, kind, stacklevel=level)


def note_each(texts: Iterable[str]) -> None:
    for text in texts:
        note(text)
