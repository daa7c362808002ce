"""The operations at the shapes of SDXL: its UNet at 1024x1024 with guidance, its VAE for one picture."""

from __future__ import annotations

from scripts.bench import calls
from scripts.bench.operations import REDUCED, Op

Dims = tuple[int, ...]


def named(*each: Dims) -> dict[str, Dims]:
    """Shapes by their numbers."""
    return {" ".join(map(str, dims)): dims for dims in each}


SDPA = {name: calls.sdpa(name) for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")}
HEADS = {  # batch, heads, tokens, of the text or again, head dimension
    "self 1024 64": (2, 20, 1024, 1024, 64),
    "self 4096 64": (2, 10, 4096, 4096, 64),
    "cross 1024 64": (2, 20, 1024, 77, 64),
    "cross 4096 64": (2, 10, 4096, 77, 64),
    "self 16384 512": (1, 1, 16384, 16384, 512),
}
GROUPS = named(  # batch, channels, side
    *((2, 320, 128), (2, 960, 128), (2, 640, 64), (2, 1920, 64), (2, 1280, 32), (2, 2560, 32)),
    *((1, 512, 128), (1, 512, 256), (1, 512, 512), (1, 256, 512), (1, 256, 1024), (1, 128, 1024)),
)
ROWS = named((2048, 1280), (8192, 640))  # tokens, width
PRODUCTS = named(  # rows, width after, width before
    *((2048, 1280, 1280), (2048, 3840, 1280), (2048, 1280, 5120), (2048, 10240, 1280)),
    *((8192, 640, 640), (8192, 1920, 640), (8192, 640, 2560), (8192, 5120, 640)),
)
GATED = named((2048, 5120, 1280), (8192, 2560, 640))  # rows, width of the result, width before
CONVS = named(  # batch, channels before and after, side
    *((2, 320, 320, 128), (2, 960, 320, 128), (2, 640, 640, 64), (2, 1920, 640, 64), (2, 1280, 1280, 32), (2, 2560, 1280, 32)),
    *((1, 512, 512, 128), (1, 512, 512, 256), (1, 512, 512, 512), (1, 256, 256, 512), (1, 256, 256, 1024), (1, 128, 128, 1024)),
)
DOUBLED = named((2, 1280, 32), (2, 640, 64), (1, 512, 128), (1, 512, 256), (1, 256, 512))  # batch, channels, side before

OPS: dict[str, Op] = {
    "attention": Op(
        "attention",
        HEADS,
        (1, 2, 48, 48, 16),
        calls.attention_inputs,
        calls.attention_plain,
        calls.attention_work,
        calls.attention,
        SDPA,
        name="attention",
        names=calls.attention_names,
        key=calls.attention_key,
    ),
    "group-norm": Op(
        "GroupNorm and SiLU, channels last",
        GROUPS,
        (1, 16, 8),
        calls.group_inputs,
        calls.group_plain,
        calls.group_work,
        calls.group,
        {},
    ),
    "add-norm": Op(
        "residual sum and LayerNorm",
        ROWS,
        (16, 32),
        calls.added_inputs,
        calls.added_plain,
        calls.added_work,
        calls.added,
        {},
    ),
    "geglu": Op(
        "feed-forward's first product with its GEGLU",
        GATED,
        (16, 24, 32),
        calls.geglu_inputs,
        calls.geglu_plain,
        calls.geglu_work,
        calls.geglu,
        {},
        name="geglu",
        names=lambda *inputs: ("triton", "pointwise", "plain"),
    ),
    "linear": Op(
        "linear layer",
        PRODUCTS,
        (16, 24, 32),
        calls.linear_inputs,
        calls.linear_plain,
        calls.linear_work,
        calls.linear,
        {},
    ),
    "fp8": Op(
        "linear layer in 8 bits, quantising its rows",
        PRODUCTS,
        (16, 32, 32),
        calls.linear_inputs,
        calls.linear_plain,
        calls.linear_work,
        calls.fp8,
        {},
        name="fp8",
        names=lambda *inputs: ("vendor", "triton"),
        limit=REDUCED,
    ),
    "fp8-geglu": Op(
        "the feed-forward's first product in 8 bits, with its GEGLU",
        GATED,
        (16, 32, 32),
        calls.geglu_inputs,
        calls.geglu_plain,
        calls.geglu_work,
        calls.geglu_fp8,
        {},
        name="fp8_geglu",
        names=lambda *inputs: ("vendor", "triton"),
        key=calls.geglu_fp8_key,
        limit=REDUCED,
    ),
    "conv": Op(
        "convolution 3x3, channels last",
        CONVS,
        (1, 16, 16, 8),
        calls.conv_inputs,
        calls.conv_plain,
        calls.conv_work,
        None,
        {"channels first": calls.conv_first},
    ),
    "upsample": Op(
        "to twice the size, then convolution 3x3",
        DOUBLED,
        (1, 16, 8),
        calls.upsample_inputs,
        calls.upsample_plain,
        calls.upsample_work,
        calls.upsample,
        {},
        name="upsample",
        names=lambda *inputs: ("phases", "triton"),
        key=calls.upsample_key,
    ),
}
