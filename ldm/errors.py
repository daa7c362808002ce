"""The errors a user can meet. `str(error)` is one line: what is wrong and where, then what to do."""

from __future__ import annotations


class LdmError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class InputError(LdmError):
    """Input that is not acceptable: a flag, a file, a size, a name."""

    exit_code = 2


class NumericError(LdmError):
    """Non-finite values; the message names the stage and the step."""


class MemoryNeedError(LdmError):
    """The job needs more memory than is free; the message says both."""


def near_matches(name: str, known: list[str]) -> str:
    """A remedy for a misspelt name: the nearest known names, or all of them."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(sorted(known))}"
