"""Attention on a GPU: our kernel by Triton's interpreter and compiler, and which implementation is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm import ops
from ldm.errors import InputError
from ldm.measure import relative_error
from ldm.ops import attention as module
from ldm.ops import choice
from ldm.ops.attention import BLOCKS, Blocks, attention, attention_reference, attention_triton, candidates, key, padded, way
from tests.ops.kernels import compiled, interpreted

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
STRIDES = ["q_b", "q_h", "q_t", "k_b", "k_h", "k_s", "v_b", "v_h", "v_s"]


def heads(*sizes: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """(B, T, H, D) in memory, seen as (B, H, T, D): what the models give."""
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype).transpose(1, 2)


def judged(out: Tensor, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> None:
    """The error is at most twice that of the plain computation in the same dtype."""
    exact = attention_reference(q.double(), k.double(), v.double(), causal=causal)
    plain = relative_error(attention_reference(q, k, v, causal=causal), exact)
    assert relative_error(out, exact) <= max(2 * plain, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 40, 64, 80, 128, 160, 512])
def test_the_kernel_is_as_good_as_its_reference(dim: int, dtype: torch.dtype) -> None:
    """Odd lengths of the queries and the keys, the text towers', a single query, and whole blocks."""
    lengths = ((2, 67, 77, False), (1, 77, 77, True), (1, 1, 193, False), (1, 64, 128, False))
    short = ((2, 19, 37, False), (1, 37, 37, True))
    with interpreted(module._kernel):
        for many, queries, count, causal in lengths if dtype != torch.float32 else short:
            q, k, v = (heads(many, size, many, dim, dtype=dtype, seed=seed) for seed, size in enumerate((queries, count, count)))
            out = attention_triton(q, k, v, causal=causal)
            assert out.shape == q.shape and out.dtype == dtype and out.transpose(1, 2).is_contiguous()
            judged(out, q, k, v, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("how", "dim"), [("copied", 64), ("copied", 128), ("loaded", 64), ("loaded", 512)])
def test_every_cut_is_right(how: str, dim: int, causal: bool) -> None:
    q, k, v = (heads(1, 140, 1, dim + 8 * (how == "copied"), seed=seed)[..., :dim] for seed in range(3))
    if how == "loaded":
        k = torch.randn(1, 1, 140, dim + 1).bfloat16()[..., :dim]  # rows that begin anywhere
    assert way(q, k, v) == how
    names = [name.partition(" ")[2] for name in candidates(q, k, v) if name.startswith("triton")]
    assert len(set(names)) == len(BLOCKS[how][dim])
    with interpreted(module._kernel):
        for cut in names:
            judged(attention_triton(q, k, v, causal=causal, cut=cut), q, k, v, causal=causal)
    with pytest.raises(InputError, match="unknown blocks '7x7' of attention: choose from"):
        attention_triton(q, k, v, cut="7x7")


def test_strides_as_the_models_give_them() -> None:
    """Slices of one projection, a text that all images share, a single head over an image, and positions last in memory."""
    together = torch.randn(2, 70, 3, 2, 64).bfloat16()
    q, k, v = (together[:, :, n].transpose(1, 2) for n in range(3))
    shared = heads(1, 77, 2, 64).expand(2, -1, -1, -1)
    image = torch.randn(1, 512, 5, 7).bfloat16().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(1, 1, 35, 512)
    with interpreted(module._kernel), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "fast", lambda *_: True)
        for given, how in (((q, k, v), "copied"), ((q, shared, shared), "loaded"), ((image,) * 3, "copied")):
            assert way(*given) == how
            judged(attention_triton(*given), *given)
        last = torch.randn(1, 1, 512, 35).bfloat16().transpose(2, 3)
        with choice.using(attention="triton"):
            judged(attention(last, last, last), last, last, last)


