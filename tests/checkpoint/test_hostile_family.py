"""Numbers of a family that a stranger wrote into a file: each is refused in a line before anything is built."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ldm
from ldm.checkpoint.identity import FAMILY_KEY
from ldm.checkpoint.writer import Item, head, ordered
from ldm.errors import InputError
from ldm.models.shapes import Family, load_family
from ldm.resources import names
from scripts import synthetic
from tests.models.tiny import tiny

Write = Callable[[str], Path]

SECONDS = 1.0
GOOGOL = 10**100  # far beyond 64 bits
MARK = "\x00mark"  # stands in the JSON where text that json.dumps would not write is put


def small() -> Family:
    family = tiny("sdxl-base")
    unet = replace(family.unet, transformer_depth=(0, 1, 1), middle_depth=1, num_res_blocks=1)
    towers = tuple(replace(tower, layers=2) for tower in family.towers)
    return replace(family, name="small", unet=unet, vae=replace(family.vae, num_res_blocks=1), towers=towers)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The small family's numbers with one of them replaced; numbers in the key are indices."""
    table: Any = json.loads(json.dumps(small().to_dict()))
    *way, last = (int(word) if word.isdigit() else word for word in key.split("."))
    at = table
    for word in way:
        at = at[word]
    at[last] = value
    return dict(table)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return ordered(Item(name, "F16", shape, b"") for part in synthetic.parts(small()) for name, shape in synthetic.file_shapes(part))


