"""What stand-ins cannot show, on a real GPU: the first to run on one is `pytest --gpu tests/runtime/test_on_gpu.py`."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ldm
from ldm.models.unet import UNet
from ldm.pipeline import Pipeline
from ldm.runtime import ahead, graph
from scripts import synthetic
from tests.models.tiny import drawn
from tests.runtime.test_graph import SHAPE, run, same

pytestmark = pytest.mark.gpu
JOB = {"width": 64, "height": 64, "steps": 6, "cfg": 5.0, "seed": 5}


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = synthetic.write(tmp_path / "tiny.safetensors", synthetic.tiny("sdxl-base"), dtype="F16")
    return ldm.load(path, device="cuda", dtype="bfloat16")


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """A graph that cannot be recorded is a failure here."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def kept(module: nn.Module) -> int:
    graphs = graph._ALL.get(module)
    return 0 if graphs is None else sum(each is not None for each in graphs._kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_are_the_plain_calls(dtype: torch.dtype) -> None:
    unet = drawn(UNet(SHAPE)).requires_grad_(False).to("cuda", dtype)
    for words in ({"seed": 0}, {"seed": 7}, {"seed": 7, "size": (6, 10)}, {"words": 154}):
        with graph.off():
            wanted = run(unet, **words)
        assert same(run(unet, **words), wanted) and same(run(unet, **words), wanted)
    assert kept(unet) == 3
    unet.to(torch.float16)
    with graph.off():
        wanted = run(unet)
    assert same(run(unet), wanted) and kept(unet) == 1


def test_a_recording_that_fails_leaves_the_gpu_as_it_was() -> None:
    """The module looks at a number in between, which no graph can."""

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, device="cuda"), requires_grad=False)

        def decode(self, z: Tensor) -> Tensor:
            return z * self.weight * float(z.sum().item() > 0)

    looking, z, before = Looking(), torch.ones(4, device="cuda"), torch.cuda.current_stream()
    assert torch.equal(graph.decoded(looking, z), z)
    with pytest.warns(RuntimeWarning, match="VAE: no CUDA graph can be recorded"):
        assert torch.equal(graph.decoded(looking, z), z)
    assert torch.equal(graph.decoded(looking, z), z) and kept(looking) == 0
    assert torch.cuda.current_stream() == before
    assert torch.randn(8, device="cuda").isfinite().all()
    torch.cuda.empty_cache()
    unet = drawn(UNet(SHAPE)).requires_grad_(False).to("cuda")
    graphs = graph._graphs(unet.out, "out")
    assert graphs is not None
    x = torch.randn(1, SHAPE.model_channels, 8, 8, device="cuda")
    wanted = unet.out(x)
    assert all(torch.equal(graphs(unet.out, x), wanted) for _ in range(3)) and kept(unet.out) == 1


def test_threads_and_streams_share_a_pipeline(pipeline: Pipeline) -> None:
    wanted = {seed: pipeline.generate("a cat", **JOB | {"seed": seed}).latents for seed in range(4)}
    found: dict[int, Tensor] = {}

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            found[seed] = pipeline.generate("a cat", **JOB | {"seed": seed}).latents

    for _ in range(3):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found.pop(seed), wanted[seed]) for seed in wanted)


def test_pictures_with_and_without_graphs(pipeline: Pipeline) -> None:
    with graph.off():
        wanted = pipeline.generate("a cat", **JOB)
    found = [pipeline.generate("a cat", **JOB) for _ in range(2)]
    assert kept(pipeline.unet) == 1
    assert all(torch.equal(each.latents, wanted.latents) for each in found)
    assert all(each.images[0].tobytes() == wanted.images[0].tobytes() for each in found)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "dpmpp_sde", "euler_a"])
def test_noise_that_is_drawn_ahead(pipeline: Pipeline, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pipeline.generate("a cat", sampler=sampler, **JOB)
    monkeypatch.setattr(ahead.samplers, "asked", lambda *_: [])
    assert torch.equal(pipeline.generate("a cat", sampler=sampler, **JOB).latents, found.latents)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_those_of_a_load_to_the_cpu(dtype: str, tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "tiny.safetensors", synthetic.tiny("sdxl-base"), dtype="F16")
    here, there = (ldm.load(path, device=device, dtype=dtype, vae_dtype=dtype) for device in ("cpu", "cuda"))
    for one, two in ((here.unet, there.unet), (here.vae, there.vae), *zip(here.towers, there.towers, strict=True)):
        state = two.state_dict()
        assert all(torch.equal(tensor, state[name].cpu()) for name, tensor in one.state_dict().items())
