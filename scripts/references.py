"""Regenerates tests/golden/models.npz: what diffusers and transformers give for the tiny networks of tests/models/cases.py.

Run `python -m scripts.references` with the parity extra installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.models import cases


def main() -> None:
    outputs = {f"{name}/{stage}": tensor.numpy() for name in cases.FAMILIES for stage, tensor in cases.theirs(name).items()}
    path = Path(__file__).parent.parent / "tests" / "golden" / "models.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **outputs)  # type: ignore[arg-type]
    print(f"{path.name}: {len(outputs)} tensors, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
