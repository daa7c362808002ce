"""A LoRA written here and loaded by diffusers' own loader: the same prediction, and the same latents after a run."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import ldm
from ldm.catalogue import find
from ldm.checkpoint.lora import lora_items, merge, read_lora
from ldm.checkpoint.writer import save
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.profiles import load_profile
from ldm.diffusion.samplers import get
from ldm.diffusion.schedules import SigmaTable
from ldm.measure import relative_error
from ldm.train.adapting import adapt, first_values, gathered, pairs
from ldm.train.recipe import LoraRecipe, Target


def written(path: Path, box: ldm.Pipeline, targets: tuple[Target, ...], std: float, draw: torch.Generator) -> Path:
    """A LoRA of the model with drawn values."""
    made = adapt(copy.deepcopy(box.unet), [copy.deepcopy(tower) for tower in box.towers], LoraRecipe(4, 2.0, targets))
    first_values(made, 3)
    with torch.no_grad():
        for each in made.values():
            each.lora_up.get_parameter("weight").normal_(std=std, generator=draw)
    return save(path, lora_items(pairs(made, gathered(made).state_dict()), torch.float16))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [("transformer",), ("transformer", "convolution")])
def test_diffusers_loads_it_to_the_same_latents(tmp_path: Path, targets: tuple[Target, ...]) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from ldm.parity import foreign

    box = ldm.load(device="cpu", dtype="float32")
    draw = torch.Generator().manual_seed(4)
    file = written(tmp_path / "style.safetensors", box, targets, 0.03, draw)

    theirs = foreign.unet(find(None), box.family)
    loader = diffusers.StableDiffusionXLPipeline
    state, alphas = loader.lora_state_dict(str(file), unet_config=theirs.config)
    loader.load_lora_into_unet(state, alphas, theirs)
    merge(read_lora(file), box.unet, box.towers)

    told = [box.encode(text, size=(64, 64)) for text in ("a red apple", "a cat")]
    context, vector = torch.cat([each.context for each in told]), torch.cat([each.vector for each in told])
    pooled = box.towers[-1].shape.projection
    words = {"text_embeds": vector[:, :pooled], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    calls = {
        "ours": lambda x, t: box.unet.denoise(x, torch.full((2,), t), context, vector),
        "theirs": lambda x, t: theirs(x, t, context, added_cond_kwargs=words).sample,
        "without": lambda x, t: copied.denoise(x, torch.full((2,), t), context, vector),
    }
    copied = ldm.load(device="cpu", dtype="float32").unet
    table, found = SigmaTable("float64"), {}
    sigmas = [table.at_linear(torch.tensor([float(t)])).item() for t in (999, 700, 400, 100)] + [0.0]
    x = torch.randn(2, 4, 8, 8, generator=draw) * sigmas[0]
    with torch.no_grad():
        for name, call in calls.items():
            denoise = Denoiser(call, table, "epsilon", "float")
            steps = get("euler", load_profile("comfyui")).run(denoise, x, sigmas, lambda *_: torch.zeros_like(x))
            found[name] = list(steps)[-1].x
    assert relative_error(found["ours"], found["theirs"]) < 1e-4
    assert relative_error(found["ours"], found["without"]) > 1e-2


@pytest.mark.filterwarnings("ignore")
def test_diffusers_loads_what_towers_learned_to_the_same_words(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from ldm.parity import foreign

    box = ldm.load(device="cpu", dtype="float32")
    draw = torch.Generator().manual_seed(4)
    file = written(tmp_path / "words.safetensors", box, ("towers",), 0.1, draw)
    merge(read_lora(file), box.unet, box.towers)

    ids = [torch.randint(1, 40_000, (2, 77), generator=draw).index_fill(1, torch.tensor([76]), 49_407)] * 2
    loader = diffusers.StableDiffusionXLPipeline
    state, alphas = loader.lora_state_dict(str(file))
    for at, (tower, prefix) in enumerate(zip(box.towers, ("text_encoder", "text_encoder_2"), strict=True)):
        theirs = foreign.tower(find(None), tower.shape)
        with torch.no_grad():
            before = theirs(ids[at], output_hidden_states=True).hidden_states[-2]
            loader.load_lora_into_text_encoder(state, alphas, theirs, prefix=prefix)
            wanted = theirs(ids[at], output_hidden_states=True)
            hidden, _, pooled = tower(ids[at])
        assert relative_error(hidden, wanted.hidden_states[-2]) < 1e-4 < 1e-2 < relative_error(hidden, before)
        if pooled is not None:
            assert relative_error(pooled, wanted.text_embeds) < 1e-4
