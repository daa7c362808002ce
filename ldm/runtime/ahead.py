"""Noise drawn before it is asked for: by a thread, while a GPU computes the step that it is for.

A Brownian path's increment takes about 10 ms a picture at 1024x1024, at every step; a GPU would wait for it. On the CPU, where a step takes
a thousand times as long as its noise and both want the same processors, nothing is gained: there it is drawn when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ldm.diffusion import samplers
from ldm.diffusion.noise import Noise
from ldm.diffusion.samplers import NoiseFn, Sampler

DEPTH = 4  # draws that are made or waited for at a time

Ask = tuple[int, float, float]  # the arguments of a NoiseFn


@contextmanager
def drawing(random: Noise, sampler: Sampler, sigmas: Sequence[float]) -> Iterator[Noise]:
    """The same noise for one run of `sampler` along `sigmas`: on a GPU drawn ahead."""
    asks = samplers.asked(sampler, sigmas) if random.device.type == "cuda" else []
    if not asks:
        yield random
        return
    with Ahead(random.draw, asks) as ahead:
        yield random.drawn_by(ahead)


class Ahead:
    """`draw`, called by one thread alone, in the order of `asks` and before them; what else is asked for comes after what was begun.

    The answers are those of `draw`, and so are its errors, which come when their draw is asked for. A context manager ends the thread.
    """

    def __init__(self, draw: NoiseFn, asks: Sequence[Ask]) -> None:
        self._draw, self._asks = draw, iter(asks)
        self._begun: dict[Ask, Future[Tensor]] = {}
        self._pool = ThreadPoolExecutor(1, "noise")

    def __enter__(self) -> Self:
        before = torch.get_num_threads()
        self._pool.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(before)  # a thread's setting is the default of threads to come
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, i: int, sigma: float, sigma_next: float) -> Tensor:
        ask = (i, sigma, sigma_next)
        future = self._begun.pop(ask, None) or self._pool.submit(self._draw, *ask)
        self._begin()
        return future.result()

    def _begin(self) -> None:
        """Begin the draws that come next, as many as may be under way."""
        while len(self._begun) < DEPTH:
            ask = next(self._asks, None)
            if ask is None:
                return
            self._begun[ask] = self._pool.submit(self._draw, *ask)
