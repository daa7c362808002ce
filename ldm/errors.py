"""The errors a user can meet. `str(error)` is one line: what is wrong and where, then what to do; `error.code` is its class, E####."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CODES = {
    "E1000": "failed for another reason",
    "E2000": "a flag, a value or a name that is not acceptable",
    "E3001": "a model file that is absent or cannot be opened",
    "E3002": "another kind of file than safetensors, named for what it is",
    "E3003": "a model file that is cut short",
    "E3004": "a header that breaks the format",
    "E3005": "a header beyond the limits",
    "E3006": "a model or a kind of file that is not run",
    "E3007": "tensors that are missing, unknown, misshapen or of a dtype that is not read",
    "E3008": "weights that are not finite",
    "E3009": "a model file that changed, or could not be read, while it was read",
    "E3010": "a digest that differs from the known one",
    "E4001": "more memory needed than is free, found before anything was allocated",
    "E4002": "memory that ran out on the way",
    "E5001": "a file that cannot be written",
    "E6001": "latents that are not finite",
    "E6002": "a picture that is not finite",
    "E8001": "a device that is not there",
    "E9001": "a download that failed",
}


class LdmError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command returns, `code` one of `CODES`.

    `result` is what was made before it, where something was: of `generate`, the latents and the pictures that were decoded.
    """

    exit_code = 1
    code = "E1000"
    result: Any = None

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.code


class InputError(LdmError):
    """Input that is not acceptable: a flag, a file, a size, a name."""

    exit_code = 2
    code = "E2000"


class FileError(InputError):
    """A model file that is refused; its code says why."""

    code = "E3006"


class NumericError(LdmError):
    """Non-finite values; the message names the stage and the step."""

    code = "E6001"


class MemoryNeedError(LdmError):
    """The job needs more memory than is free; the message says both."""

    code = "E4001"


@contextmanager
def carrying(result: Any) -> Iterator[None]:
    """Whatever is raised in the block has `result` as an attribute of that name."""
    try:
        yield
    except BaseException as error:  # an interrupt too: what is made is not lost
        vars(error)["result"] = result
        raise


def listed(texts: Sequence[str], between: str = "; ", most: int = 5) -> str:
    """The first of many texts, and how many more there are."""
    return between.join([*texts[:most], *([f"and {len(texts) - most:,} more"] if len(texts) > most else [])])


def near_matches(name: str, known: list[str]) -> str:
    """A remedy for a misspelt name: the nearest known names, or all of them."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(sorted(known))}"


def shown(value: Any) -> str:
    """`value` as a message shows it, whatever it is: on one line, 80 characters at most."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number beyond 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
