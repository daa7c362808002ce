"""Regenerates tests/golden/diffusion.npz: what k-diffusion, torchsde and diffusers give for the cases of tests/diffusion/cases.py.

Run `python -m scripts.references_diffusion` with the parity extra installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.diffusion import references


def main() -> None:
    outputs = references.stored()
    path = Path(__file__).parent.parent / "tests" / "golden" / "diffusion.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **outputs)  # type: ignore[arg-type]
    print(f"{path.name}: {len(outputs)} arrays, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
