"""A grid of pictures by the model in the box, and how often the background has the colour that was asked for.

    python scripts/grid.py OUT.png [--model FILE] [--prompts FILE] [--seed N] [--columns N]

One prompt a line in FILE. The background is the median of the picture's border, its colour the nearest of the training set's twelve.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import ldm
from ldm.commands.streams import answered
from ldm.train.scenes import COLOURS

PROMPTS = """
a red apple on a blue background
a hamburger on a cyan background
a cat on a pink background
a penguin on a yellow background
a sunflower on a black background
a rocket on a black background
a guitar on an orange background
a robot on a brown background
a small strawberry on a white background
a big panda on an orange background
a purple rose on a white background
a lemon on the left of a green background
a star at the top of a blue background
two owls on a purple background
three bananas on a grey background
a cloud above a house on a cyan background
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="default: the model in the box")
    parser.add_argument("--prompts", type=Path, help="one a line; default: sixteen of our own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--columns", type=int, default=4)
    args = parser.parse_args()
    return answered(lambda: draw(args))


def draw(args: argparse.Namespace) -> None:
    prompts = (args.prompts.read_text(encoding="utf-8") if args.prompts else PROMPTS).strip().splitlines()
    pipeline, begun = ldm.load(args.model), time.perf_counter()
    images = [pipeline.generate(prompt, "", seed=args.seed).images[0] for prompt in prompts]
    seconds = (time.perf_counter() - begun) / len(prompts)
    grid(images, args.columns).save(args.out, optimize=True)
    named = [(image, wanted) for image, prompt in zip(images, prompts, strict=True) if (wanted := asked(prompt))]
    right = sum(background(image) == wanted for image, wanted in named)
    print(f"{args.out}: {len(images)} pictures, {seconds:.2f} s each; background right: {right} of {len(named)}")
    for image, prompt in zip(images, prompts, strict=True):
        print(f"  {'ok' if background(image) == (asked(prompt) or background(image)) else background(image):8} {prompt}")


def asked(prompt: str) -> str | None:
    """The colour of the background that a prompt names."""
    words = prompt.partition(" on ")[2].split()
    return next((word for word in words if word in COLOURS), None)


def background(image: Image.Image) -> str:
    """The nearest of the training set's colours to the median of a 4 pixel border."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    rim = np.ones(pixels.shape[:2], dtype=bool)
    rim[4:-4, 4:-4] = False
    middle = np.median(pixels[rim], axis=0)
    return min(COLOURS, key=lambda name: float(np.square(middle - COLOURS[name]).sum()))


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * width, k // columns * height))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
