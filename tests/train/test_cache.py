"""Encoded pictures and captions are kept on disk, also those of a run that was stopped, and made again when what made them has changed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoint.writer import HASH
from ldm.errors import InputError, LdmError
from ldm.models.shapes import Family
from ldm.models.vae import VAE
from ldm.train import prepared
from ldm.train.cache import load_pictures, pictures
from ldm.train.data import Composer, to_tensor
from ldm.train.prepared import Prepared, prepare
from ldm.train.recipe import PicturesRecipe
from ldm.train.sealed import read_note, seal, unseal
from ldm.train.sources import collect

BEGUN = "encoding pictures: 0/16"


def test_pictures_are_encoded_once(family: Family, composer: Composer, tmp_path: Path) -> None:
    vae, path, said = VAE(family.vae), tmp_path / "pictures.safetensors", list[str]()
    made = pictures(path, composer, vae, "float32", 0, said.append)
    assert said
    again = pictures(path, composer, vae, "float32", 0, lambda _: pytest.fail("encoded twice"))
    assert all(torch.equal(one, other) for one, other in zip(made.z, again.z, strict=True))
    values = torch.cat([each.flatten() for each in load_pictures(tmp_path, vae.state_dict()).z])
    assert made.scale == pytest.approx(1 / float(values.float().std()))
    for index in (0, 15):
        sample = composer.sample(index)
        assert made.captions[index] == sample.caption
        assert tuple(made.numbers[index].tolist()) == sample.numbers
        assert torch.allclose(made.z[index].float(), vae.encode(to_tensor(np.stack([sample.image])))[0][0], atol=1e-2)


def test_other_weights_make_other_pictures(family: Family, composer: Composer, tmp_path: Path) -> None:
    path, said = tmp_path / "pictures.safetensors", list[str]()
    first = pictures(path, composer, VAE(family.vae), "float32", 0, said.append)
    second = pictures(path, composer, VAE(family.vae), "float32", 0, said.append)
    assert said.count(BEGUN) == 2
    assert not torch.equal(first.z[0], second.z[0])
    with pytest.raises(InputError, match="another VAE"):
        load_pictures(tmp_path, VAE(family.vae).state_dict())


def test_other_things_make_other_pictures(family: Family, composer: Composer, tmp_path: Path) -> None:
    vae, path, said = VAE(family.vae), tmp_path / "pictures.safetensors", list[str]()
    pictures(path, composer, vae, "float32", 0, said.append)
    renamed = [replace(thing, names=("frog",)) for thing in composer.things]
    assert "frog" in " ".join(pictures(path, Composer(renamed, composer.data, composer.seed), vae, "float32", 0, said.append).captions)
    assert said.count(BEGUN) == 2


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="towers"):
        load_pictures(tmp_path, {})


@pytest.mark.parametrize("damage", ["cut", "changed", "a caption", "without a hash"])
def test_damaged_pictures_are_made_again_and_never_read(family: Family, composer: Composer, tmp_path: Path, damage: str) -> None:
    vae, path, said = VAE(family.vae), tmp_path / "pictures.safetensors", list[str]()
    first = pictures(path, composer, vae, "float32", 0, said.append)
    data = path.read_bytes()
    at = data.index(composer.sample(3).caption.encode())
    damaged = {
        "cut": data[:-9],
        "changed": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "a caption": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        "without a hash": data.replace(HASH.encode(), HASH.encode()[::-1]),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError, match="is damaged"):
        load_pictures(tmp_path, vae.state_dict())
    again = pictures(path, composer, vae, "float32", 0, said.append)
    assert said.count(BEGUN) == 2 and all(torch.equal(one, other) for one, other in zip(first.z, again.z, strict=True))


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_encoded(family: Family, composer: Composer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LdmError, match=r"cannot write .*file.pictures\.safetensors: File exists: make room, or give") as caught:
        pictures(tmp_path / "file" / "pictures.safetensors", composer, VAE(family.vae), "float32", 0, lambda _: pytest.fail("encoded"))
    assert caught.value.code == "E5001"


FOUR = ["0.png", "1.png", "2.png", "3.png"]
Encoding = tuple[Callable[..., Prepared], list[int], list[str]]


@pytest.fixture
def encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoding:
    """A preparation of four pictures and one that is broken, the numbers of those that it encodes, and its lines."""
    (tmp_path / "in").mkdir()
    for k, name in enumerate(FOUR):
        Image.new("RGB", (24, 16), (k, 0, 0)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").touch()
    encoded, lines, vae = list[int](), list[str](), SimpleNamespace(state_dict=dict, shape=SimpleNamespace(scale=1.0))

    def latent(_vae: object, picture: Image.Image) -> torch.Tensor:
        number = picture.getpixel((0, 0))
        assert isinstance(number, tuple)
        encoded.append(int(number[0]))
        return torch.full((4, 2, 3), float(number[0]))

    def made(*, late: Callable[[], bool] = lambda: False, size: int = 64) -> Prepared:
        recipe: Any = PicturesRecipe(size, 16)
        return prepare(tmp_path / "run", collect(tmp_path / "in"), vae, recipe, 1, lines.append, late=late)  # type: ignore[arg-type]

    monkeypatch.setattr(prepared, "_latent", latent)
    return made, encoded, lines


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop() -> bool:
    raise KeyboardInterrupt("the user's")


WHOLE = ["latents.json", "latents.safetensors"]


def test_a_full_disk_does_not_hide_that_a_run_was_stopped(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    made, encoded, lines = encoding

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ldm.train.sealed.write_atomic", full)
    with pytest.raises(KeyboardInterrupt, match="the user's"):
        made(late=lambda: len(encoded) > 2 and stop())
    assert "No space left on device: make room" in lines[-1] and not any("kept in" in line for line in lines)


def test_a_stop_while_latents_are_written_loses_none(encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, encoded, lines = encoding

    def sealing(record: Path, *given: Any) -> list[Path]:
        if record.name == "latents.json":
            stop()
        return seal(record, *given)

    monkeypatch.setattr(prepared, "seal", sealing)
    with pytest.raises(KeyboardInterrupt):
        made()
    assert lines[-1].endswith(": 4")
    monkeypatch.undo()
    assert [float(z[0, 0, 0]) for z in made().z] == [0.0, 1.0, 2.0, 3.0]
    assert encoded == [0, 1, 2, 3] and kept(tmp_path / "run") == WHOLE


def test_a_kill_loses_the_last_minutes_alone(encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is new is written every two minutes, here each time a picture is encoded; nothing that was written is written again."""
    made, encoded, _ = encoding
    monkeypatch.setattr(prepared, "PAUSE", 0.0)

    def killed() -> bool:
        if len(encoded) < 3:
            return False
        monkeypatch.setattr(prepared.Latents, "store", lambda _: None)  # nothing is written any more
        return stop()

    with pytest.raises(KeyboardInterrupt):
        made(late=killed)
    assert kept(tmp_path / "run") == sorted(f"begun-{k:08}.{kind}" for k in range(3) for kind in ("json", "safetensors"))
    for k in range(3):
        found = unseal(tmp_path / "run" / f"begun-{k:08}.json")
        assert found is not None and list(found[1]) == [str(k)]
    (tmp_path / "run" / "begun-00000001.safetensors").write_bytes(b"damaged")
    monkeypatch.undo()
    monkeypatch.setattr(prepared, "_latent", lambda *_: torch.full((4, 2, 3), 9.0))
    assert [float(z[0, 0, 0]) for z in made().z] == [0.0, 9.0, 2.0, 9.0]
    assert kept(tmp_path / "run") == WHOLE


def test_beside_whole_latents_what_was_begun_is_removed_unread_and_nothing_else(
    encoding: Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, _ = encoding
    made()
    source = read_note(tmp_path / "run" / "latents.json")
    assert source is not None
    own = ["begun-notes.json", "begun.notes.txt", "begun-2.safetensors"]  # no record of ours names them
    for name in own:
        (tmp_path / "run" / name).write_text("mine")
    for k in range(2):
        seal(tmp_path / "run" / f"begun-{k:08}.json", {"0": torch.zeros(4), "1": torch.zeros(4)}, {"source": source["source"]}, shard=k + 1)
    monkeypatch.setattr(prepared.Latents, "kept", lambda _: pytest.fail("read"))
    made()
    assert kept(tmp_path / "run") == sorted([*own, *WHOLE])


def test_pictures_are_counted_as_they_are_done(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, lines = encoding
    monkeypatch.setattr("ldm.train.watching.SECONDS", 0.0)
    made()
    assert [line for line in lines if line.startswith("encoding")] == [f"encoding pictures: {k}/5" for k in (0, 0, 1, 2, 3, 4, 5)]
