"""Regenerates tests/golden/text.json: token ids by open_clip and transformers, sinusoids by diffusers, for clones without them.

Run `python -m scripts.references_text` with the parity extra installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.embeddings import get_timestep_embedding

from tests.text import foreign

SINUSOIDS = [(1024.0, 256), (999.0, 320), (0.0, 256), (6.0, 256), (37.25, 320)]


def tokens() -> list[dict[str, object]]:
    for text in foreign.PLAIN:
        if foreign.transformers()(text)["input_ids"][1:-1] != foreign.open_clip().encode(text):
            raise SystemExit(f"open_clip and transformers differ on {text!r}")
    return [{"text": text, "ids": foreign.open_clip().encode(text)} for text in [*foreign.PLAIN, *foreign.NASTY]]


def sinusoids() -> list[dict[str, object]]:
    made = []
    for value, dim in SINUSOIDS:
        row = get_timestep_embedding(torch.tensor([value]), dim, flip_sin_to_cos=True, downscale_freq_shift=0)[0]
        made.append({"value": value, "dim": dim, "features": [float(f"{feature:.9g}") for feature in row.tolist()]})
    return made


def main() -> None:
    path = Path(__file__).parent.parent / "tests" / "golden" / "text.json"
    made = {"tokens": tokens(), "sinusoids": sinusoids()}
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]" for name, cases in made.items()]
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")
    print(f"{path.name}: {sum(map(len, made.values()))} cases, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
