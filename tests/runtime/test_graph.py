"""CUDA graphs with a stand-in for the device: it records a list of operations, and runs them again on the tensors they were made of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ldm import ops
from ldm.models.unet import UNet
from ldm.models.vae import VAE
from ldm.ops import choice
from ldm.pipeline import Pipeline
from ldm.runtime import evaluation, graph, recording, retry
from ldm.runtime.tracking import tensors
from ldm.text.conditioning import Conditioning
from tests.models.tiny import drawn, tiny

FAMILY = tiny("sdxl-base")
SHAPE = replace(FAMILY.unet, transformer_depth=(0, 1, 1), middle_depth=1, num_res_blocks=1)
TS = (900.0, 500.0, 20.0)


class Tape(TorchDispatchMode):
    """Every operation with its arguments; `replay` fills the same results anew. Numbers are baked in, as they are in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, list(tensors(out))))
        return out

    def replay(self) -> None:
        for func, args, kwargs, filled in self.steps:
            for old, new in zip(filled, tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Device:
    """What a GPU does for a graph, on the CPU."""

    def __init__(self, *_: object) -> None:
        self.device = torch.device("cpu")
        self.recorded = self.replayed = self.turns = 0
        self.has_room, self.error, self.at_replay = True, "", lambda: None

    def free(self) -> bool:
        return True

    def room(self) -> bool:
        return self.has_room

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        self.turns += 1
        yield

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        run()
        if self.error:
            raise RuntimeError(self.error)
        tape = Tape()
        with tape:
            out = run()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            self.at_replay()
            tape.replay()

        return replay, out


@pytest.fixture(scope="module")
def unet() -> UNet:
    return drawn(UNet(SHAPE)).requires_grad_(False)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Every module stands on the one stand-in."""
    made = Device()

    def found(module: nn.Module, name: str) -> graph.Graphs | None:
        graphs = graph._ALL.setdefault(module, graph.Graphs(module, made, name))
        return graphs if graphs.ready(module) else None

    monkeypatch.setattr(graph, "_graphs", found)
    with torch.no_grad():
        yield made
    graph._ALL.clear()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(unet: UNet, seed: int = 0, size: tuple[int, int] = (8, 8), words: int = 77) -> list[Tensor]:
    """Two rows of conditioning, the steps of a run."""
    place = next(unet.parameters()).device
    rows = Conditioning(random(2, words, SHAPE.context_dim, seed=seed).to(place), random(2, SHAPE.vector_dim, seed=seed + 1).to(place))
    predict = evaluation.prediction(unet, rows, 1, TS)
    return [predict(random(2, 4, *size, seed=seed + i).to(place), t) for i, t in enumerate(TS)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


def plain(*args: Any, **more: Any) -> list[Tensor]:
    with graph.off():
        return run(*args, **more)


def test_replays_are_the_plain_calls_bit_for_bit(unet: UNet, device: Device) -> None:
    """Over steps, prompts and sizes: nothing of an earlier call is left in a later one."""
    wanted = [plain(unet), plain(unet, 7), plain(unet, 7, (6, 10)), plain(unet, words=154)]
    assert device.recorded == device.turns == 0
    made = [run(unet), run(unet, 7), run(unet, 7, (6, 10)), run(unet, words=154)]
    assert all(map(same, made, wanted))
    assert (device.recorded, device.replayed) == (3, 2 + 3 + 2 + 2)  # a shape's first call is plain
    assert not same(wanted[0], wanted[1])
    assert same(run(unet), wanted[0]) and device.recorded == 3


def test_text_is_copied_once_a_prompt(unet: UNet, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, of: copied.append(len(to)) or copy(to, of))
    run(unet)
    run(unet, 7)
    blocks = len(unet.prepare(random(1, 77, SHAPE.context_dim), random(1, SHAPE.vector_dim), [1.0]).shifts[0])
    every = 1 + blocks + 2 * sum(1 for name, _ in unet.named_modules() if name.endswith("attn2"))
    assert copied == [every, 1 + blocks, every, 1 + blocks, 1 + blocks]


def test_an_input_that_is_changed_in_place_is_copied_again(unet: UNet, device: Device) -> None:
    graphs = graph._graphs(unet.out, "out")
    assert graphs is not None
    x, made, wanted = random(1, SHAPE.model_channels, 8, 8), list[Tensor](), list[Tensor]()
    for _ in range(4):
        x.mul_(1.5)
        made.append(graphs(unet.out, x))
        wanted.append(unet.out(x))
    assert same(made, wanted)  # and no result is written over by the next
    with torch.inference_mode():
        y = random(1, SHAPE.model_channels, 8, 8)
        for _ in range(2):
            y.mul_(1.5)
            assert torch.equal(graphs(unet.out, y), unet.out(y))
    assert (device.recorded, device.replayed) == (1, 5)


def test_weights_that_are_written_to_or_move_drop_the_graphs(device: Device) -> None:
    unet = drawn(UNet(SHAPE)).requires_grad_(False)
    run(unet)
    for move in (
        lambda: unet.out[2].weight.mul_(2),  # where it stands; what an operation keeps that was made of it does not
        lambda: setattr(unet.out[2], "weight", nn.Parameter(unet.out[2].weight * 2, requires_grad=False)),
        lambda: unet.out.__setitem__(1, nn.Identity()),
        lambda: unet.to(torch.float64).to(torch.float32),
        lambda: unet.load_state_dict({name: value.clone() for name, value in unet.state_dict().items()}, assign=True),
    ):
        before = device.recorded
        move()
        assert same(run(unet), plain(unet))
        assert device.recorded == before + 1


def test_what_python_looks_at_runs_in_python(unet: UNet, device: Device) -> None:
    wanted = plain(unet)
    run(unet)
    before, seen = device.replayed, []
    handle = unet.middle_block[1].register_forward_hook(lambda *_: seen.append(1))
    assert same(run(unet), wanted) and len(seen) == 3
    handle.remove()
    with ops.reference():
        run(unet)
    with Tape() as tape:
        run(unet)
    assert len(tape.steps) > 100
    with torch.enable_grad():
        run(unet)
    with torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else graph.off():
        run(unet)
    assert device.replayed == before
    run(unet)
    assert device.replayed == before + 3


def test_weights_that_come_and_go_are_not_replayed(device: Device) -> None:
    """A part that is on the meta device between its turns is brought by Python."""
    unet = drawn(UNet(SHAPE)).requires_grad_(False)
    wanted, part = plain(unet), unet.middle_block[1].transformer_blocks[0].ff
    weights = part.state_dict()

    def coming(*args: Any) -> Tensor:
        part.load_state_dict(weights, assign=True)
        try:
            return type(part).forward(part, *args)
        finally:
            part.to("meta")

    part.to("meta").forward = coming
    assert same(run(unet), wanted) and same(run(unet), wanted)
    assert device.recorded == 0


def test_another_choice_of_kernels_is_another_graph(unet: UNet, device: Device) -> None:
    run(unet)
    with choice.using(attention="plain"):
        run(unet)
    assert device.recorded == 2


def test_who_finds_the_graphs_taken_calls_as_it_is(unet: UNet, device: Device) -> None:
    wanted = [plain(unet), plain(unet, 7)]
    run(unet)
    inside, go = threading.Event(), threading.Event()
    device.at_replay = lambda: (inside.set(), go.wait(30))
    out: list[list[Tensor]] = []

    def other() -> None:
        with torch.no_grad():
            out.append(run(unet))

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(30)
    before = device.replayed
    assert same(run(unet, 7), wanted[1])
    assert device.replayed == before
    device.at_replay = lambda: None
    go.set()
    thread.join()
    assert same(out[0], wanted[0]) and device.recorded == 1


def test_a_recording_that_fails_is_said_once_and_the_pictures_are_made(unet: UNet, device: Device) -> None:
    wanted = plain(unet)
    device.error = "operation not permitted\nwhen stream is capturing"
    with pytest.warns(RuntimeWarning, match=r"UNet: no CUDA graph can be recorded \(RuntimeError: operation not permitted when") as said:
        assert same(run(unet), wanted)
        assert same(run(unet), wanted)
    assert len(said) == 1
    device.error = ""
    assert same(run(unet), wanted) and device.recorded == device.replayed == 0


def test_no_room_is_no_graph_until_there_is_some(unet: UNet, device: Device) -> None:
    device.has_room = False
    with pytest.warns(UserWarning, match="UNet: too little of the GPU's memory is free for a CUDA graph") as said:
        assert same(run(unet), plain(unet)) and same(run(unet), plain(unet)) and device.recorded == 0
    assert len(said) == 1
    device.has_room = True
    assert same(run(unet), plain(unet)) and device.recorded == 1


def test_the_oldest_of_many_shapes_goes(unet: UNet, device: Device) -> None:
    graphs = graph._graphs(unet.out, "out")
    assert graphs is not None
    for width in range(8, 8 + graph.KEPT + 1):
        for _ in range(2):
            graphs(unet.out, random(1, SHAPE.model_channels, 8, width))
    assert device.recorded == graph.KEPT + 1 and len(graphs._kept) == graph.KEPT
    graphs(unet.out, random(1, SHAPE.model_channels, 8, 9))
    assert device.recorded == graph.KEPT + 1
    for _ in range(2):
        graphs(unet.out, random(1, SHAPE.model_channels, 8, 8))
    assert device.recorded == graph.KEPT + 2


def test_memory_that_runs_out_takes_the_graphs(unet: UNet, device: Device) -> None:
    run(unet)
    retry.free_unused()
    run(unet)
    assert device.recorded == 2


def test_a_pipeline_that_moves_or_closes_drops_the_graphs(unet: UNet, device: Device) -> None:
    run(unet)
    for count, change in enumerate((Pipeline.to, Pipeline.close), 2):
        change(Pipeline(FAMILY, drawn(UNet(SHAPE)), drawn(VAE(FAMILY.vae)), [], source=""))
        run(unet)
        assert device.recorded == count


def test_the_vae_too(device: Device) -> None:
    vae = drawn(VAE(FAMILY.vae)).requires_grad_(False)
    for seed in range(3):
        z = random(1, 4, 4, 4, seed=seed)
        assert torch.equal(graph.decoded(vae, z), vae.decode(z))
    assert (device.recorded, device.replayed) == (1, 2)


def test_graphs_go_with_their_module(device: Device) -> None:
    unet = drawn(UNet(SHAPE)).requires_grad_(False)
    run(unet)
    assert len(graph._ALL) == 1
    del unet
    assert len(graph._ALL) == 0


@pytest.mark.parametrize("broken", [False, True])
def test_the_order_of_calls_on_a_gpu(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of torch.cuda, in order; where the recording breaks off it is ended, and the caller's stream is back."""
    log: list[str] = []
    streams = ["main"]

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: Event) -> None:
            log.append(f"{self.name} waits for the turn before")

    class Event:
        def record(self, stream: Stream) -> None:
            log.append(f"turn ends on {stream.name}")

    class Graph:
        def capture_begin(self, pool: str = "a pool of its own", capture_error_mode: str = "global") -> None:
            log.append(f"begin on {streams[-1]} in {pool}, {capture_error_mode}")

        def capture_end(self) -> None:
            log.append(f"end on {streams[-1]}")

        def replay(self) -> None:
            log.append(f"replay on {streams[-1]}")

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.append(stream.name)
        try:
            yield
        finally:
            streams.pop()

    fakes: dict[str, Any] = {"Stream": Stream, "Event": Event, "CUDAGraph": Graph, "stream": on, "graph_pool_handle": lambda: "the pool"}
    fakes |= {"current_stream": lambda: Stream(streams[-1]), "device": lambda _: contextlib.nullcontext()}
    fakes |= {"synchronize": lambda: log.append("wait for all"), "empty_cache": lambda: log.append("empty")}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def close(device: int, pool: str) -> None:
        log.append(f"close {pool} of {device}")
        raise RuntimeError("it is closed")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", close, raising=False)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None: log.append(f"zeros on {streams[-1]}") or zeros(*shape))

    def run() -> Tensor:
        log.append(f"run on {streams[-1]}")
        if broken and log.count("run on side") == 2:
            raise RuntimeError("not permitted")
        return zeros(1)

    cuda = recording.Cuda(torch.device("cuda", 0))
    with cuda.turn(), contextlib.suppress(RuntimeError):
        replay, _ = cuda.record(run)
        replay()
    first = ["main waits for the turn before", "side waits for main", "run on side", "wait for all", "empty"]
    record = ["begin on side in the pool, thread_local", "run on side", "end on side"]
    mend = ["close the pool of 0", "begin on side in a pool of its own, thread_local", "zeros on side", "end on side"]
    last = mend if broken else ["main waits for side", "replay on main"]
    assert log == [*first, *record, *last, "turn ends on main"] and streams == ["main"]
    with pytest.raises(MemoryError), cuda.turn():  # what was asked for before may still run
        raise MemoryError
    assert log[-2:] == ["main waits for the turn before", "turn ends on main"]