@pytest.mark.parametrize("dim", [40, 64])
def test_what_lies_beyond_the_ends_is_not_read(dim: int) -> None:
    q, k, v = (torch.full((1, 192, 2, dim), float("nan")).bfloat16().transpose(1, 2)[:, :, :count] for count in (70, 77, 77))
    for seed, each in enumerate((q, k, v)):
        each.copy_(heads(1, each.shape[2], 2, dim, seed=seed))
    with interpreted(module._kernel):
        judged(attention_triton(q, k, v), q, k, v)
        judged(attention_triton(q, k, v, causal=True), q, k, v, causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_zero_keys_weigh_all_values_alike(dtype: torch.dtype, causal: bool) -> None:
    q, v = heads(1, 77, 2, 64, dtype=dtype), heads(1, 77, 2, 64, dtype=dtype, seed=1)
    zeros = torch.zeros_like(v)
    with interpreted(module._kernel):
        assert attention_triton(q, zeros, zeros, causal=causal).count_nonzero() == 0
        judged(attention_triton(q, zeros, v, causal=causal), q, zeros, v, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    """Beyond float16's numbers, and their exponentials beyond float32's: the greatest takes all."""
    q, k, v = (heads(1, 77, 1, 64, dtype=dtype, seed=seed) for seed in range(3))
    q, k = 200 * q, 200 * k
    with interpreted(module._kernel):
        out = attention_triton(q, k, v)
    exact = attention_reference(q.double(), k.double(), v.double())
    assert relative_error(out, exact) < 5e-3 and (q.double() @ k.double().transpose(2, 3)).max() > 1e6


@pytest.mark.parametrize("whole", [True, False])
def test_offsets_beyond_31_bits(whole: bool) -> None:
    """The third image lies 2^31 elements after the first; what lies between is never touched, so it takes no memory."""
    apart, dim = 2**30 + 8, 64 if whole else 40
    images = torch.empty(2 * apart + 128 * dim, dtype=torch.bfloat16).as_strided((3, 1, 128, dim), (apart, dim, dim, 1))
    images.copy_(torch.randn(3, 1, 128, dim))
    with interpreted(module._kernel):
        judged(attention_triton(images, images, images), images, images, images)


@pytest.mark.parametrize(
    ("queries", "count", "dim", "causal", "words"),
    [
        (1024, 1024, 64, False, "self 1024 64"),
        (988, 988, 64, False, "self 1024 64"),
        (4096, 77, 64, False, "cross 77 64"),
        (77, 77, 64, True, "causal 77 64"),
        (1, 1, 40, False, "self 1 40"),
    ],
)
def test_a_shape_in_words(queries: int, count: int, dim: int, causal: bool, words: str) -> None:
    q, k = heads(1, queries, 1, dim), heads(1, count, 1, dim)
    assert key(q, k, causal=causal) == words
    assert key(q.float(), k.float(), causal=causal) == words + " float32"


def test_which_implementation_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the table's, unless one is named; the plain one where a gradient is asked and for the reference."""
    seen: list[str] = []
    q, k, v = heads(2, 9, 2, 64), heads(2, 7, 2, 64), heads(2, 7, 2, 64)
    for name in ("sdpa", "cudnn", "flash"):
        monkeypatch.setitem(module.VENDORS, name, lambda q, *_, name=name: seen.append(name) or q)
    monkeypatch.setattr(module, "attention_triton", lambda q, k, v, *, causal, cut: seen.append(f"triton {cut}, causal {causal}") or q)
    monkeypatch.setattr(ops, "fast", lambda *given: not any(each.requires_grad for each in given))
    attention(q, k, v)
    for name in ("cudnn", "triton", "triton 64x64"):
        with choice.using(attention=name):
            attention(q, k, v, causal=True)
            for given in ((q.clone().requires_grad_(), k, v), (q, k.clone().requires_grad_(), v), (q, k, v.clone().requires_grad_())):
                assert attention(*given).requires_grad
            with ops.reference():
                attention(q, k, v)
    monkeypatch.setattr(choice, "chosen", lambda op, shape, device, default: {"cross 7 64": "flash"}.get(shape, default))
    attention(q, k, v)
    assert seen == ["sdpa", "cudnn", "triton , causal True", "triton 64x64, causal True", "flash"]


def test_a_name_that_no_implementation_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "fast", lambda *_: True)
    q = heads(1, 9, 1, 64)
    with choice.using(attention="tritn"), pytest.raises(InputError, match=r"unknown attention 'tritn'.*triton"):
        attention(q, q, q)


@pytest.mark.parametrize("name", ["sdpa", "cudnn", "flash", "efficient"])
def test_vendors_kernels_take_what_we_give(name: str) -> None:
    q, k = heads(2, 9, 3, 64).to("meta"), heads(2, 77, 3, 64).to("meta")
    assert module.implementation(name)(q, k, k, False).shape == q.shape
    assert module.implementation(name)(q, q, q, True).shape == q.shape


@pytest.mark.parametrize(("images", "blocks"), [(1, (64, 128)), (4, (128, 128))])
def test_many_rows_take_larger_blocks(images: int, blocks: tuple[int, int]) -> None:
    assert module._blocks(BLOCKS["copied"][64], 2 * images * 20 * 1024, "")[:2] == blocks


# What is taken unasked on an H200 (90), a B200 (100) and an A100 (80), and at width 64 by a table or a name.
BUILT = [
    *(("copied", 64, blocks, 90) for blocks in BLOCKS["copied"][64]),
    ("copied", 64, BLOCKS["copied"][64][0], 100),
    *(("copied", dim, BLOCKS["copied"][dim][0], 90) for dim in (128, 512)),
    *(("loaded", dim, BLOCKS["loaded"][padded(dim)][0], 80) for dim in (64, 512)),
    ("loaded", 64, BLOCKS["loaded"][64][1], 90),
    ("float32", 64, BLOCKS["float32"][64][0], 90),
]


@pytest.mark.parametrize(("how", "dim", "blocks", "target"), BUILT)
def test_it_compiles_and_fits(how: str, dim: int, blocks: Blocks, target: int) -> None:
    """Within the shared memory of a multiprocessor, with no more than a few registers spilled."""
    pytest.importorskip("triton")
    constants = module.constants(dim, blocks, copied=how == "copied", causal=dim == 64 and how == "loaded", tail=True)
    number = "fp32" if how == "float32" else "bf16"
    sides = {"q": (blocks.rows, constants["WIDTH"]), "k": (blocks.keys, constants["WIDTH"]), "v": (blocks.keys, constants["PART"])}
    described = {name: f"tensordesc<{number}[1, 1, {rows}, {width}]>" for name, (rows, width) in sides.items()}
    given = described if how == "copied" else dict.fromkeys(sides, f"*{number}")
    types = {**given, "out": f"*{number}", "scale": "fp32"} | dict.fromkeys(["T", "S", "H", *STRIDES], "i32")
    aligned = ["out", *STRIDES] + list(sides) * (how != "copied")
    usage = compiled(module._kernel(), types, constants, target, aligned, **module.options(blocks))
    assert usage.shared <= (163 if target == 80 else 227) * 1024
    assert usage.spilled <= (16 if how == "copied" and target == 90 else 96)
