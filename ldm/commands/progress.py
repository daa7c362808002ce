"""What a run says on stderr: bars for a person at a terminal, one line a picture otherwise, nothing when quiet."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from ldm.checkpoint.memory import size
from ldm.commands.streams import mute

__all__ = ["Bar", "rate", "size"]

PAUSE = 0.2  # seconds from one drawing of a long bar to the next


def rate(steps: int, seconds: float) -> str:
    """Speed for people: "1.9 it/s", or "2.4 s/it" where a step takes longer than a second."""
    if steps < 1 or seconds <= 0:
        return ""
    return f"{steps / seconds:.1f} it/s" if steps >= seconds else f"{seconds / steps:.1f} s/it"


class _Terminal:
    """stderr for tqdm: what cannot be drawn is left out, and the run goes on."""

    def __init__(self) -> None:
        self.encoding = sys.stderr.encoding

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            mute(sys.stderr)


class Bar:
    """A bar for a terminal alone. Give its `step` to `generate` as `on_step`, or its `count` to `load` as `progress`."""

    def __init__(self, what: str, quiet: bool, total: int = 0, unit: str = "it", *, done: int = 0, long: bool = False) -> None:
        """`done`: where it begins; `long`: it is drawn some times a second at most, and its last drawing stays."""
        self.what, self.total, self.unit, self.done, self.long = what, total, unit, done, long
        self.shown = not quiet and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.bar: Any = None

    def __enter__(self) -> Self:
        if self.shown:
            from tqdm import tqdm

            columns, rows = shutil.get_terminal_size()  # 80 by 24 where the terminal does not know
            place = {"ncols": min(columns, 100), "nrows": rows, "file": _Terminal()}
            scaled = {"unit": self.unit, "unit_scale": self.unit == "B"}
            paced = {"mininterval": PAUSE, "miniters": 1, "leave": True} if self.long else {"mininterval": 0, "leave": False}
            self.bar = tqdm(total=self.total, initial=self.done, desc=self.what, **paced, **scaled, **place)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """A block that writes lines where the bar stands."""
        if self.bar is not None:
            self.bar.clear()
        yield
        if self.bar is not None:
            self.bar.refresh()

    def step(self, _step: Any) -> None:
        """Count one step; returns None, so the run goes on."""
        self.count(1, self.total)

    def reach(self, done: int, words: str) -> None:
        """Stand at `done`, with `words` behind."""
        if self.bar is not None:
            self.bar.set_postfix_str(words, refresh=False)
        self.count(done - self.done, self.total)

    def count(self, more: int, total: int) -> None:
        """Count `more` of `total`; another total is another file, with which the bar begins again."""
        self.done += more
        if self.bar is not None:
            if total != self.bar.total:
                self.bar.reset(total)
            self.bar.update(more)
