"""One file an operation: its plain PyTorch reference, and what runs instead where that is faster.

`with ops.reference():` makes every operation run its reference, so that a whole model can be compared with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_REFERENCE = ContextVar("ldm_ops_reference", default=False)


@contextmanager
def reference() -> Iterator[None]:
    """Run the references instead of the fast operations, in this thread or task alone."""
    token = _REFERENCE.set(True)
    try:
        yield
    finally:
        _REFERENCE.reset(token)


def use_reference() -> bool:
    """Whether the caller is inside `reference()`."""
    return _REFERENCE.get()
