"""The text class: activations, causality, pooling at the first end token, OpenCLIP's names both ways."""

from __future__ import annotations

import pytest
import torch

from ldm.checkpoint.rename import from_open_clip, open_clip_sources, to_open_clip
from ldm.models.clip import CLIPText, quick_gelu
from ldm.models.shapes import load_family
from tests.models.tiny import drawn, tiny

LARGE = {  # CLIP ViT-L/14
    "layout": "hf",
    "prefix": "conditioner.embedders.0.transformer.",
    "width": 768,
    "layers": 12,
    "heads": 12,
    "mlp": 3072,
    "activation": "quick_gelu",
    "projection": 0,
    "pad_token": 49407,
    "vocab": 49408,
    "length": 77,
}
BIG = {  # OpenCLIP ViT-bigG/14
    "layout": "open_clip",
    "prefix": "conditioner.embedders.1.model.",
    "width": 1280,
    "layers": 32,
    "heads": 20,
    "mlp": 5120,
    "activation": "gelu",
    "projection": 1280,
    "pad_token": 0,
    "vocab": 49408,
    "length": 77,
}


@pytest.mark.parametrize(
    ("name", "towers"), [("sdxl-base", [LARGE, BIG]), ("sdxl-refiner", [BIG | {"prefix": "conditioner.embedders.0.model."}])]
)
def test_official_numbers(name: str, towers: list[dict[str, object]]) -> None:
    assert [tower.to_dict() for tower in load_family(name).towers] == towers


def test_activation_and_norms() -> None:
    large = load_family("sdxl-base").towers[0]
    with torch.device("meta"):
        tower = CLIPText(large)
    assert {module.eps for module in tower.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}
    x = torch.linspace(-3, 3, 7)
    assert torch.allclose(quick_gelu(x), x / (1 + torch.exp(-1.702 * x)))


@torch.no_grad()
def test_causal_and_pooled_at_the_first_end() -> None:
    tower = drawn(CLIPText(tiny("sdxl-base").towers[1]))
    ids = torch.full((1, 77), 0)
    ids[0, :4] = torch.tensor([49406, 320, 1125, 49407])
    other = ids.clone()
    other[0, 10], other[0, 20] = 777, 49407  # after the end: must not matter for what stands before
    ours, changed = tower(ids), tower(other)
    assert torch.equal(ours.penultimate[:, :10], changed.penultimate[:, :10])
    assert not torch.equal(ours.penultimate[:, 10:], changed.penultimate[:, 10:])
    assert torch.equal(ours.pooled, changed.pooled)
    norm = tower.text_model.final_layer_norm
    assert torch.allclose(ours.pooled, norm(ours.last[:, 3]) @ tower.text_projection, atol=1e-6)


@pytest.mark.parametrize("layers", [3])
def test_open_clip_names_round_trip(layers: int) -> None:
    tower = drawn(CLIPText(tiny("sdxl-base").towers[1]))
    state = tower.state_dict()
    theirs = to_open_clip(state, layers)
    back = from_open_clip(theirs, layers)
    assert back.keys() == state.keys() == open_clip_sources(layers).keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    width = tower.shape.width
    assert theirs["transformer.resblocks.0.attn.in_proj_weight"].shape == (3 * width, width)
    assert torch.equal(
        theirs["transformer.resblocks.0.attn.in_proj_weight"][width : 2 * width],
        state["text_model.encoder.layers.0.self_attn.k_proj.weight"],
    )


@torch.no_grad()
def test_beside_open_clip() -> None:
    """OpenCLIP's own text transformer with our weights under its names: hidden states and pooled vector."""
    transformer = pytest.importorskip("open_clip.transformer", reason="open_clip does not import beside this torch", exc_type=Exception)
    tower = drawn(CLIPText(tiny("sdxl-base").towers[1]))
    shape = tower.shape
    theirs = transformer.TextTransformer(
        context_length=77,
        vocab_size=shape.vocab,
        width=shape.width,
        heads=shape.heads,
        layers=shape.layers,
        output_dim=shape.projection,
        pool_type="argmax",
    )
    state = to_open_clip(tower.state_dict(), shape.layers)
    theirs.load_state_dict(state, strict=False)
    ids = torch.zeros(2, 77, dtype=torch.long)
    ids[0, :4], ids[1, :6] = torch.tensor([49406, 320, 1125, 49407]), torch.tensor([49406, 2368, 539, 320, 1929, 49407])
    assert torch.allclose(tower(ids).pooled, theirs.eval()(ids), atol=1e-5)
