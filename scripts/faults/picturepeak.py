"""`python -m scripts.faults.picturepeak FILE...`: the most memory that opening each picture takes, in bytes a pixel, as JSON. Linux."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from PIL import Image

from ldm import opening


def _memory(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak(path: Path) -> tuple[float, int]:
    """(bytes a pixel above what stood before, channels), in a process of its own for each picture."""
    before = _memory("VmRSS")
    opened = opening.open_picture(path)
    return (_memory("VmHWM") - before) / (opened.rgb.width * opened.rgb.height), 3 + (opened.alpha is not None)


def main(paths: list[str]) -> None:
    Image.init()
    found = {}
    for path in paths:
        out, back = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(back, json.dumps(peak(Path(path))).encode())
            os._exit(0)
        os.close(back)
        with os.fdopen(out) as told:
            found[Path(path).name] = json.loads(told.read() or "null")
        os.waitpid(child, 0)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
