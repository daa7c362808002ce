"""`ldm doctor`: what this machine has of all that generation needs, a line each."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ldm import catalogue, doctor
from ldm.commands.flags import made
from ldm.commands.streams import printable, say
from ldm.flags import Parser


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code: 1 where no pictures can be made."""
    options = parser().parse_args(argv)
    say("looking around: importing torch takes some seconds")
    faults = 0
    for finding in doctor.examine(Path(options.output), catalogue.places(options.models_dir)):
        print(json.dumps(asdict(finding)) if options.json else printable(str(finding)), flush=True)
        faults += finding.state == doctor.FAULT
    if faults:
        say(f"ldm: {faults} fault{'s' if faults > 1 else ''}: no pictures can be made until mended")
    return 1 if faults else 0


def parser() -> Parser:
    flags = made("doctor", "Say what is here, what is not, and what to do about it.", models_dir=True)
    flags.add_argument("-o", "--output", default="outputs", metavar="FOLDER", help="the folder that pictures will go to")
    return flags
