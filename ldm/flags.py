"""The flags of a command, their help and the checks of their words: all from the one declaration in `options.Job`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NoReturn

from ldm.errors import InputError
from ldm.limits import LIMITS
from ldm.options import KNOBS, Job, Knob


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line, as an InputError."""

    def error(self, message: str) -> NoReturn:
        flag = re.fullmatch(r"argument (?:\S+/)?(\S+): expected one argument", message)
        dash = f', and a value that starts with a dash an equals sign: write {flag[1]}="-c"' if flag else ""
        raise InputError(f"{message}{dash}: see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and version on stdout; an OSError is not passed over, as argparse does."""
        print(message, end="", flush=True)


def parser(prog: str, description: str) -> Parser:
    """The flags of `Job`, in its order."""
    made = Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, knob in KNOBS.items():
        if knob.flags:
            _add(made, name, knob)
    return made


def _add(made: Parser, name: str, knob: Knob) -> None:
    keywords: dict[str, Any] = {"dest": name}
    if knob.parse is None:
        keywords["action"] = "store_true"
    else:
        keywords |= {"type": partial(_parse, knob.flags[-1], knob.parse), "metavar": knob.metavar}
        keywords["action"] = "append" if knob.repeats else "store"
    made.add_argument(*knob.flags, help=help_text(name, knob).replace("%", "%%"), **keywords)
    if knob.aliases:
        made.add_argument(*knob.aliases, help=argparse.SUPPRESS, **keywords)


def help_text(name: str, knob: Knob) -> str:
    """What the help and the docs say of a flag: its meaning, range and default."""
    default = next(each.default for each in fields(Job) if each.name == name)
    notes = [str(LIMITS[name])] if name in LIMITS else []
    notes += [f"default {default}"] if default and default is not True else []
    return f"{knob.help} ({'; '.join(notes)})" if notes else knob.help


def _parse(flag: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(f"{flag} {text[:80]!r} is not acceptable: give {error}") from None


def _dashed(word: str) -> str:
    """`--cfg_scale=7`, as sd-scripts' users write it, with the dashes of a flag."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if re.fullmatch(r"--[a-z][a-z_0-9-]*", name) else word


def given(made: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """The fields of a job that the words of a command line set; raises InputError."""
    found = vars(made.parse_args([_dashed(word) for word in argv]))
    if "overrides" in found:
        found["overrides"] = dict(found["overrides"])
    if "models_dir" in found:
        found["models_dir"] = tuple(found["models_dir"])
    return found
