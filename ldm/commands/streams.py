"""The two ways out of a command: lines on stderr, paths on stdout. A stream that is closed, full or not read never costs a picture."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import TextIO

from ldm.errors import CODES, LdmError


def printable(text: str) -> str:
    """A text on one line of a terminal, whoever wrote it: what is not printable becomes its escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text)


def say(text: str, quiet: bool = False) -> None:
    """Lines on stderr, if there is one that takes them; names of files and words of strangers cannot steer the terminal."""
    if quiet or sys.stderr is None:  # print(file=None) would write to stdout
        return
    try:
        sys.stderr.write("\n".join(map(printable, text.split("\n"))) + "\n")  # at once: print writes the end apart, after a signal's line
        sys.stderr.flush()
    except (OSError, ValueError, RuntimeError):  # the last: a signal has come amid another line
        mute(sys.stderr)


def complain(error: BaseException, message: str | None = None, *, as_json: bool = False) -> None:
    """The one line of an error: `ldm: error E####: what, where: what to do`, or the same as a JSON object."""
    code = getattr(error, "code", None)
    known = code if isinstance(code, str) and code in CODES else LdmError.code
    line = " ".join((str(error) if message is None else message).splitlines())
    say(json.dumps({"error": {"code": known, "message": line}}) if as_json else f"ldm: error {known}: {line}")


def answered(work: Callable[[], object]) -> int:
    """The exit code of a script's work: 0, or that of its error, of which there is one line."""
    try:
        work()
    except (LdmError, OSError) as error:
        complain(error)
        return error.exit_code if isinstance(error, LdmError) else LdmError.exit_code
    return 0


def tell(path: str | os.PathLike[str]) -> int:
    """A path on stdout, in the bytes that the system has for it. The exit code: 1, and a word on stderr, where it cannot be written.

    A reader that has gone is no failure.
    """
    return show(os.fsencode(path))


def show(line: str | bytes) -> int:
    """A line on stdout; the exit code as of `tell`."""
    try:
        _write((line.encode() if isinstance(line, str) else line) + b"\n")
    except BrokenPipeError:
        mute(sys.stdout)
    except OSError as error:
        mute(sys.stdout)
        say(f"ldm: cannot write to stdout: {error.strerror or error}: the files are written, but not all is printed")
        return 1
    return 0


def _write(line: bytes) -> None:
    if sys.stdout is None:
        return
    sys.stdout.flush()
    out = getattr(sys.stdout, "buffer", None)
    if out is None:  # a stream of text alone
        sys.stdout.write(os.fsdecode(line))
        return
    out.write(line)
    out.flush()


def mute(stream: TextIO | None) -> None:
    """Send a broken stream nowhere: what its buffer still holds would fail again at the end of the program."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):  # a stream that is no file
            target = stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, target)
            os.close(nowhere)
