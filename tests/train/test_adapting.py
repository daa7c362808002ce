"""LoRA while it is learned is the LoRA of the file: the same prediction merged as beside the layers, and gradients of the thin matrices."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import ldm
from ldm.checkpoint.lora import lora_items, merge, read_lora
from ldm.checkpoint.writer import save
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.models.unet import UNet
from ldm.pipeline import Pipeline
from ldm.train.adapting import adapt, first_values, gathered, pairs
from ldm.train.recipe import LoraRecipe


@pytest.fixture(scope="module")
def box() -> Pipeline:
    return ldm.load(device="cpu", dtype="float32")


@pytest.fixture
def networks(box: Pipeline) -> tuple[UNet, list[torch.nn.Module]]:
    return copy.deepcopy(box.unet), [copy.deepcopy(tower) for tower in box.towers]


def predict(unet: UNet, width: int, numbers: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    x, context = torch.randn(2, 4, 16, 16, generator=random), torch.randn(2, 77, width, generator=random)
    return unet.denoise(x, torch.tensor([100.0, 700.0]), context, torch.randn(2, numbers, generator=random))


def test_it_begins_as_the_model_itself(networks: tuple[UNet, list[torch.nn.Module]]) -> None:
    unet, towers = networks
    shape = unet.shape.context_dim, unet.shape.vector_dim
    before = predict(unet, *shape)
    made = adapt(unet, towers, LoraRecipe(4, 4.0, ("transformer", "convolution", "towers")))
    assert relative_error(predict(unet, *shape), before) < 2e-6  # with gradients convolutions are summed in another order
    learned = gathered(made)
    assert all(value.requires_grad for value in learned.parameters())
    assert not any(value.requires_grad for name, value in unet.named_parameters() if "lora_" not in name)


@pytest.mark.parametrize("targets", [("transformer",), ("transformer", "convolution", "towers")])
def test_merged_from_the_file_it_predicts_the_same(
    networks: tuple[UNet, list[torch.nn.Module]], box: Pipeline, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    unet, towers = networks
    shape = unet.shape.context_dim, unet.shape.vector_dim
    made = adapt(unet, towers, LoraRecipe(4, 2.0, targets))  # type: ignore[arg-type]
    first_values(made, 7)
    with torch.no_grad():
        for each in made.values():
            each.lora_up.get_parameter("weight").normal_(std=0.02)
    beside = predict(unet, *shape)
    file = save(tmp_path / "x.safetensors", lora_items(pairs(made, gathered(made).state_dict()), torch.float32))
    again = copy.deepcopy(box.unet)
    merge(read_lora(file), again, [copy.deepcopy(tower) for tower in box.towers])
    merged = predict(again, *shape)
    assert (beside - merged).norm() / merged.norm() < 2e-6
    assert (merged - predict(box.unet, *shape)).norm() / merged.norm() > 1e-3
    assert len(made) == len(read_lora(file)) > 20


def test_gradients_reach_every_thin_matrix_and_nothing_else(networks: tuple[UNet, list[torch.nn.Module]]) -> None:
    unet, towers = networks
    made = adapt(unet, towers, LoraRecipe(2, 2.0, ("transformer", "convolution")))
    predict(unet, unet.shape.context_dim, unet.shape.vector_dim).square().mean().backward()
    assert all(each.lora_up.get_parameter("weight").grad.abs().max() > 0 for each in made.values())  # type: ignore[union-attr]
    assert all(value.grad is None for name, value in unet.named_parameters() if "lora_" not in name)


def test_first_values_are_of_the_seed(networks: tuple[UNet, list[torch.nn.Module]]) -> None:
    made = adapt(*networks, LoraRecipe(2, 2.0))
    first_values(made, 1)
    one = {name: value.clone() for name, value in gathered(made).state_dict().items()}
    first_values(made, 2)
    assert not any(torch.equal(one[name], value) for name, value in gathered(made).state_dict().items() if "lora_down" in name)
    first_values(made, 1)
    assert all(torch.equal(one[name], value) for name, value in gathered(made).state_dict().items())
    assert all((one[name] == 0).all() for name in one if "lora_up" in name)


def test_a_recipe_out_of_range_is_refused() -> None:
    for given, message in (((0, 1.0), "rank"), ((4, 0.0), "alpha"), ((4, 1.0, ()), "targets")):
        with pytest.raises(InputError, match=message):
            LoraRecipe(*given)  # type: ignore[arg-type]


def test_convolutions_are_those_that_sd_scripts_adapts(networks: tuple[UNet, list[torch.nn.Module]]) -> None:
    """Of residual blocks and of the steps between resolutions; neither the first and the last one nor the embeddings of time and size."""
    unet, _ = networks
    made = adapt(unet, [], LoraRecipe(2, 2.0, ("convolution",)))
    places = {name.removeprefix("lora_unet_") for name in made}
    assert not any(name.startswith(("input_blocks_0_", "out_2", "time_embed", "label_emb")) for name in places)
    endings = ("in_layers_2", "out_layers_3", "emb_layers_1", "skip_connection", "_op", "_conv")
    assert all(name.endswith(endings) for name in places)
    assert {ending for ending in endings for name in places if name.endswith(ending)} == set(endings)
