"""Kernels without a GPU: run by Triton's interpreter, and compiled to machine code for GPUs that are not there."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TARGETS = (80, 90, 100)  # A100, H100 and H200, B200
FP8_TARGETS = (89, 90, 100)  # the first with e4m3 is Ada


class Usage(NamedTuple):
    """What a kernel takes of a multiprocessor."""

    registers: int  # a thread
    spilled: int  # bytes a thread
    shared: int  # bytes a block


@contextmanager
def interpreted(*kernels: Callable[..., Any]) -> Iterator[None]:
    """The cached functions that make kernels make interpreted ones: launchers then take tensors on the CPU.

    Triton decides at its import, for its own functions too, so inside it is imported anew.
    """
    pytest.importorskip("triton")
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "triton"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        _forget(kernels, [name for name in aside if not name.startswith("triton._C")])  # compiled code is loaded once a process
        try:
            yield
        finally:
            _forget(kernels, [name for name in sys.modules if name.partition(".")[0] == "triton"])
            sys.modules |= aside


def _forget(kernels: Sequence[Callable[..., Any]], modules: Sequence[str]) -> None:
    for kernel in kernels:
        kernel.cache_clear()  # type: ignore[attr-defined]
    for name in modules:
        del sys.modules[name]


def compiled(kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], target: int, **options: int) -> Usage:
    """Compile for compute capability `target` / 10 and print what it takes. `types`: of each argument, such as "*bf16" or "i32";
    `constants`: the constexprs; `options`: num_warps, num_stages."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build

    names = list(kernel.arg_names)
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()})
    made = build(source, target=GPUTarget("cuda", target, 32), options=options)
    usage = Usage(*_registers(made.asm["cubin"]), made.metadata.shared)
    print(f"sm_{target} {kernel.__name__} {dict(constants)}: {usage}")
    return usage


def _registers(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        out = subprocess.run([str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", out)}
    return found["REG"], found.get("STACK", 0) + found.get("LOCAL", 0)
