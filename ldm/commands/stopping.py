"""SIGINT and SIGTERM: a command ends at once, but never amid the writing of a picture."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
PATIENCE = 1.0  # seconds: a signal after these ends the process there and then; before, it is the same one, sent by two senders


class Stop(KeyboardInterrupt):
    """A signal has come. `where`: in the work, as "at step 3 of 20"; `kept`: what is there of it."""

    def __init__(self, where: str = "", kept: str = "") -> None:
        super().__init__()
        self.where, self.kept = where, kept

    def __str__(self) -> str:
        return (f" {self.where}" if self.where else "") + (f": {self.kept}" if self.kept else "")


class Stops:
    """The signals of this process. One that comes while they are `held` waits for the end of that, or for a `free` part within."""

    def __init__(self) -> None:
        self.number, self._since = 0, 0.0  # of the first signal
        self._held = self._over = False

    def install(self) -> None:
        """From now on signals raise Stop."""
        self.number, self._held, self._over = 0, False, False
        for number in WORDS:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
                signal.signal(number, self._come)

    def finish(self) -> None:
        """The work is done: later signals change nothing. Raises Stop where one came whose Stop was lost, as one in a destructor is."""
        self._over = True
        self.check()

    def check(self) -> None:
        """Raise Stop if a signal has come."""
        if self.number:
            raise Stop

    def _come(self, number: int, _frame: FrameType | None) -> None:
        if self.number and time.monotonic() - self._since > PATIENCE:
            os._exit(128 + self.number)
        if self.number or self._over:
            return
        self.number, self._since = number, time.monotonic()
        if not self._held:
            raise Stop

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that no signal interrupts; a nested one does not end it."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if not before:
            self.check()

    @contextmanager
    def free(self) -> Iterator[None]:
        """Within a held block one that a signal interrupts."""
        before, self._held = self._held, False
        try:
            self.check()
            yield
        finally:
            self._held = before


STOPS = Stops()


@contextmanager
def watching() -> Iterator[None]:
    """Signals raise Stop in the block; afterwards they do what they did before."""
    before = {number: signal.getsignal(number) for number in WORDS}
    with suppress(ValueError):  # another thread than the main one
        STOPS.install()
    try:
        yield
    finally:
        with suppress(ValueError, TypeError):  # the latter: a handler that is not Python's
            for number, handler in before.items():
                signal.signal(number, handler)
