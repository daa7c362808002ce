"""Times beside diffusers in one process: alternating runs, medians and tenths, each side against itself, nothing timed that is not right.

    python -m scripts.bench                                         # every row of this machine, the fastest device that is there
    python -m scripts.bench --only step-256,vae-512 --minutes 15    # these, in a slice; the same command again goes on
    python -m scripts.bench --small                                 # every row, those of a GPU too, at tiny sizes on the CPU
    python -m scripts.bench --json bench.json --write               # what was measured, into docs/benchmarks.md
    python -m scripts.bench --tune                                  # what is fastest a shape on this GPU, into configs/tuning/NAME.toml

Weights are drawn, never zero; no file is needed. Four measures take a checkpoint instead, on the CPU:

    python -m scripts.bench load --checkpoint sd_xl_base_1.0.safetensors    # file in the page cache -> ready; a fresh process each time
    python -m scripts.bench step --checkpoint sd_xl_base_1.0.safetensors    # one guided UNet step at 256x256
    python -m scripts.bench finite --checkpoint sd_xl_base_1.0.safetensors  # the share of the check for NaN and Inf in loading
    python -m scripts.bench digest --checkpoint sd_xl_base_1.0.safetensors  # seconds a GB of `ldm sample --verify`

`load` prints seconds and peak resident memory (VmHWM) of each engine and the ratio of medians. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

WITH_FILE = ("load", "step", "finite", "digest")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m scripts.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("what", nargs="?", choices=WITH_FILE, help="a measure on one checkpoint")
    made.add_argument("--checkpoint", type=Path)
    made.add_argument("--runs", type=int, help="alternating runs; default 11, on a GPU 21")
    made.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights, for finite")
    made.add_argument("--only", type=lambda text: text.split(","), metavar="ROW[,ROW]", help="these rows; --list names them")
    made.add_argument("--list", action="store_true", help="the rows of this machine, and the seconds that each is expected to take")
    made.add_argument("--minutes", type=float, help="end in good order by then")
    made.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE", help="the record; one that is there is added to")
    made.add_argument("--again", action="store_true", help="rows that FILE has are measured once more")
    made.add_argument("--write", action="store_true", help="docs/benchmarks.json and docs/benchmarks.md from FILE")
    made.add_argument("--small", action="store_true", help="tiny sizes on the CPU, every row: the way through, not a measure")
    made.add_argument(
        "--compile", nargs="?", const="max-autotune", metavar="MODE", help="how diffusers is compiled; on the CPU: that it is"
    )
    made.add_argument("--tune", action="store_true", help="configs/tuning/NAME.toml from the operations of FILE, or measured now")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for hidden in ("--engine", "--folder", "--here", "--until"):  # of processes that this one starts
        made.add_argument(hidden, help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser()
    options = made.parse_args(arguments)
    if options.what is None:
        from scripts.bench import conduct

        return conduct.run(options)
    if options.checkpoint is None:
        made.error("--checkpoint is missing: python -m scripts.synthetic writes one")
    from scripts.bench import checkpoint

    if options.engine:
        device = "cpu" if options.device == "auto" else options.device
        print(json.dumps(checkpoint.one_load(options.engine, options.checkpoint, Path(options.folder), device)))
    else:
        checkpoint.run(options.what, options.checkpoint, runs=options.runs or 11, dtype=options.dtype)
    return 0
