"""Renders the training set of the model in the box: about a hundred things of the Noto Color Emoji font, as tiles with their names.

    python scripts/emoji.py OUT [--font NotoColorEmoji.ttf] [--names emoji-test.txt]

OUT gets one RGBA PNG a thing (at most 136x128) and `things.json`. Font: Debian fonts-noto-color-emoji (font OFL-1.1, its pictures
Apache-2.0); names: Unicode's emoji-test.txt, Debian unicode-data. The pictures the model sees are composed from these
tiles while it trains (ldm.train.data).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
SIZE = 109  # the one bitmap size of the font

# Unicode's short name, where needed followed by "= other names, most usual first"; a + marks a plural.
THINGS = """
red apple = red apple, apple
green apple = green apple
pear
tangerine = orange fruit, tangerine
lemon
banana
watermelon
grapes = +grapes
strawberry
cherries = +cherries
peach
pineapple
kiwi fruit = kiwi, kiwi fruit
tomato
avocado
eggplant
carrot
ear of corn = corn cob, ear of corn
broccoli
mushroom
bread = loaf of bread
croissant
cheese wedge = piece of cheese, cheese wedge
hamburger = hamburger, burger
french fries = +french fries, +fries
pizza = slice of pizza, pizza
hot dog
egg
ice cream = bowl of ice cream
doughnut = doughnut, donut
cookie
birthday cake = birthday cake, cake
cupcake
teapot
hot beverage = cup of coffee, hot beverage
wine glass = glass of wine, wine glass
beer mug = mug of beer, beer mug
dog face = dog, dog face
cat face = cat, cat face
lion
tiger face = tiger, tiger face
fox
bear
panda
rabbit face = rabbit, rabbit face
pig face = pig, pig face
cow face = cow, cow face
frog = frog
monkey face = monkey, monkey face
elephant
horse face = horse, horse face
unicorn
penguin
owl
duck
rooster
turtle
T-Rex = dinosaur, T-Rex
dolphin
octopus
butterfly
lady beetle = ladybug, lady beetle
sunflower
rose
cactus
evergreen tree = fir tree, evergreen tree
palm tree
sun with face = sun with a face
crescent moon = crescent moon, moon
star
cloud
snowman without snow = snowman
fire = flame, fire
droplet = drop of water, droplet
rainbow
umbrella
house
red heart = red heart, heart
automobile = red car, car
police car
tractor
sailboat
airplane
rocket
flying saucer = flying saucer, ufo
balloon = red balloon, balloon
wrapped gift = gift, wrapped gift
trophy
soccer ball = football, soccer ball
basketball
guitar
crown
top hat
sunglasses = +sunglasses
t-shirt
gem stone = diamond, gem stone
bell
light bulb
alarm clock
key
hammer
robot
ghost
jack-o-lantern = pumpkin, jack-o-lantern
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--names", type=Path, default=NAMES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sequences, font, index = read_sequences(args.names), ImageFont.truetype(str(args.font), SIZE), []
    for name, names in things():
        file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".png"
        render(sequences[name], font).save(args.out / file, optimize=True)
        index.append({"file": file, "names": [n.removeprefix("+") for n in names], "plural": names[0].startswith("+")})
    (args.out / "things.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    print(f"{len(index)} things in {args.out}")


def things() -> list[tuple[str, list[str]]]:
    """(Unicode's name, the names used in captions) of every chosen thing."""
    pairs = (line.partition(" = ")[::2] for line in THINGS.strip().splitlines())
    return [(name, others.split(", ") if others else [name]) for name, others in pairs]


def read_sequences(path: Path) -> dict[str, str]:
    """Unicode's short name -> the text that draws it."""
    pattern = re.compile(r"^([0-9A-F ]+?) *; fully-qualified +# \S+ E[0-9.]+ (.+)$", re.MULTILINE)
    found = pattern.findall(path.read_text(encoding="utf-8"))
    return {name: "".join(chr(int(code, 16)) for code in codes.split()) for codes, name in found}


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One RGBA tile, cut to what is drawn."""
    tile = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(tile).text((10, 10), text, font=font, embedded_color=True)
    return tile.crop(tile.getbbox())


if __name__ == "__main__":
    main()
