"""Weights that come from the file when their turn comes: the bits of those that stay, whatever goes wrong on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

import ldm
from ldm.errors import FileError, InputError, MemoryNeedError
from ldm.models.shapes import Family
from ldm.models.unet import TransformerBlock
from ldm.pipeline import Pipeline
from ldm.runtime import plan, streaming, tiles
from ldm.runtime.paths import LEAST, RESIDENT, Path
from ldm.runtime.tracking import Tracker
from scripts import synthetic

JOB: dict[str, Any] = {"width": 64, "height": 32, "steps": 2, "cfg": 3.0, "sampler": "euler_a", "seed": 5}
PATHS = [
    Path(towers=True),
    Path(towers=True, keys=True),
    Path(towers=True, keys=True, vae=True),
    LEAST,
    replace(LEAST, kept=3),
    replace(LEAST, kept=4, stored=torch.float16),
    replace(LEAST, kept=99, stored=torch.float16),
]


def family() -> Family:
    """Three levels, and one transformer block where it has them."""
    tiny = synthetic.tiny()
    unet = replace(tiny.unet, num_res_blocks=1, transformer_depth=(0, 1, 1), middle_depth=1)
    return replace(tiny, name="short", unet=unet, towers=tuple(replace(each, layers=2) for each in tiny.towers))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    return synthetic.write(tmp_path_factory.mktemp("model") / "short.safetensors", family(), dtype="F16")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> File:
    return synthetic.write(tmp_path_factory.mktemp("mixed") / "mixed.safetensors", family(), dtype="mixed")


def loaded(file: File | None, path: Path, **how: Any) -> Pipeline:
    """By a path, whatever the plan would choose; the limit is not reached."""
    with mock.patch.object(plan, "way", lambda *_: (path, None if path == RESIDENT else 2**40, 0)):
        return ldm.load(file, device="cpu", **how)


def made(pipeline: Pipeline, **job: Any) -> tuple[torch.Tensor, bytes]:
    result = pipeline.generate("a cat", "a dog", **JOB | job)
    return result.latents, result.images[0].tobytes()


def same(one: tuple[torch.Tensor, bytes], two: tuple[torch.Tensor, bytes]) -> bool:
    return torch.equal(one[0], two[0]) and one[1] == two[1]


@pytest.fixture(scope="module")
def whole(file: File) -> tuple[torch.Tensor, bytes]:
    return made(loaded(file, RESIDENT))


def in_memory(pipeline: Pipeline) -> int:
    networks = (pipeline.unet, pipeline.vae, *pipeline.towers)
    return sum(weight.nbytes for network in networks for weight in network.parameters() if not weight.is_meta)


@pytest.mark.parametrize("path", PATHS)
def test_the_bits_are_those_of_weights_that_stay(file: File, whole: tuple[torch.Tensor, bytes], path: Path) -> None:
    """Twice: the second prompt reads again what the first has let go."""
    pipeline = loaded(file, path)
    before = in_memory(pipeline)
    assert same(made(pipeline), whole) and same(made(pipeline), whole)
    assert in_memory(pipeline) == before < in_memory(loaded(file, RESIDENT))


def test_each_path_holds_less_than_the_one_before(file: File) -> None:
    held = [in_memory(loaded(file, path)) for path in (RESIDENT, *PATHS[:4])]
    assert held == sorted(held, reverse=True) and len(set(held)) == 5


def test_files_of_several_dtypes_and_a_vae_apart(mixed: File, tmp_path: File) -> None:
    vae = synthetic.write_vae(tmp_path / "vae.safetensors", family())
    whole = made(loaded(mixed, RESIDENT, vae=vae))
    for path in (LEAST, replace(LEAST, kept=99, stored=None)):
        assert same(made(loaded(mixed, path, vae=vae)), whole)


def test_the_model_in_the_box() -> None:
    job: dict[str, Any] = {"steps": 1, "width": 64, "height": 64}
    assert same(made(loaded(None, LEAST), **job), made(loaded(None, RESIDENT), **job))


def test_the_decode_is_in_bands(file: File) -> None:
    for path in (RESIDENT, PATHS[1], PATHS[2], LEAST):
        with mock.patch.object(tiles, "decode", wraps=tiles.decode) as banded:
            loaded(file, path).decode(torch.zeros(1, 4, 4, 4))
        assert banded.called == path.vae


def test_stage_by_stage_too(file: File) -> None:
    one, two = loaded(file, RESIDENT), loaded(file, LEAST)
    z, image = torch.zeros(1, 4, 4, 4), torch.zeros(1, 3, 32, 32)
    assert torch.equal(one.decode(z), two.decode(z)) and torch.equal(one.encode_image(image), two.encode_image(image))
    with torch.inference_mode():
        assert torch.equal(one.encode("a", size=(8, 8)).context, two.encode("a", size=(8, 8)).context)


def test_two_blocks_are_in_memory(file: File) -> None:
    """Of the UNet's, by the bytes that are allocated while it runs."""
    one, two = loaded(file, RESIDENT), loaded(file, LEAST)
    peaks = []
    for unet in (one.unet, two.unet):
        shape = unet.shape
        with torch.no_grad():
            prepared = unet.prepare(torch.zeros(1, 77, shape.context_dim), torch.zeros(1, shape.vector_dim), [0.0])
            x = torch.zeros(1, 4, 4, 8)
            unet(x, prepared, 0)
            with Tracker() as tracker:
                unet(x, prepared, 0)
        peaks.append(tracker.peak)
    turning, every = plan._turning(two.unet, LEAST, "forward"), sum(weight.nbytes for weight in one.unet.parameters())
    assert peaks[0] < peaks[1] < peaks[0] + 3 * turning < every  # what is made of a convolution's weight is made at every turn


