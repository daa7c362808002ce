"""One file an operation: its plain PyTorch reference, and what runs instead where that is faster.

`with ops.reference():` makes every operation run its reference, so that a whole model can be compared with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FUSED = {"enable_fp_fusion": True}  # a product and a sum are one instruction, whatever the Triton at hand takes for its default
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


@cache
def triton_is_there() -> bool:
    """Whether kernels can be compiled; where they cannot, GPUs run torch's own."""
    return find_spec("triton") is not None


def fast(*tensors: Tensor | None) -> bool:
    """Whether Triton's kernels take these: on an NVIDIA GPU that has bfloat16, outside `reference()`, with no gradient asked."""
    import torch

    given = [tensor for tensor in tensors if tensor is not None]
    if not triton_is_there() or use_reference() or not all(tensor.is_cuda for tensor in given) or torch.version.hip:
        return False
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return not learning and torch.cuda.get_device_capability(given[0].device) >= (8, 0)
