"""Work beside the caller's thread, its results taken in order: a picture becomes the bytes of its file while the next one is made."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")
Make = Callable[[], T]
Take = Callable[[Future[T]], object]  # given a future that is done, on the caller's thread

THREADS = 4
DEPTH = 8  # results that wait to be made or taken: then the caller waits


def threads_for(device: str) -> int:
    """How many threads gain something beside a device of this type: on the CPU they would take the processors from what they are beside."""
    return min(THREADS, os.cpu_count() or 1) if device == "cuda" else 0


class Beside(Generic[T]):
    """Each `make` runs on one of the threads, each `take` on the caller's, in the order of `do`. Without threads both run at once."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "picture") if threads else None
        self._waiting: deque[tuple[Future[T], Take[T]]] = deque()

    def do(self, make: Make[T], take: Take[T]) -> None:
        """Begin to make; what is taken meanwhile may raise."""
        if self._pool is None:
            take(_done(make))
            return
        while len(self._waiting) >= DEPTH:
            self._take_first()
        self._waiting.append((self._pool.submit(make), take))

    def ready(self) -> bool:
        """Whether the first in the order is made; one that failed is not: its error is for `drain`."""
        return bool(self._waiting) and self._waiting[0][0].done() and self._waiting[0][0].exception() is None

    def settle(self) -> None:
        """Take what is ready."""
        while self.ready():
            self._take_first()

    def drain(self) -> None:
        """Wait for all and take it; then the first error of them is raised."""
        errors: list[Exception] = []
        while self._waiting:
            try:
                self._take_first()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def close(self) -> None:
        """`drain`, and end the threads."""
        try:
            self.drain()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _take_first(self) -> None:
        made, take = self._waiting.popleft()
        wait([made])
        take(made)


def _done(make: Make[T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(make())
    except Exception as error:
        future.set_exception(error)
    return future
