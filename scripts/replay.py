"""Prompt files as people have them, run unchanged, and each of their pictures made again from what it says.

python -m scripts.replay                 # 100 lines of sd-scripts and 100 of A1111 on the model in the box
python -m scripts.replay --count 6
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.commands import main as command
from ldm.commands.output import SUFFIXES
from scripts.faults import Figure

FLAGS = ["-W", "64", "-H", "64", "--steps", "2", "-q"]  # for the lines that say nothing of them
SUBJECTS = (
    "a red apple on a blue background",
    "1girl, solo, (smile:1.2), looking at viewer, cherry blossoms",
    "photo of a fox in the snow, 85mm, f/1.8",
    "((masterpiece)), best quality, a castle on a hill, [sunset]",
    "a state-of-the-art -- well-lit -- studio, C4D, 8k",
    "猫が窓辺で眠っている、水彩画",
    "portrait of an old man, <lora:film_grain:0.6>, kodak portra",
    "a cat AND a dog, high detail",
    "un café à Montréal, l'été",
    "🍎 on 🟦",
    "cyberpunk street at night, rain, neon sign saying OPEN 24/7",
    "a bowl of fruit BREAK on a wooden table",
    "isometric room, #pastel",
)
NEGATIVES = (
    "low quality, worst quality, bad anatomy, bad composition, poor, low effort",
    "(worst quality:1.4), blurry, watermark, text, jpeg artifacts, extra fingers",
    "easynegative, nsfw",
    "写真、ぼやけ",
)


def kohya(count: int) -> list[str]:
    """`count` jobs as sd-scripts has them, comments and blank lines between."""
    dice = random.Random(1)
    parts = (
        lambda at: f"--n {dice.choice(NEGATIVES)}",
        lambda at: f"--w {dice.choice((64, 72, 96))} --h {dice.choice((64, 80))}",
        lambda at: f"--d {1000 + at}",
        lambda at: f"--d {at},{at + 7}",
        lambda at: f"--s {dice.choice((1, 2))}",
        lambda at: f"--l {dice.choice(('7.5', '5', '3.0'))}",
        lambda at: f"--ss {dice.choice(('euler_a', 'k_euler', 'ddim', 'dpmsolver++', 'heun', 'k_lms'))}",
        lambda at: "--ow 1024 --oh 768 --ct 0 --cl 64",
        lambda at: "--nw 512 --nh 512",
        lambda at: f"--am {dice.choice(('0.8', '0.8,0.5,0.3'))}",
        lambda at: "--t 0.7 --g 3.5",
        lambda at: "--nl 3 --glt 700 --glr 0.5",
        lambda at: f"--f set{dice.randrange(3)}/picture_{at:03}",
    )
    return [*_mixed(dice, [" ".join([dice.choice(SUBJECTS), *_some(dice, parts, at)]) for at in range(count)])]


def a1111(count: int) -> list[str]:
    """`count` jobs as the script "Prompts from file" has them."""
    dice = random.Random(2)
    samplers = ("Euler a", "DPM++ 2M Karras", "DPM++ SDE", "DPM++ 2M SDE Exponential", "Heun", "LMS Karras", "DDIM", "euler")
    parts = (
        lambda at: f'--negative_prompt "{dice.choice(NEGATIVES)}"',
        lambda at: f"--width {dice.choice((64, 72))} --height {dice.choice((64, 80))}",
        lambda at: f"--seed {dice.choice((at, 2000 + at, -1))}",
        lambda at: f"--steps {dice.choice((1, 2))}",
        lambda at: f"--cfg_scale {dice.choice((7, 4.5, 1))}",
        lambda at: f'--sampler_name "{dice.choice(samplers)}"',
        lambda at: "--batch_size 2",
        lambda at: "--n_iter 2",
        lambda at: "--restore_faces false --tiling false",
        lambda at: '--sd_model "sd_xl_base_1.0.safetensors [31e35c80fc]" --styles "cinematic"',
        lambda at: '--outpath_samples "/mnt/pictures/today" --do_not_save_grid true',
        lambda at: '--prompt_for_display "a prompt" --sampler_index 3',
    )
    jobs = []
    for at in range(count):
        prompt = dice.choice((*SUBJECTS, 'a sign that says \\"no entry\\"', "it's late; a lamp"))
        bare = at % 10 == 3 and '"' not in prompt
        jobs.append(prompt if bare else " ".join([f'--prompt "{prompt}"', *_some(dice, parts, at)]))
    return [*_mixed(dice, jobs)]


def _some(dice: random.Random, parts: Sequence[Callable[[int], str]], at: int) -> list[str]:
    """A few of the options, in any order; each of them is in some line."""
    chosen = {at % len(parts), *dice.sample(range(len(parts)), dice.randrange(5))}
    return dice.sample([parts[each](at) for each in sorted(chosen)], len(chosen))


def _mixed(dice: random.Random, jobs: list[str]) -> Iterator[str]:
    yield from ("# prompts of the week", "")
    for job in jobs:
        yield job
        yield from {0: ["", f"# {job}"], 1: [""], 2: ["   "]}.get(dice.randrange(8), [])


FILES = {"sd-scripts": kohya, "A1111": a1111}


def replay(count: int = 100) -> Figure:
    """Both files of `count` jobs through the command, then each picture through --from-image."""
    said, good = [], True
    for name, lines in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "prompts.txt")
            file.write_text("\n".join(lines(count)) + "\n", encoding="utf-8")
            code = _silent(["--from-file", str(file), "-o", f"{folder}/out", *FLAGS])
            made = sorted(path for path in Path(folder, "out").rglob("*") if path.suffix in SUFFIXES)
            other = [path.name for path in made if not _again(path, Path(folder, "again.png"))]
        again = f"{len(other)} others when made again {other[:3] or ''}".strip()
        said.append(f"{name}: {count} lines, exit code {code}, {len(made)} pictures, {again}")
        good = good and code == 0 and len(made) >= count and not other
    return Figure("every line makes its pictures, every picture is made again to the pixel", "; ".join(said), good)


def _again(path: Path, place: Path) -> bool:
    place.unlink(missing_ok=True)
    return _silent(["--from-image", str(path), "-o", str(place), "-q"]) == 0 and bool(np.array_equal(_pixels(path), _pixels(place)))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).copy()


def _silent(words: list[str]) -> int:
    """`ldm sample`, the paths that it prints being of no use here."""
    with contextlib.redirect_stdout(io.StringIO()):
        return command(["sample", *words])


def main() -> int:
    parser = argparse.ArgumentParser(description="Run prompt files of two programs, and make each of their pictures again.")
    parser.add_argument("--count", type=int, default=100, help="lines of each file")
    figure = replay(parser.parse_args().count)
    print(figure)
    return 0 if figure.good else 1


if __name__ == "__main__":
    sys.exit(main())
