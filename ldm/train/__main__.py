"""`python -m ldm.train CONFIG --stage vae|towers|unet --data THINGS --out DIR [--minutes N] [--resume]`, or `--export FILE`."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ldm.errors import InputError, LdmError


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except LdmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ldm.train", description="Train one stage of a model, or export it.")
    parser.add_argument("config", type=Path, help="a training recipe, such as configs/train/emoji.toml")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--stage", choices=["vae", "towers", "unet"], help="what to train; in this order")
    work.add_argument("--export", type=Path, metavar="FILE", help="write what is trained in the official layout, F16")
    parser.add_argument("--data", type=Path, help="folder of things, as scripts/emoji.py makes it (not needed by --export)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: states, metrics, caches")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in good order after this time (default: no limit)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest state in --out")
    return parser


def _run(args: argparse.Namespace) -> None:
    from ldm.train.recipe import load_recipe

    recipe = load_recipe(args.config)
    if args.export:
        from ldm.train.export import export

        _say(export(recipe, args.out, args.export))
        return
    if args.data is None:
        raise InputError("--data is missing: give the folder of things that scripts/emoji.py wrote")
    from ldm.train.loop import Limits
    from ldm.train.stages import load_composer, run_stage

    limits = Limits(minutes=args.minutes, stop=_stop_flag(), say=_say)
    run_stage(args.stage, recipe, load_composer(recipe, args.data), args.out, resume=args.resume, limits=limits)


def _stop_flag() -> Callable[[], bool]:
    """True once SIGINT or SIGTERM has come: the step in hand is finished and the state saved. A second signal ends the run at once."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return lambda: bool(seen)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
