"""Renders the training set of the model in the box: the base emoji of the Noto Color Emoji font, as tiles with their names.

    python scripts/emoji.py OUT [--font NotoColorEmoji.ttf] [--names emoji-test.txt] [--keywords en.xml]

Base: fully qualified, without skin tones and flags. OUT gets one RGBA PNG a thing (at most 136x128) and `things.json`. Font: Debian
fonts-noto-color-emoji (font OFL-1.1, its pictures Apache-2.0); names: Unicode's emoji-test.txt, Debian unicode-data; synonyms: the
keywords of CLDR that belong to one thing alone, Debian unicode-cldr-core. The pictures the model sees are composed from these tiles
(ldm.train.scenes).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))

from ldm.commands.streams import answered
from ldm.errors import InputError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
KEYWORDS = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
PACKAGES = "the Debian packages fonts-noto-color-emoji unicode-data unicode-cldr-core"
SIZE = 109  # the one bitmap size of the font

# How often the things of a group are drawn; all others as often as 1. Much in these is alike: clocks, arrows, men and women with one trade.
WEIGHTS = {"Smileys & Emotion": 0.5, "People & Body": 0.35, "Symbols": 0.25}
# What people ask for first: under two hours on a CPU are too short for all things alike, and these are drawn so that each is learned.
EVERYDAY = """
red apple, green apple, pear, tangerine, lemon, banana, watermelon, grapes, strawberry, cherries, peach, pineapple, kiwi fruit, tomato,
avocado, eggplant, carrot, ear of corn, broccoli, mushroom, bread, croissant, cheese wedge, hamburger, french fries, pizza, hot dog, egg,
ice cream, doughnut, cookie, birthday cake, cupcake, teapot, hot beverage, wine glass, beer mug, dog, cat, dog face, cat face, lion,
tiger, fox, bear, panda, rabbit, pig, cow, frog, monkey, elephant, horse, unicorn, penguin, owl, duck, rooster, turtle, T-Rex, dolphin,
whale, fish, octopus, butterfly, lady beetle, snail, crab, sunflower, rose, tulip, cactus, evergreen tree, palm tree, deciduous tree, sun,
crescent moon, star, cloud, snowman, fire, droplet, rainbow, umbrella, house, castle, red heart, automobile, bus, bicycle, locomotive,
police car, tractor, sailboat, airplane, rocket, flying saucer, balloon, wrapped gift, trophy, soccer ball, basketball, guitar, violin,
drum, crown, top hat, sunglasses, t-shirt, gem stone, bell, light bulb, alarm clock, key, hammer, robot, ghost, jack-o-lantern, grinning
face, camera, chair
"""
OFTEN = 12.0  # more than half of what is drawn are these
# What people say for it where neither Unicode nor CLDR does.
SAID = {
    "automobile": "red car",
    "hot beverage": "cup of coffee",
    "beer mug": "mug of beer",
    "wine glass": "glass of wine",
    "tangerine": "orange fruit",
    "wrapped gift": "gift",
    "jack-o-lantern": "pumpkin lantern",
    "ear of corn": "corn cob",
    "crescent moon": "half moon",
    "flying saucer": "ufo",
    "gem stone": "diamond",
    "droplet": "drop of water",
    "fire": "flame",
}


@dataclass(frozen=True)
class Emoji:
    text: str
    name: str
    group: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--names", type=Path, default=NAMES)
    parser.add_argument("--keywords", type=Path, default=KEYWORDS)
    args = parser.parse_args()
    return answered(lambda: render_all(args))


def render_all(args: argparse.Namespace) -> None:
    """The tiles and things.json. Raises InputError where the font, the names or the keywords are not there, with nothing made."""
    for path in (args.font, args.names, args.keywords):
        if not path.is_file():
            raise InputError(f"{path}: no such file: install {PACKAGES}, or give --font, --names or --keywords")
    found, font, index = list(base(args.names)), ImageFont.truetype(str(args.font), SIZE), []
    others, seen = synonyms(args.keywords, found), set[bytes]()
    args.out.mkdir(parents=True, exist_ok=True)
    for emoji in found:
        tile = render(emoji.text, font)
        if tile.tobytes() in seen:
            continue  # the font draws some alike: one of them is enough
        seen.add(tile.tobytes())
        file = "-".join(f"{ord(each):x}" for each in emoji.text) + ".png"
        tile.save(args.out / file, optimize=True)
        names = [spoken(emoji.name), *others[emoji.text]]
        index.append({"file": file, "names": names, "plural": is_plural(names[0]), "weight": weight(emoji)})
    (args.out / "things.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    print(f"{len(index)} things in {args.out}")


def weight(emoji: Emoji) -> float:
    """How often it is drawn, beside the others."""
    return OFTEN if emoji.name in " ".join(EVERYDAY.split()).split(", ") else WEIGHTS.get(emoji.group, 1.0)


def base(path: Path) -> Iterator[Emoji]:
    """The fully qualified emoji without skin tones and flags, in Unicode's order."""
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        group = line.removeprefix("# group: ") if line.startswith("# group: ") else group
        entry = re.match(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[0-9.]+ (.+)$", line)
        if entry and group not in ("Flags", "Component") and not re.search("1F3F[B-F]", entry[1]):
            yield Emoji("".join(chr(int(code, 16)) for code in entry[1].split()), entry[2], group)


def synonyms(path: Path, found: list[Emoji]) -> dict[str, list[str]]:
    """Text -> the keywords that no other emoji has, at most three, and what people say."""
    known = {each.text.replace("\ufe0f", ""): each for each in found}
    words = {}
    for entry in ElementTree.parse(path).getroot().iter("annotation"):
        emoji = known.get(str(entry.get("cp")).replace("\ufe0f", ""))
        if emoji and entry.get("type") is None:
            words[emoji.text] = [word.strip() for word in str(entry.text).split("|")]
    counts = Counter(word for each in words.values() for word in each)
    names = {each.name for each in found}
    return {each.text: _own(each, [w for w in words.get(each.text, ()) if counts[w] == 1 and w not in names]) for each in found}


def _own(emoji: Emoji, words: list[str]) -> list[str]:
    usable = [word for word in words if re.fullmatch(r"[A-Za-z][A-Za-z -]{2,}", word)]
    return [*([SAID[emoji.name]] if emoji.name in SAID else []), *usable[:3]]


def spoken(name: str) -> str:
    """Unicode's name as one says it: "man: beard" is a man with beard."""
    return name.replace(": ", " with ").replace("\u201c", '"').replace("\u201d", '"')


def is_plural(name: str) -> bool:
    """ "grapes", "people holding hands": a name that takes no article."""
    head = re.split(r" (?:of|with|without|in|on|and|over|[a-z]+ing)\b", name)[0]
    if head in ("rhinoceros", "Aries", "Pisces"):
        return False
    return head in ("people", "men", "women") or re.search(r"[^sui]s$", head) is not None


def render(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One RGBA tile, cut to what is drawn."""
    tile = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(tile).text((10, 10), text, font=font, embedded_color=True)
    return tile.crop(tile.getbbox())


if __name__ == "__main__":
    sys.exit(main())
