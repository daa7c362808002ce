"""Row A1: mutants of small files, read by our reader and by the reference from memory that ends at a page nobody may touch.

    python -m scripts.faults.mutants [--count N] [--seed N]    # with the table of what they were refused for

A mutant is made from a seed in edits of its JSON's words, then of its bytes; block `b` of a seed number is the same on every machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ctypes import string_at
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import safetensors

from ldm.checkpoint.safetensors import BITS, Header, parse
from ldm.errors import FileError
from scripts.faults.malformed import MALFORMED
from tests.checkpoint.builders import entry, raw

BLOCK = 1000  # mutants made from one state of the random numbers
ROOM = 2**16  # bytes before the guard page: mutants are cut to them
WORKERS = 2
ENOUGH = 20  # crashes of a worker, after which the rest of its blocks is left
STAMP = (0, 0, 0, 0)
Reader = Callable[..., Header]  # as `parse`

REVIEWED = {
    r"duplicate (name|key) ": "the reference takes the last of two: two readers would see two models, and the format forbids it",
    r"duplicate field '(?!dtype|shape|data_offsets)": "as an unknown field, which it is too",
    r"unknown field ": "the reference passes over what it does not know: nobody writes it, and a typing error would pass with it",
    r"tensor .*: is a list, not an object": "the reference's parser takes an object's fields without their names, the format has names",
    r"unknown dtype an object": "the reference's parser takes {'F32': null} for 'F32', the format has a string",
    r"the header begins with white space": "the format says that it begins with a brace",
    r"__metadata__ is null": "the format says that it is an object",
    r"a tensor without a name": "no module has such a name",
    r"the name has a control character": "a name is printed and compared, and ends up in other people's logs",
    r"the name has [\d,]+ bytes": "at most 512 bytes, as in the list of what a robust reader refuses",
    r"the shape has [\d,]+ dimensions": "at most 8, likewise",
    r"dimension \d+ is above 2\^48": "at most 2^48, likewise: sums of products stay far from 2^63",
    r"the dimensions .* overflow": "the reference refuses [2^48, 2^48, 0] and takes [0, 2^48, 2^48]; torch can make neither",
    r"shape\[\d+\] is 1\d{19}, not an integer": "from 2^63 to 2^64 beside a zero: above 2^48 in any case",
}  # the sentence of a refusal where the reference accepts: why we are stricter

WORDS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[ \t\r\n]+|.', re.DOTALL)
PLAIN = b"""-0 0.0 1e3 2E0 2.0 -1 1e-2 1e400 NaN Infinity -Infinity 00 +1 0x2 1_0 true null {} [] [2] "2" 0 2,1 1,2 2147483648 4294967296
    281474976710656 281474976710657 0,281474976710656,281474976710656 9223372036854775807 9223372036854775808 18446744073709551615
    18446744073709551616 1,1,1,1,1,1,1,1"""
NUMBERS = [*PLAIN.split(), b"1" * 5000, b" 2", b"2 3"]
NAMES = ("", "a", "b", "dtype", "shape", "data_offsets", "__metadata__", "a\0b", "a\nb", "n" * 513, "\x9b")
STRINGS = [
    *(json.dumps(text).encode() for text in NAMES),
    *(f'"{dtype}"'.encode() for dtype in (*BITS, "F33", "f32", "Bool", "BF16 ", "é")),
    *(rb'"\ud800"', rb'"\udc00\ud800"', rb'"\ud83d\ude00"', rb'"\u0061"', rb'"\u0000"', rb'"\x41"', '"ключ"'.encode(), b'"\xff"', b'"\t"'),
    *(b"'a'", b"null", b"1", b"[]", b'{"F32":null}', b'"a', b'"k":"v","k"'),
]
MEMBERS = (
    b'"x":1',
    b'"x":[{"a":1,"a":2.5}]',
    b'"__metadata__":{}',
    b'"__metadata__":{"k":"v","l":"\\"{[,"}',
    b'"__metadata__":null',
    b'"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
    b'"y":{"data_offsets":[0,0],"dtype":"I64","shape":[3,0,5]}',
    b'"w":["F16",[0],[0,0]]',
    b'"v":{"dtype":"U8","shape":[1,1,1,1,1,1,1,0],"data_offsets":[0,0]}',
)
SPACES = (b" ", b"\n", b"\t\r\n  ", b"   " * 9, b"\0", b"\xef\xbb\xbf", b"\x0b", b"\xc2\xa0", b"//\n")
SAME_WIDTH = {f'"{a}"'.encode(): [f'"{b}"'.encode() for b in BITS if BITS[b] == BITS[a]] for a in BITS}


@dataclass
class Seed:
    """A file in words; an edit replaces words in place, so that the places of the others stay."""

    words: list[bytes]
    data: bytes
    numbers: list[int] = field(default_factory=list)
    strings: list[int] = field(default_factory=list)
    dtypes: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    members: list[tuple[int, int]] = field(default_factory=list)  # "key": value, from and to
    siblings: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)  # members of one object


def seed_of(content: bytes) -> Seed:
    length = int.from_bytes(content[:8], "little")
    seed = Seed(WORDS.findall(content[8 : 8 + length]), content[8 + length :])
    for at, word in enumerate(seed.words):
        if word[:1].isdigit() or (word[:1] == b"-" and len(word) > 1):
            seed.numbers.append(at)
        elif word[:1] == b'"':
            seed.strings.append(at)
            seed.dtypes += [at] * (word in SAME_WIDTH)
        elif not word.isspace():
            seed.marks.append(at)
    for members in _members(seed.words):
        seed.members += members
        seed.siblings += [(one, other) for one in members for other in members if one < other]
    return seed


def _members(words: list[bytes]) -> list[list[tuple[int, int]]]:
    """Where each `"key": value` begins and ends, object by object."""
    opened, ends = [-1], {}
    keys: dict[int, list[int]] = {}
    for at, word in enumerate(words):
        if word in (b"{", b"["):
            opened.append(at)
        elif word in (b"}", b"]") and len(opened) > 1:
            ends[opened.pop()] = at
        elif word == b":" and at:
            keys.setdefault(opened[-1], []).append(at - 1)
    return [[(key, 1 + ends.get(value, value)) for key in places if (value := _next(words, key + 2))] for places in keys.values()]


def _next(words: list[bytes], at: int) -> int:
    """The next word that is no space; 0: there is none."""
    return next((place for place in range(at, len(words)) if not words[place].isspace()), 0)


def corpus() -> list[Seed]:
    """Valid files of many forms, six times each against the broken ones that the reader's table has."""
    two = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [1, 2], 8, 12)}
    mixed = {
        "late": entry("F32", [2], 3, 11),
        "__metadata__": {"modelspec.title": 't \\ " é 鍵 \U0001f600', "n": "1"},
        "early": entry("U8", [3], 0, 3),
        "none": entry("F16", [0, 7], 11, 11),
        "scalar": entry("F16", [], 11, 13),
        "ключ 鍵": entry("I64", [1], 13, 21),
    }
    narrow = {"four": entry("F4", [2, 3], 0, 3), "six": entry("F6_E2M3", [4], 3, 6), "c": entry("C64", [1, 1], 6, 14)}
    block = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2"
    many = {f"{block}.to_{i}.weight": entry("F16", [3, 2], 12 * i, 12 * i + 12) for i in range(4)}
    rank = {"r": entry("F32", [1, 2, 1, 1, 3, 1, 1, 1], 0, 24), "e": entry("F64", [5, 0, 2**40], 24, 24)}
    valid = [
        *(raw(b"{}"), raw({"__metadata__": {"k": "v", "l": ""}}), raw({"a": two["a"]}, bytes(range(8)))),
        *(raw({**two, "__metadata__": {"k": "v"}}, bytes(range(12))), raw(json.dumps(two, indent=1).encode() + b"  ", bytes(range(12)))),
        *(raw(mixed, bytes(range(21))), raw(json.dumps(mixed, ensure_ascii=False).encode(), bytes(range(21)))),
        *(raw(narrow, bytes(range(14))), raw(many, bytes(range(48))), raw(rank, bytes(range(24)))),
    ]
    broken = [content for content, _, code in MALFORMED.values() if code != "E3002" and 16 < len(content) < 600]
    return [seed_of(content) for content in valid * (6 * len(broken) // len(valid)) + broken]


Draw = Callable[[], float]  # a number from 0 to 1


def _number_odd(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[_pick(seed.numbers, draw)] = _pick(NUMBERS, draw)


def _number_nudged(words: list[bytes], seed: Seed, draw: Draw) -> None:
    at = _pick(seed.numbers, draw)
    step = (1, -1, 4, 8, -4, 0)[int(6 * draw())]
    words[at] = b"%d" % (int(words[at]) + step) if len(words[at]) < 19 and words[at].isdigit() else b"%d" % int(40 * draw())


def _numbers_swapped(words: list[bytes], seed: Seed, draw: Draw) -> None:
    first = int(len(seed.numbers) * draw())
    one, other = seed.numbers[first], seed.numbers[min(first + 1 + int(2 * draw()), len(seed.numbers) - 1)]
    words[one], words[other] = words[other], words[one]


def _dimension_added(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[_pick(seed.numbers, draw)] += (b",1", b", 1 ,1", b",0")[int(3 * draw())]


def _string_other(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[_pick(seed.strings, draw)] = _pick(STRINGS, draw)


def _string_renamed(words: list[bytes], seed: Seed, draw: Draw) -> None:
    at = _pick(seed.strings, draw)
    words[at] = b'"%c%b' % (b"abcxyz_."[int(8 * draw())], words[at][1:])


def _string_escaped(words: list[bytes], seed: Seed, draw: Draw) -> None:
    """One letter as an escape: the same string."""
    at = _pick(seed.strings, draw)
    word = words[at]
    place = 1 + int((len(word) - 2) * draw())
    if word[place : place + 1].isalnum() and b"\\" not in word and b"{" not in word:
        words[at] = b"%b\\u%04x%b" % (word[:place], word[place], word[place + 1 :])


def _strings_swapped(words: list[bytes], seed: Seed, draw: Draw) -> None:
    one, other = _pick(seed.strings, draw), _pick(seed.strings, draw)
    words[one], words[other] = words[other], words[one]


def _dtype_of_the_same_width(words: list[bytes], seed: Seed, draw: Draw) -> None:
    at = _pick(seed.dtypes, draw)
    words[at] = _pick(SAME_WIDTH.get(words[at]) or STRINGS, draw)


def _member_doubled(words: list[bytes], seed: Seed, draw: Draw) -> None:
    first, last = _pick(seed.members, draw)
    words[last - 1] += b"," + b"".join(words[first:last])


def _member_gone(words: list[bytes], seed: Seed, draw: Draw) -> None:
    first, last = _pick(seed.members, draw)
    words[first:last] = [b""] * (last - first)
    words[last] = words[last].removeprefix(b",")


def _member_added(words: list[bytes], seed: Seed, draw: Draw) -> None:
    first, _ = _pick(seed.members, draw)
    words[first] = _pick(MEMBERS, draw) + b"," + words[first]


def _members_swapped(words: list[bytes], seed: Seed, draw: Draw) -> None:
    (a, b), (c, d) = _pick(seed.siblings, draw)
    one, other = b"".join(words[a:b]), b"".join(words[c:d])
    words[a:b] = [other, *[b""] * (b - a - 1)]
    words[c:d] = [one, *[b""] * (d - c - 1)]


def _values_swapped(words: list[bytes], seed: Seed, draw: Draw) -> None:
    (a, b), (c, d) = _pick(seed.siblings, draw)
    words[a], words[c] = words[c], words[a]
    if draw() < 0.3:
        words[b - 1], words[d - 1] = words[d - 1], words[b - 1]


def _mark_other(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[_pick(seed.marks, draw)] = (b"{", b"}", b"[", b"]", b",", b":", b"", b",,", b"[[", b"{}")[int(10 * draw())]


def _spaced(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[_pick(seed.marks, draw)] += SPACES[int(4 * draw())] if draw() < 0.8 else _pick(SPACES, draw)


def _space_first(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[0] = _pick(SPACES, draw) + words[0]


def _space_last(words: list[bytes], seed: Seed, draw: Draw) -> None:
    words[-1] += _pick(SPACES, draw)


def _pick(choices: Any, draw: Draw) -> Any:
    return choices[int(len(choices) * draw())]


EDITS = [
    *[_number_odd, _number_nudged, _numbers_swapped, _string_other, _string_escaped, _dtype_of_the_same_width] * 2,
    *[_member_doubled, _member_gone, _member_added, _mark_other, _space_first, _strings_swapped, _dimension_added],
    *[_spaced, _members_swapped, _space_last, _string_renamed, _values_swapped] * 2,
]
STRUCTURAL = b'"{}[]:,0123456789-+.eE\\u \n\t\0\x7f\x80\xff'


def bytes_edited(content: bytearray, other: bytes, draw: Draw) -> None:
    """One edit below the words: a bit, a byte, a cut, something put in, a splice with another mutant, the length."""
    what, at = int(9 * draw()), int(len(content) * draw())
    if what == 0 and content:
        content[at] ^= 1 << int(8 * draw())
    elif what == 1 and content:
        content[at] = _pick(STRUCTURAL, draw)
    elif what == 2:
        del content[at:]
    elif what == 3:
        del content[at : at + 1 + int(12 * draw())]
    elif what == 4:
        content[at:at] = bytes((_pick(STRUCTURAL, draw),)) * (1 + int(3 * draw()))
    elif what == 5:
        content[at:] = other[int(len(other) * draw()) :]
    elif what == 6:
        length = int.from_bytes(content[:8], "little") + (1, -1, 8, -8, 256, 2**32, 2**63, -(2**20))[int(8 * draw())]
        content[:8] = (length % 2**64).to_bytes(8, "little")
    elif what == 7:
        content += content[at:] if draw() < 0.5 else bytes(1 + int(8 * draw()))
    elif len(content) > 8:  # the data's end
        content[-1 - int(min(12, len(content) - 8) * draw())] ^= 0xFF


def block(number: int, seed: int, seeds: list[Seed]) -> Iterator[bytes]:
    """The mutants of one block."""
    draw = Random(f"{seed}/{number}").random
    before = b""
    for _ in range(BLOCK):
        mutant = bytearray(mutated(_pick(seeds, draw), draw))
        for _ in range((0, 0, 0, 0, 0, 0, 1, 1, 2, 3)[int(10 * draw())]):
            bytes_edited(mutant, before, draw)
        before = bytes(mutant[:ROOM])
        yield before


def mutated(seed: Seed, draw: Draw) -> bytes:
    """A file after one to three edits of its words, with the length that it then has."""
    words = seed.words.copy()
    for _ in range(1 + int(3 * draw() * draw())):
        try:
            EDITS[int(len(EDITS) * draw())](words, seed, draw)
        except IndexError:  # a seed without such words
            continue
    text = b"".join(words)
    return len(text).to_bytes(8, "little") + text + seed.data


class Guarded:
    """Memory whose last byte is followed by a page that kills the process that touches it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, ROOM + mmap.PAGESIZE)
        self.end = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + ROOM
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self.end), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")

    def put(self, content: bytes) -> int:
        """The address of the content, which ends at the guard page."""
        ctypes.memmove(self.end - len(content), content, len(content))
        return self.end - len(content)


SENTENCE = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d[\d,.eE+]*|\(.*?\)|: (?:the known|the file|download).*""")
PATH = Path("mutant")


def examine(content: bytes, place: Guarded, reader: Reader) -> str:
    """What both readers make of a file: one of CLASSES, and more on it after a colon."""
    address = place.put(content)
    try:
        tensors = reader(PATH, lambda count, offset: string_at(address + offset, count), len(content), STAMP).tensors
        ours = {name: (dtype, shape, string_at(address + start, end - start)) for name, (dtype, shape, start, end) in tensors.items()}
    except FileError as error:
        refusal = str(error).removeprefix("mutant: ")
    except Exception as error:
        return f"crashes: {type(error).__name__}: {error}"
    else:
        refusal = ""
    try:
        theirs = {name: (each["dtype"], tuple(each["shape"]), each["data"]) for name, each in safetensors.deserialize(content)}
    except safetensors.SafetensorError as error:
        return f"refused by both: {SENTENCE.sub('..', refusal)}" if refusal else f"accepted by us alone: {error}"
    if not refusal:
        return "accepted by both" if ours == theirs else f"read differently: {ours} {theirs}"[:300]
    reason = next((reason for reason in REVIEWED if re.search(reason, refusal)), None)
    return f"refused by us alone: {reason}" if reason else f"not reviewed: {refusal}"


def work(reader: Reader, seed: int, blocks: range, skipped: frozenset[int], at: Any, out: Connection) -> None:
    """Examine the mutants of the blocks but the skipped ones; `at` is always the one under examination."""
    seeds, place = corpus(), Guarded()
    for number in blocks:
        found: Counter[str] = Counter()
        for index, content in enumerate(block(number, seed, seeds), number * BLOCK):
            at.value = index
            if index not in skipped:
                found[examine(content, place, reader)] += 1
        out.send((number, found))
    out.close()


def examine_all(count: int, seed: int = 0, reader: Reader = parse) -> Counter[str]:
    """What comes of `count` mutants (whole blocks), in two processes; one that dies is a crash and starts again without the mutant."""
    total = max(1, count // BLOCK)
    found: Counter[str] = Counter()
    todo = [_Share(reader, seed, range(first, total, WORKERS)) for first in range(WORKERS)]
    while todo:
        share = todo.pop(0)
        todo += [share] if share.collect(found) else []
    return found


class _Share:
    """The blocks of one worker and the process that examines them."""

    def __init__(self, reader: Reader, seed: int, blocks: range) -> None:
        self.reader, self.seed, self.blocks = reader, seed, blocks
        self.skipped: frozenset[int] = frozenset()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.results, out = context.Pipe(duplex=False)
        self.at = context.RawValue("q", -1)
        words = (self.reader, self.seed, self.blocks, self.skipped, self.at, out)
        self.process = context.Process(target=work, args=words, daemon=True)
        self.process.start()
        out.close()

    def collect(self, found: Counter[str]) -> bool:
        """Add what the process found; whether it died and goes on with what is left."""
        try:
            while True:
                number, counts = self.results.recv()
                found += counts
                self.blocks = range(number + WORKERS, self.blocks.stop, WORKERS)
        except EOFError:
            self.process.join()
        if not self.blocks:
            return False
        if self.at.value < 0:
            raise RuntimeError(f"a worker could not begin: exit code {self.process.exitcode}")
        found[f"crashes: exit code {self.process.exitcode} at mutant {self.at.value}"] += 1
        self.skipped |= {self.at.value}
        if len(self.skipped) == ENOUGH:
            return False
        self.start()
        return True


BAD = ("crashes", "accepted by us alone", "read differently", "not reviewed")
CLASSES = (*BAD, "accepted by both", "refused by us alone", "refused by both")


def by_class(found: Counter[str]) -> dict[str, int]:
    """The counts of CLASSES; those of BAD must be 0."""
    counts = dict.fromkeys(CLASSES, 0)
    for outcome, count in found.items():
        counts[outcome.partition(":")[0]] += count
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutants of small files, read by our reader and by the reference.")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    found = examine_all(options.count, options.seed)
    total = found.total()
    for outcome, count in found.most_common():
        print(f"{count:>9,} {100 * count / total:6.2f} %  {outcome}")
    counts = by_class(found)
    print(f"{total:,} mutants against safetensors {safetensors.__version__} in {time.perf_counter() - start:.1f} s: {counts}")
    return int(any(counts[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
