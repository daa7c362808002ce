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
import torch

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

    Triton decides at its import, for its own functions too, so inside it is imported anew. It writes its names into a kernel's module,
    which are taken out again.
    """
    pytest.importorskip("triton")
    _settle()
    aside = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "triton"}
    spaces = [kernel.__wrapped__.__globals__ for kernel in kernels]  # type: ignore[attr-defined]
    before = [set(space) for space in spaces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        _forget(kernels, [name for name in aside if not name.startswith("triton._C")])  # compiled code is loaded once a process
        try:
            _round_as_gpus_do(patch)
            _multiply_bfloat16(patch)
            _count_by_tensors(patch)
            yield
        finally:
            _forget(kernels, [name for name in sys.modules if name.partition(".")[0] == "triton"])
            sys.modules |= aside
            for space, names in zip(spaces, before, strict=True):
                for name in set(space) - names:
                    del space[name]


def _settle() -> None:
    """Triton's compiled code keeps the classes of the first argument that it looks at: those that stay, not those of an interpreter."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import BaseBackend

    native_specialize_impl(BaseBackend, 1, False, True, True)


def _round_as_gpus_do(patch: pytest.MonkeyPatch) -> None:
    """To the nearest: the interpreter cuts bfloat16 off, and an e4m3 that rounds up to a power of two loses half its size."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: Any, before: Any, after: Any, mode: Any) -> Any:
        if before != tl.float32 or after not in (tl.bfloat16, tl.float8e4nv):
            return convert(values, before, after, mode)
        exact = torch.from_numpy(values.astype("float32"))
        if after == tl.bfloat16:
            return exact.bfloat16().view(torch.int16).numpy().view("uint16")
        return exact.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    patch.setattr(interpreter, "_convert_float", rounded)


def _multiply_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """As numbers: the interpreter's product takes their bits for integers."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    dot = builder.create_dot

    def widened(each: Any) -> Any:
        return interpreter.TensorHandle((each.data.astype("uint32") << 16).view("float32"), tl.float32)

    def multiplied(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, *(widened(each) if each.dtype.scalar == tl.bfloat16 else each for each in (a, b)), *rest)

    patch.setattr(builder, "create_dot", multiplied)


def _count_by_tensors(patch: pytest.MonkeyPatch) -> None:
    """Ends of a loop that are known when it runs: Triton 3.6 converts them in a way that NumPy 2.4 has given up."""
    from triton.runtime import interpreter

    earlier = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        earlier(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    patch.setattr(interpreter, "_patch_lang_tensor", patched)


def _forget(kernels: Sequence[Callable[..., Any]], modules: Sequence[str]) -> None:
    for kernel in kernels:
        kernel.cache_clear()  # type: ignore[attr-defined]
    for name in modules:
        del sys.modules[name]


def compiled(
    kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any], target: int, aligned: Sequence[str] = (), **options: int
) -> Usage:
    """Compile for compute capability `target` / 10 and print what it takes. `types`: of each argument, such as "*bf16" or "i32";
    `constants`: the constexprs; `aligned`: arguments that are multiples of 16, as a launch finds out; `options`: num_warps, num_stages."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build

    names = list(kernel.arg_names)
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    multiples = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=multiples)
    made = build(source, target=GPUTarget("cuda", target, 32), options=options)
    usage = Usage(*_registers(made.asm["cubin"]), made.metadata.shared)
    print(f"sm_{target} {kernel.__name__} {dict(constants)}: {usage}")
    return usage


@contextmanager
def launched(target: int) -> Iterator[list[Usage]]:
    """Launches compile, for compute capability `target` / 10 and by all that a launch on a GPU does first: they bind the arguments, find
    out which are multiples of 16, and describe what is copied. They are not carried out; what the kernels take is listed and printed."""
    pytest.importorskip("triton")
    from triton.runtime import driver, jit

    usages: list[Usage] = []

    def instead(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            made = kernel.warmup(*args, grid=grid, **options)
            usages.append(Usage(*_registers(made.asm["cubin"]), made.metadata.shared))
            print(f"sm_{target} {kernel.__name__} {[each for each in options.items() if each[0].isupper()]}: {usages[-1]}")

        return launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", _Driver(target))
        patch.setattr(jit.JITFunction, "__getitem__", instead)
        yield usages


class _Driver:
    """As much of Triton's as compiling asks for."""

    def __init__(self, target: int) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target, 32)

    def get_current_device(self) -> int:
        return self.target  # what was compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def _registers(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        out = subprocess.run([str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", out)}
    return found["REG"], found.get("STACK", 0) + found.get("LOCAL", 0)
