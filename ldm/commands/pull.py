"""`ldm pull`: a file of the Hugging Face Hub into its cache. The only verb that opens a connection."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.commands.flags import made
from ldm.commands.progress import Bar, size
from ldm.commands.streams import say, tell
from ldm.errors import InputError, LdmError
from ldm.flags import Parser
from ldm.hub import names
from ldm.summaries import Summary, summarise

if TYPE_CHECKING:
    from ldm.hub.plans import Plan

ASK_ABOVE = 10**9  # bytes


def run(argv: list[str]) -> int:
    """Do the verb and return the exit code; raises LdmError."""
    options = parser().parse_args(argv)
    name = names.parse(options.name)
    if name is None:
        raise InputError(
            f"{options.name!r} does not name a file of the Hub: write org/repo, org/repo:file.safetensors or org/repo:file@revision"
        )
    if options.offline or names.is_offline():
        return _done(_cached(name), str(name), options.json, options.quiet)
    from ldm.hub.plans import make_plan

    plan = make_plan(name)
    _announce(plan, options.quiet and not options.dry_run)
    if options.dry_run:
        return 0
    _ask(plan, options.yes)
    return _done(_fetch(plan, options.quiet), str(plan.name), options.json, options.quiet)


def parser() -> Parser:
    flags = made("pull", "Download a .safetensors file from the Hugging Face Hub.")
    flags.add_argument("name", metavar="ORG/REPO[:FILE][@REVISION]", help="what to download; without FILE the only one there is")
    flags.add_argument("-y", "--yes", action="store_true", help="do not ask at a terminal before more than 1 GB")
    flags.add_argument("--dry-run", action="store_true", help="say what would be downloaded, how much and where to, and stop")
    flags.add_argument("--offline", action="store_true", help="look in the cache alone")
    flags.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes")
    return flags


def _cached(name: names.HubName) -> Path:
    path = names.cached(name)
    if path is None:
        where = names.cache_folder()
        raise InputError(
            f"{name} is not in the Hub's cache ({where}), and connections are forbidden (--offline or HF_HUB_OFFLINE): allow them"
        )
    return path


def _announce(plan: Plan, quiet: bool) -> None:
    """What, how big, where to, and what is free there."""
    have, need = plan.have, plan.size - plan.have
    if need <= 0:
        say(f"{plan.name}: {size(plan.size)} are in {plan.cache} already: checking", quiet)
        return
    more = f", {size(have)} of it here from an earlier try" if have else ""
    say(f"{plan.name}: {size(plan.size)}{more}, to {plan.cache} ({size(plan.free)} free)", quiet)


def _ask(plan: Plan, yes: bool) -> None:
    """At a terminal a large download waits for a word; elsewhere the command line is the word, and nothing waits."""
    need = plan.size - plan.have
    if yes or need <= ASK_ABOVE or not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return
    print(f"download {size(need)}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise LdmError(f"{plan.name}: not downloaded, as was answered: add --yes to download it without the question")


def _fetch(plan: Plan, quiet: bool) -> Path:
    from ldm.hub.fetching import fetch

    with Bar("downloading", quiet, plan.size, unit="B") as bar:
        return fetch(plan, bar.count)


def _done(path: Path, name: str, as_json: bool, quiet: bool) -> int:
    """Read the header, say what the file is, and give its path."""
    summary = summarise(path)
    what = summary.title or summary.error
    use = f": ldm sample {summary.flag} {name}" if summary.flag else ", which `ldm sample` does not use"
    say(f"{name}: {what}{use}", quiet)
    if not as_json:
        return tell(path)
    print(_json(name, path, summary), flush=True)
    return 0


def _json(name: str, path: Path, summary: Summary) -> str:
    return json.dumps({"name": name, "path": os.fspath(path), "size": path.stat().st_size, "title": summary.title, "flag": summary.flag})
