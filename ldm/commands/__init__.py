"""`ldm VERB ...`: one small file a verb, imported when it is asked for; only these files print."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TextIO

import ldm
from ldm.commands.stopping import STOPS, WORDS, Stop, watching
from ldm.commands.streams import complain, mute, say
from ldm.errors import InputError, LdmError, near_matches

VERBS = {
    "sample": "a prompt in, pictures out",
    "prompt": "how a prompt is read: chunks, tokens, weights, what changes on the way",
    "info": "what a model file or a picture is, and how it was made",
    "compare": "why two pictures differ, the likeliest cause first",
    "train": "a model or a LoRA, trained on pictures",
    "parity": "how far every stage is from another engine's, on your own file",
    "samplers": "the samplers and schedules, and what other engines call them",
    "models": "the model files that names reach, and what each is",
    "pull": "a model file from the Hugging Face Hub",
    "doctor": "what this machine has of all that is needed, with remedies",
    "completion": "words for a shell to complete: bash, zsh or fish",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the return value is the exit code: 0 done, 1 failed, 2 input not acceptable, 130 interrupted, 143 terminated."""
    with watching():
        return _ended(list(sys.argv[1:] if argv is None else argv))


def program(*first: str) -> int:
    """`main` of a process, with these words before its own: a signal that comes when all is done changes nothing."""
    STOPS.install()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks once: large tensors in huge pages, a fraction of the page faults
    code = _ended([*first, *sys.argv[1:]])
    if "triton" not in sys.modules:  # which lists as leaked, line by line, what is not collected
        gc.freeze()  # or Python, as it ends, looks for garbage in all that torch has made: half a second of the processor's time
    return code


def _ended(words: list[str]) -> int:
    try:
        code = _outcome(words)
        STOPS.finish()
        return code
    except KeyboardInterrupt as stop:
        number = signal.Signals(STOPS.number or signal.SIGINT)
        say(f"ldm: {WORDS[number]}{stop if isinstance(stop, Stop) else ''}")
        return 128 + number


def _outcome(words: list[str]) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return _run(words)
    except LdmError as error:
        return _fail(error, str(error), error.exit_code, words)
    except BrokenPipeError:
        mute(sys.stdout)
        return 1
    except OSError as error:
        _check_stdout()
        return _fail(error, f"{error.filename or 'input or output'}: {error.strerror or error}", 1, words)
    except Exception as error:
        return _fail(error, f"unexpected {type(error).__name__}: {error}: run it again with --debug and report what it shows", 1, words)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        if not words:
            say(_usage())
            return InputError.exit_code
        print(_usage(), flush=True)
        return 0
    if words[0] == "--version":
        print(f"ldm {ldm.__version__}", flush=True)
        return 0
    if words[0] not in VERBS:
        raise InputError(f"unknown verb {words[0]!r}: {near_matches(words[0], list(VERBS))}")
    run: Callable[[list[str]], int] = import_module(f"ldm.commands.{words[0]}").run
    return run(words[1:])


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())
    return f"usage: ldm VERB ...\n\n{verbs}\n\nldm VERB --help lists the flags of a verb; ldm --version."


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    """A warning is one line like everything else; `warnings.showwarning` gives the signature."""
    say(f"ldm: note: {message}")


def _fail(error: BaseException, message: str, code: int, words: list[str]) -> int:
    STOPS.check()  # what a signal broke is no failure of the command
    if "--debug" in words:
        say("".join(traceback.format_exception(error)).rstrip())
    complain(error, message, as_json=_wants_json(words))
    return code


def _wants_json(words: list[str]) -> bool:
    return "--json" in words or "--format=json" in words or any(pair == ("--format", "json") for pair in pairwise(words))


def _check_stdout() -> None:
    """What could not be printed is not tried again at the end, where it would change the exit code."""
    try:
        print(end="", flush=True)
    except OSError:
        mute(sys.stdout)
