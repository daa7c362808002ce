"""Work beside the caller: taken in order, by the caller, whole, whatever fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from ldm.runtime import encoding
from ldm.runtime.encoding import Beside


def test_a_cpu_has_no_threads_beside_it() -> None:
    assert encoding.threads_for("cpu") == 0 and encoding.threads_for("cuda") >= 1


def test_without_threads_all_is_done_at_once() -> None:
    beside, me = Beside[int](0), threading.get_ident()
    made: list[int] = []

    def make() -> int:
        assert threading.get_ident() == me
        return 7

    beside.do(make, lambda done: made.append(done.result()))
    assert made == [7] and not beside.ready()
    with pytest.raises(ZeroDivisionError):
        beside.do(lambda: 1 // 0, lambda done: made.append(done.result()))
    beside.close()


def test_results_are_taken_in_order_by_the_caller() -> None:
    """The second is made first, and waits."""
    beside, me, gate = Beside[int](2), threading.get_ident(), threading.Event()
    taken: list[tuple[int, int]] = []

    def first() -> int:
        assert gate.wait(30) and threading.get_ident() != me
        return 1

    second = threading.Event()
    beside.do(first, lambda done: taken.append((done.result(), threading.get_ident())))
    beside.do(lambda: second.set() or 2, lambda done: taken.append((done.result(), threading.get_ident())))
    assert second.wait(30)
    beside.settle()
    assert taken == [] and not beside.ready()
    gate.set()
    beside.drain()
    assert taken == [(1, me), (2, me)]
    beside.close()


def test_an_error_waits_for_the_end_and_takes_nothing_along() -> None:
    beside = Beside[int](1)
    taken: list[int] = []
    for value in (1, 0, 2, 0, 3):
        beside.do(lambda value=value: value // value * value, lambda done: taken.append(done.result()))
    while not beside.ready():
        pass
    while 1 not in taken:
        beside.settle()
    beside.settle()
    assert taken == [1] and not beside.ready()
    with pytest.raises(ZeroDivisionError):
        beside.close()
    assert taken == [1, 2, 3]
    assert not any(thread.name.startswith("picture") for thread in threading.enumerate())


def test_as_many_as_may_wait_and_no_more() -> None:
    beside, taken = Beside[int](2), list[int]()

    def take(done: Future[int]) -> None:
        taken.append(done.result())

    for n in range(encoding.DEPTH + 3):
        beside.do(lambda n=n: n, take)
        assert len(taken) == max(0, n + 1 - encoding.DEPTH)
    beside.close()
    assert taken == list(range(encoding.DEPTH + 3))
