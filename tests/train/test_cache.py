"""Encoded pictures and captions are kept on disk, and made again when what made them has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.checkpoint.writer import HASH
from ldm.errors import InputError, LdmError
from ldm.models.shapes import Family
from ldm.models.vae import VAE
from ldm.train.cache import load_pictures, pictures
from ldm.train.data import Composer, to_tensor

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
