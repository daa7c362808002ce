"""Regenerates tests/golden/diffusion.npz, what k-diffusion, torchsde and diffusers give for the cases of tests/diffusion/cases.py, and a
file a profile, tests/golden/<profile>.npz, with the sigma lists and training steps of tests/diffusion/listed.py.

Run `python -m scripts.references_diffusion` with the parity extra installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.diffusion import listed, references

FOLDER = Path(__file__).parent.parent / "tests" / "golden"


def save(name: str, outputs: dict[str, np.ndarray]) -> None:
    path = FOLDER / f"{name}.npz"
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(path, **outputs)  # type: ignore[arg-type]
    print(f"{path.name}: {len(outputs)} arrays, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    save("diffusion", references.stored())
    for profile in listed.PROFILES:
        save(profile, listed.stored(profile))


if __name__ == "__main__":
    main()