def test_the_approximate_tier_reads_a_block_once_an_evaluation(file: File) -> None:
    """It leaves blocks out, and finds those that it has where the exact tier does."""
    with mock.patch.object(streaming, "_bring", wraps=streaming._bring) as bring:
        pipeline, counts = loaded(file, LEAST), {}
        for speed in ("exact", "approx"):
            bring.reset_mock()
            found = made(pipeline, speed=speed, steps=4)
            counts[speed] = sum("out_layers.0.weight" in " ".join(call.args[1].spots) for call in bring.call_args_list)
    assert counts["approx"] <= counts["exact"]
    assert same(found, made(loaded(file, RESIDENT), speed="approx", steps=4))


def test_threads_share_a_pipeline(file: File) -> None:
    alone = [made(loaded(file, RESIDENT), seed=seed) for seed in range(4)]
    pipeline = loaded(file, LEAST)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: made(pipeline, seed=seed), range(4)))
    assert all(same(one, two) for one, two in zip(alone, together, strict=True))


@pytest.mark.parametrize("change", ["gone", "cut", "rewritten", "replaced"])
def test_a_file_that_changes_is_an_error(file: File, whole: tuple[torch.Tensor, bytes], tmp_path: File, change: str) -> None:
    """And the pipeline works again when the file is back."""
    other = tmp_path / "m.safetensors"
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(10**18, 10**18))
    pipeline, kept = loaded(other, LEAST), tmp_path / "kept"
    os.link(other, kept)
    if change == "gone":
        other.unlink()
    elif change == "cut":
        os.truncate(other, other.stat().st_size // 2)
    elif change == "rewritten":
        other.write_bytes(file.read_bytes())
    else:
        (tmp_path / "new").write_bytes(file.read_bytes())
        os.replace(tmp_path / "new", other)
    with pytest.raises(FileError, match=r"m\.safetensors: ") as caught:
        made(pipeline)
    assert caught.value.code == ("E3001" if change == "gone" else "E3009")
    if change == "cut":
        kept.write_bytes(file.read_bytes())
    os.utime(kept, ns=(10**18, 10**18))
    os.replace(kept, other)
    assert same(made(pipeline), whole)


def test_an_error_amid_a_block_leaves_no_trace(file: File, whole: tuple[torch.Tensor, bytes]) -> None:
    pipeline = loaded(file, LEAST)
    before = in_memory(pipeline)
    block = next(each for each in pipeline.unet.modules() if isinstance(each, TransformerBlock))
    for error in (KeyboardInterrupt, KeyError):
        hook = block.register_forward_hook(mock.Mock(side_effect=error))
        with pytest.raises(error):
            made(pipeline)
        hook.remove()
        assert in_memory(pipeline) == before
        assert same(made(pipeline), whole)


def test_an_interrupt_while_a_block_is_read(file: File, whole: tuple[torch.Tensor, bytes]) -> None:
    """The caller waits for a read that is slow, and is interrupted: neither hangs, and the memory is written by nobody afterwards."""
    pipeline, plain, asked = loaded(file, LEAST), streaming.read, threading.Event()

    def slow(*words: Any) -> None:
        asked.set()
        time.sleep(0.3)
        plain(*words)

    def interrupt() -> None:
        asked.wait(60)
        main.interrupt()

    main = SimpleNamespace(interrupt=__import__("_thread").interrupt_main)
    with mock.patch.object(streaming, "read", slow):
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            made(pipeline)
        thread.join(60)
    assert not thread.is_alive()
    assert same(made(pipeline), whole)


def test_it_stays_where_it_is(file: File) -> None:
    pipeline = loaded(file, LEAST)
    with pytest.raises(InputError, match="stays as it was loaded"):
        pipeline.to(dtype="bfloat16")
    pipeline.close()
    assert in_memory(pipeline) == 0
    with pytest.raises(InputError, match="closed"):
        made(pipeline)


@pytest.fixture
def short(file: File) -> Iterator[Pipeline]:
    """Memory does not suffice for it as long as its weights stay."""
    pipeline = loaded(file, RESIDENT)

    def refuse(*_: Any) -> None:
        if pipeline.keeper.path == RESIDENT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 8 GiB of which 1.00 GiB is free.")

    pipeline.unet.register_forward_pre_hook(refuse)
    yield pipeline


def test_where_memory_runs_out_twice_weights_take_turns(short: Pipeline, whole: tuple[torch.Tensor, bytes]) -> None:
    with pytest.warns(RuntimeWarning) as seen:
        assert same(made(short), whole)
    said = [str(each.message) for each in seen]
    assert len(said) == 2 and "one row at a time" in said[0] and "read from the file when their turn comes" in said[1]
    assert short.keeper.path == LEAST and same(made(short), whole)


@pytest.mark.filterwarnings("ignore:UNet")
def test_weights_that_were_changed_are_not_read_again(short: Pipeline) -> None:
    with torch.no_grad():
        short.unet.out[2].bias.add_(1)
    with pytest.raises(MemoryNeedError, match="UNet: out of memory") as caught:
        made(short)
    assert caught.value.code == "E4002" and short.keeper.path == RESIDENT


@pytest.mark.filterwarnings("ignore:UNet")
def test_nor_while_another_thread_uses_them(short: Pipeline) -> None:
    with short.keeper.using(), pytest.raises(MemoryNeedError, match="UNet: out of memory"):
        made(short)


def test_a_decode_goes_on_in_bands(file: File, whole: tuple[torch.Tensor, bytes]) -> None:
    pipeline = loaded(file, RESIDENT)
    pipeline.vae.decoder.register_forward_pre_hook(mock.Mock(side_effect=MemoryError))
    with pytest.warns(RuntimeWarning, match="VAE decode: out of memory.*: trying again in bands of rows") as seen:
        assert same(made(pipeline), whole)
    assert len(seen) == 1 and seen[0].filename == __file__


class Fake:
    """Stands for torch.cuda: what is asked of it, in order, with the CPU for the device."""

    def __init__(self) -> None:
        self.said: list[str] = []
        event = SimpleNamespace()
        stream = SimpleNamespace(
            record_event=lambda: self.said.append("mark") or event,
            wait_event=lambda _: self.said.append("wait"),
            synchronize=lambda: self.said.append("arrived"),
        )
        self.Stream = lambda _: stream
        self.current_stream = lambda _: stream
        self.stream = lambda _: mock.MagicMock()
        self.real = torch.cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_the_way_to_a_gpu_waits_for_the_work_before(file: File, mixed: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in: a slot is written when the work that used it is done, and used when all has arrived."""
    fake = Fake()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *words, pin_memory=False, **how: empty(*words, **how))
    monkeypatch.setattr(streaming.torch, "cuda", fake)
    opened = streaming.Transfer.__init__

    def on_gpu(self: streaming.Transfer, device: torch.device) -> None:
        opened(self, SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
        self.device = device

    monkeypatch.setattr(streaming.Transfer, "__init__", on_gpu)
    for each in (file, mixed):
        pipelines = [loaded(each, path) for path in (RESIDENT, LEAST)]
        fake.said.clear()
        with torch.no_grad():
            contexts = [made.encode("a cat", size=(8, 8)).context for made in pipelines]
        assert torch.equal(*contexts)
        assert fake.said.count("wait") == fake.said.count("arrived") == 6  # two towers of an embedding and two layers
        assert fake.said[:3] == ["mark", "wait", "arrived"] and fake.said.count("mark") == 8


def test_the_least_that_would_do_is_said(file: File) -> None:
    said = r"512x512 in float32 needs .* whatever .* and 300 MB are allowed: take --max-memory (\d+)MiB"
    with pytest.raises(MemoryNeedError, match=said) as caught:
        ldm.load(file, device="cpu", max_memory=300 * 10**6, jobs=[ldm_job(512)])
    least = int(str(caught.value).split("--max-memory ")[1].split("MiB")[0]) + 1
    pipeline = ldm.load(file, device="cpu", max_memory=f"{least + 8}MiB", jobs=[ldm_job(512)])
    assert pipeline.keeper.path.vae and pipeline.keeper.limit == (least + 8) * 2**20


def ldm_job(side: int) -> Any:
    from ldm.options import Job

    return Job("a cat", width=side, height=side)
