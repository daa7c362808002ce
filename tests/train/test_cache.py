"""Encoded pictures and captions are kept on disk, and made again when what made them has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import InputError
from ldm.models.shapes import Family
from ldm.models.vae import VAE
from ldm.train.cache import load_pictures, pictures
from ldm.train.data import Composer, to_tensor


def test_pictures_are_encoded_once(family: Family, composer: Composer, tmp_path: Path) -> None:
    vae, path, said = VAE(family.vae), tmp_path / "pictures.safetensors", []
    made = pictures(path, composer, vae, "float32", said.append)
    assert said
    again = pictures(path, composer, vae, "float32", lambda _: pytest.fail("encoded twice"))
    assert torch.equal(made.z, again.z)
    assert made.captions[0] == ""
    assert made.scale == pytest.approx(1 / float(load_pictures(tmp_path, vae.state_dict()).z.std()))
    for index in (0, 15):
        sample = composer.sample(index)
        assert made.captions[made.caption[index]] == sample.caption
        assert tuple(made.numbers[index].tolist()) == sample.numbers
        assert torch.allclose(made.z[index], vae.encode(to_tensor(np.stack([sample.image])))[0][0], atol=1e-2)


def test_other_weights_make_other_pictures(family: Family, composer: Composer, tmp_path: Path) -> None:
    path, said = tmp_path / "pictures.safetensors", []
    first = pictures(path, composer, VAE(family.vae), "float32", said.append)
    second = pictures(path, composer, VAE(family.vae), "float32", said.append)
    assert len(said) == 2
    assert not torch.equal(first.z, second.z)
    with pytest.raises(InputError, match="another VAE"):
        load_pictures(tmp_path, VAE(family.vae).state_dict())


def test_other_things_make_other_pictures(family: Family, composer: Composer, tmp_path: Path) -> None:
    vae, path, said = VAE(family.vae), tmp_path / "pictures.safetensors", []
    pictures(path, composer, vae, "float32", said.append)
    renamed = [replace(thing, names=("frog",)) for thing in composer.things]
    assert "frog" in " ".join(pictures(path, Composer(renamed, composer.data, composer.seed), vae, "float32", said.append).captions)
    assert len(said) == 2


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="towers"):
        load_pictures(tmp_path, {})