@pytest.fixture
def write(items: list[Item], tmp_path: Path) -> Write:
    """A file of zeros that takes no room, with this text as its family."""

    def written(text: str) -> Path:
        start = head(items, {FAMILY_KEY: text}, 8)
        path = tmp_path / "model.safetensors"
        path.write_bytes(start)
        os.truncate(path, len(start) + sum(2 * math.prod(item.shape) for item in items))
        return path

    return written


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module is built."""

    def built(_shape: object) -> None:
        raise AssertionError("built")

    for name in ("UNet", "VAE", "CLIPText"):
        monkeypatch.setattr(f"ldm.runtime.weights.{name}", built)


def refusal(path: Path) -> str:
    """What is said of the file: at once, short, in one line that a terminal can show."""
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        ldm.load(path, device="cpu")
    assert time.process_time() - began < SECONDS
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1000
    assert said.startswith(f"{path}: {FAMILY_KEY} in its metadata")
    return said


WRONG: dict[str, list[Any]] = {
    "name": ["", "a\nb", "x" * 101, 5, None, "\x1b[2J"],
    "title": ["", "\x1b[2J\nall is well", "x" * 10**6, "\u202eesrever", ["a"], {"a": []}],
    "prediction": ["x0", "v\n", 1, [], {}],
    "vae_dtype": ["float16", None],
    "numbers": [["foo"] * 3, ["original"] * 17, ["original"] * 10**5, "original", [[]], ["original", 3]],
    "size_embedding": [0, -8, 7, GOOGOL, 10**9, 8.0],
    "unet": [None, [], {}, "unet"],
    "unet.in_channels": [0, 9, -4, 10**9],
    "unet.out_channels": [0, 8, -4, 10**9],
    "unet.model_channels": [0, -16, 3, 7, 10**9, GOOGOL, True, "16"],
    "unet.channel_mult": [
        [],
        [0, 1, 2],
        [1, -2, 4],
        [1, 2, 4, 4],
        [1, 2],
        [1] * 17,
        [1] * 10**5,
        [1, 2, 10**9],
        [1, 2, 5000],
        [1, 2, GOOGOL],
        4,
    ],
    "unet.num_res_blocks": [0, -1, 1001, 10**9, GOOGOL, 1.0],
    "unet.transformer_depth": [[], [0, 10**6, 10], [0, -1, 1], [0, 1], [0, 1, GOOGOL], [0, 1, True]],
    "unet.middle_depth": [-1, 1001, 10**9, GOOGOL],
    "unet.head_dim": [0, -1, 3, 10**9, GOOGOL],
    "unet.num_heads": [-1, 3, 10**9, GOOGOL],
    "unet.context_dim": [0, -1, 47, 10**9, GOOGOL],
    "unet.vector_dim": [0, -1, 73, 10**9, GOOGOL],
    "unet.norm_groups": [0, -1, 3, 10**9, GOOGOL],
    "unet.linear_proj": [1, "yes", None],
    "vae.ch": [0, -16, 3, 10**9, GOOGOL],
    "vae.ch_mult": [[], [0], [1, -1], [1] * 5, [1] * 10**5, [1, 5000], [1, GOOGOL]],
    "vae.num_res_blocks": [0, -1, 65, 10**9, GOOGOL],
    "vae.z_channels": [0, -4, 3, 10**9, GOOGOL],
    "vae.norm_groups": [0, -1, 3, 10**9, GOOGOL],
    "vae.scale": [0, -1, 10**400, -(10**400), math.inf, -math.inf, math.nan, 1e-300, 1e300, True, "1"],
    "towers": [[], {}, [[]], [small().to_dict()["towers"][0]] * 17],
    "towers.0.layout": ["clip", None, [1]],
    "towers.0.prefix": ["", "\x1b[2J", "x" * 101],
    "towers.0.width": [0, -1, 15, 10**9, GOOGOL],
    "towers.0.layers": [0, -1, 10**9, GOOGOL],
    "towers.0.heads": [0, -1, 3, 10**9, GOOGOL],
    "towers.0.mlp": [0, -1, 10**9, GOOGOL],
    "towers.0.activation": ["relu", {"a": 1}],
    "towers.0.projection": [-1, 10**9, GOOGOL],
    "towers.1.projection": [0, 25],
    "towers.0.pad_token": [10**9, -5, 49408, GOOGOL],
    "towers.1.vocab": [0, -1, 100, 10**9, GOOGOL],
    "towers.1.length": [0, -1, 76, 10**9, GOOGOL],
    "defaults.width": [0, -8, 20, 8200, GOOGOL],
    "defaults.height": [0, -8, 20, 8200, 64.0],
    "defaults.sampler": ["", "no such", "\x1b[2J", "x" * 41, "euler\n", 3],
    "defaults.schedule": ["", "../karras", "x" * 41],
    "defaults.steps": [0, -1, 1001, GOOGOL],
    "defaults.cfg": [math.nan, math.inf, -1, 101, 10**400],
}
CASES = [pytest.param(key, value, id=f"{key}-{i}") for key, values in WRONG.items() for i, value in enumerate(values)]


def test_the_file_is_good_otherwise(write: Write) -> None:
    pipeline = ldm.load(write(json.dumps(small().to_dict())), device="cpu")
    assert pipeline.family == small()


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_wrong_number_is_refused(write: Write, key: str, value: Any) -> None:
    said = refusal(write(json.dumps(changed(key, value))))
    assert "family " in said and key.rpartition(".")[2] in said.lower()


@pytest.mark.usefixtures("unbuilt")
def test_the_value_is_named(write: Write) -> None:
    said = refusal(write(json.dumps(changed("unet.norm_groups", 3))))
    assert said.endswith("family 'small': UNetShape.norm_groups: 3 is not acceptable: expected a divisor of model_channels 16")
    said = refusal(write(json.dumps(changed("numbers", ["foo"] * 3))))
    assert said.endswith("Family.numbers: 'foo' is not acceptable: expected original or crop or target or aesthetic")
    assert r"'\x1b[2J'" in refusal(write(json.dumps(changed("title", "\x1b[2J"))))


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(
    ("key", "value"),
    [("unet.middle_depth", 1000), ("unet.transformer_depth", [0, 1000, 1000]), ("unet.num_res_blocks", 1000), ("towers.0.layers", 1000)],
)
def test_more_blocks_than_tensors(write: Write, key: str, value: Any) -> None:
    """In range each, and yet more than the file can fill."""
    assert "does not fit its tensors (" in refusal(write(json.dumps(changed(key, value))))


@pytest.mark.parametrize(("key", "value"), [("vae.num_res_blocks", 64), ("vae.z_channels", 65536)])
def test_the_largest_vae_is_refused_by_the_file(write: Write, key: str, value: int) -> None:
    """It may stand in another file, so that it is built, on the meta device, and then held against the tensors."""
    table = changed(key, value)
    if key == "vae.z_channels":
        table["unet"] |= {"in_channels": value, "out_channels": value}
    began = time.process_time()
    with pytest.raises(InputError, match=r"do(es)? not fit"):
        ldm.load(write(json.dumps(table)), device="cpu")
    assert time.process_time() - began < 2 * SECONDS


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(
    "literal", ["9" * 5000, "-" + "9" * 4000, "1e999", "-Infinity", "NaN", "[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900]
)
@pytest.mark.parametrize("key", ["unet.norm_groups", "vae.scale", "title", "towers", "unet"])
def test_json_at_its_limits(write: Write, key: str, literal: str) -> None:
    refusal(write(json.dumps(changed(key, MARK)).replace(json.dumps(MARK), literal)))


@pytest.mark.usefixtures("unbuilt")
def test_strange_keys(write: Write) -> None:
    for key in ("\x1b[2J\n", "x" * 10**6, "\ud800"):
        assert "unknown key" in refusal(write(json.dumps(changed(key, 1))))


def test_an_unknown_sampler_is_refused_when_it_is_used(write: Write) -> None:
    """The samplers are a matter of a higher floor, and another one may be asked for."""
    pipeline = ldm.load(write(json.dumps(changed("defaults.sampler", "nope"))), device="cpu")
    with pytest.raises(InputError, match="nope"):
        pipeline.generate("a", width=64, height=64)


def leaves(table: Any, way: str = "") -> Iterator[str]:
    """The way to every value that is no table."""
    pairs = table.items() if isinstance(table, dict) else enumerate(table) if isinstance(table, list) else ()
    if not pairs:
        yield way
    for key, value in pairs:
        yield from leaves(value, f"{way}.{key}" if way else str(key))


INTEGERS = (-1, 0, 1, 2, 3, 4, 8, 16, 24, 32, 48, 65_536, 65_537, 10**9, GOOGOL)


@pytest.mark.parametrize("key", [key for key in leaves(json.loads(json.dumps(small().to_dict()))) if key])
def test_what_is_accepted_can_be_built(key: str) -> None:
    """Every number in turn: an InputError, or modules."""
    for value in INTEGERS:
        try:
            family = Family.from_dict(changed(key, value))
        except InputError:
            continue
        assert synthetic.parts(family)


def test_every_family_in_use_is_accepted() -> None:
    families = [load_family(name) for name in names("models")]
    families += [make(name) for make in (synthetic.tiny, tiny) for name in ("sdxl-base", "sdxl-refiner")]
    for family in families:
        assert Family.from_dict(json.loads(json.dumps(family.to_dict()))) == family
