"""`python -m ldm.train ARGS` is `ldm train ARGS`."""

from __future__ import annotations

import sys

from ldm.commands import program

if __name__ == "__main__":
    sys.exit(program("train"))
