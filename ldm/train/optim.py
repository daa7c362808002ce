"""How a step computes: AdamW, the learning rate's course, autocast, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ldm.train.recipe import Optim, Precision


def build_optimizer(module: nn.Module, numbers: Optim) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); only kernels and matrices decay, embeddings, norms and biases do not."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in module.parameters() if p.ndim > 1 and id(p) not in embeddings]
    others = [p for p in module.parameters() if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": numbers.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=numbers.lr, betas=(0.9, 0.99), fused=True)


def learning_rate(step: int, numbers: Optim) -> float:
    """Linear growth over `warmup` steps, then half a cosine down to `final` of it at the last step."""
    if step < numbers.warmup:
        return numbers.lr * (step + 1) / numbers.warmup
    progress = min(1.0, (step - numbers.warmup) / max(1, numbers.steps - numbers.warmup))
    return numbers.lr * (numbers.final + (1 - numbers.final) * 0.5 * (1 + math.cos(math.pi * progress)))


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Of matrix products and convolutions; nothing in float32."""
    kinds = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return torch.autocast(device.type, kinds[precision] or torch.bfloat16, enabled=kinds[precision] is not None)


class EMA:
    """mean <- mean + (1 - decay) (weights - mean), where decay grows as (1 + step) / (10 + step) up to its limit."""

    def __init__(self, module: nn.Module, limit: float) -> None:
        self.limit = limit
        self.mean = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.limit, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.mean.values()), list(module.state_dict().values()), 1 - decay)

    def load(self, mean: Mapping[str, Tensor]) -> None:
        for name, value in self.mean.items():
            value.copy_(mean[name])
