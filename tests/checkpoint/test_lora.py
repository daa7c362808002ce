"""LoRA files: the product by hand, names of the official blocks, and refusals that leave the weights alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ldm
from ldm.checkpoint.lora import Pair, layers, lora_items, merge, read_lora
from ldm.checkpoint.writer import save, tensor_items
from ldm.errors import FileError
from ldm.pipeline import Pipeline

ATTENTION = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def pipeline() -> Pipeline:
    return ldm.load(device="cpu", dtype="float32")


def pairs_of(pipeline: Pipeline, names: list[str], rank: int = 4, alpha: float = 2.0) -> dict[str, Pair]:
    random, made = torch.Generator().manual_seed(1), {}
    for name in names:
        weight = layers(pipeline.unet, pipeline.towers)[name].weight
        ones = (1,) * (weight.ndim - 2)
        down = torch.randn(rank, *weight.shape[1:], generator=random)
        made[name] = Pair(down, torch.randn(weight.shape[0], rank, *ones, generator=random), alpha)
    return made


def names_of(pipeline: Pipeline) -> list[str]:
    return [
        *(name for name in layers(pipeline.unet, pipeline.towers) if name.endswith(("attn1_to_q", "ff_net_2", "0_in_layers_2"))),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_2_mlp_fc1",
    ]


def test_names_are_those_of_sd_scripts(pipeline: Pipeline) -> None:
    known = layers(pipeline.unet, pipeline.towers)
    assert len(known) == len({id(layer) for layer in known.values()})
    block = next(name for name, _ in pipeline.unet.named_modules() if name.endswith("transformer_blocks.0.attn1.to_q"))
    assert known["lora_unet_" + block.replace(".", "_")].weight is pipeline.unet.get_submodule(block).weight
    assert "lora_te2_text_model_encoder_layers_0_self_attn_out_proj" in known
    alone = layers(pipeline.unet, pipeline.towers[:1])
    assert "lora_te_text_model_encoder_layers_0_mlp_fc2" in alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_written_read_and_merged(pipeline: Pipeline, tmp_path: Path, dtype: torch.dtype) -> None:
    pairs = pairs_of(pipeline, names_of(pipeline))
    assert len(pairs) > 6
    file = save(tmp_path / "style.safetensors", lora_items(pairs, dtype))
    back = read_lora(file)
    assert back.keys() == pairs.keys()
    before = {name: layers(pipeline.unet, pipeline.towers)[name].weight.clone() for name in pairs}
    merge(back, pipeline.unet, pipeline.towers, 0.5)
    for name, pair in back.items():
        assert pair.alpha == 2.0 and pair.down.dtype == dtype
        expected = torch.einsum("or,ri->oi", pair.up.double().flatten(1), pair.down.double().flatten(1)) * (2.0 / 4) * 0.5
        moved = layers(pipeline.unet, pipeline.towers)[name].weight.double() - before[name].double()
        torch.testing.assert_close(moved.flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_without_alpha_the_scale_is_one(tmp_path: Path) -> None:
    down, up = torch.randn(3, 5), torch.randn(7, 3)
    state = {f"{ATTENTION}.lora_down.weight": down, f"{ATTENTION}.lora_up.weight": up}
    pair = read_lora(save(tmp_path / "x.safetensors", tensor_items(state)))[ATTENTION]
    torch.testing.assert_close(pair.delta(), up @ down)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"unet.x.lora_A.weight": torch.zeros(2, 2)}, "not of a LoRA in kohya's layout"),
        ({f"{ATTENTION}.lora_up.weight": torch.zeros(2, 2)}, "only lora_up.weight"),
        ({f"{ATTENTION}.lora_up.weight": torch.zeros(2, 3), f"{ATTENTION}.lora_down.weight": torch.zeros(2, 2)}, "do not make a product"),
        (
            {
                f"{ATTENTION}.lora_up.weight": torch.zeros(2, 2),
                f"{ATTENTION}.lora_down.weight": torch.zeros(2, 2),
                f"{ATTENTION}.alpha": torch.zeros(2),
            },
            "one number",
        ),
        ({f"{ATTENTION}.lora_up.weight": torch.zeros(2, 2, dtype=torch.int64)}, "dtype that is not read"),
        ({f"{ATTENTION}.lora_up.weight": torch.full((2, 2), torch.nan)}, "non-finite values in"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    file = save(tmp_path / "x.safetensors", tensor_items(state))
    with pytest.raises(FileError, match=message):
        read_lora(file)


def test_nothing_moves_where_a_layer_does_not_fit(pipeline: Pipeline) -> None:
    pairs = pairs_of(pipeline, names_of(pipeline))
    name = next(iter(pairs))
    before = layers(pipeline.unet, pipeline.towers)[name].weight.clone()
    with pytest.raises(FileError, match=r"1 of .* layers do not fit the model: lora_unet_nowhere is unknown"):
        merge(pairs | {"lora_unet_nowhere": pairs[name]}, pipeline.unet, pipeline.towers)
    wide = Pair(torch.zeros(4, 3), torch.zeros(5, 4), 4)
    with pytest.raises(FileError, match=r"is \(5, 3\), the layer"):
        merge({**pairs, name: wide}, pipeline.unet, pipeline.towers)
    assert torch.equal(before, layers(pipeline.unet, pipeline.towers)[name].weight)
