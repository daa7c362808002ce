"""Other people's code that these tests compare with, loaded without the rest of its package."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

_PACKAGE = "k_diffusion_alone"

# Our names -> k-diffusion's functions. DDIM at eta 0 is Euler's method.
FUNCTIONS = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "lms": "sample_lms",
    "dpmpp_2m": "sample_dpmpp_2m",
    "dpmpp_sde": "sample_dpmpp_sde",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
    "ddim": "sample_euler",
    "dpm2": "sample_dpm_2",
    "dpm2_a": "sample_dpm_2_ancestral",
    "dpmpp_2s_a": "sample_dpmpp_2s_ancestral",
    "dpmpp_3m_sde": "sample_dpmpp_3m_sde",
    "dpmpp_2m_sde_heun": "sample_dpmpp_2m_sde",
    "dpm_fast": "sample_dpm_fast",
    "dpm_adaptive": "sample_dpm_adaptive",
    "euler_cfg_pp": "sample_euler",  # without guidance
    "euler_a_cfg_pp": "sample_euler_ancestral",
}
OWN_SIGMAS = ("dpm_fast", "dpm_adaptive")


def k_diffusion(name: str) -> ModuleType:
    """k-diffusion's module "sampling" or "external" alone: its package would import 17 training dependencies. Skips without it."""
    for needed in ("scipy", "torchdiffeq", "torchsde"):
        pytest.importorskip(needed, reason=f"k-diffusion's samplers import {needed} (extra: parity)")
    folder = next((folder for folder in map(Path, sys.path) if (folder / "k_diffusion" / "sampling.py").is_file()), None)
    if folder is None:
        pytest.skip("k-diffusion is not installed (pip install --no-deps k-diffusion)")
    if _PACKAGE not in sys.modules:
        _add(_PACKAGE)
        _add(f"{_PACKAGE}.utils", append_dims=lambda x, ndim: x.reshape(x.shape + (1,) * (ndim - x.ndim)))
        for module in ("sampling", "external"):
            _load(module, folder / "k_diffusion" / f"{module}.py")
    return sys.modules[f"{_PACKAGE}.{name}"]


def _add(name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(members)
    module.__path__ = []
    sys.modules[name] = module


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"{_PACKAGE}.{name}", path)
    assert spec and spec.loader
    sys.modules[f"{_PACKAGE}.{name}"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def k_sample(
    name: str,
    denoise: Callable[[Tensor, float], Tensor],
    x: Tensor,
    sigmas: Sequence[float],
    noise: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """What k-diffusion's function for our sampler `name` ends at; `noise(sigma, sigma_next)` is injected where it takes one."""
    sample = getattr(k_diffusion("sampling"), FUNCTIONS[name])
    extra: dict[str, Any] = {"noise_sampler": noise} if noise is not None else {}
    if name == "dpmpp_2m_sde_heun":
        extra["solver_type"] = "heun"
    if name in OWN_SIGMAS:
        return _on_own_sigmas(sample, name, denoise, x, sigmas, extra | {"eta": float(noise is not None)})
    out: Tensor = sample(lambda y, s: denoise(y, float(s[0])), x, torch.tensor(sigmas, dtype=x.dtype), disable=True, **extra)
    return out


def _on_own_sigmas(
    sample: Callable[..., Tensor], name: str, denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Sequence[float], extra: Any
) -> Tensor:
    """The same of the functions that take the ends of the list, and for one of them the number of steps."""
    ends = [torch.tensor(end, dtype=x.dtype) for end in (sigmas[-1] or sigmas[-2], sigmas[0])]
    count = [len(sigmas) - 1] if name == "dpm_fast" else []
    default = torch.get_default_dtype()
    torch.set_default_dtype(x.dtype)
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, on a tensor made of a tensor
            return sample(lambda y, s: denoise(y, float(s[0])), x, *ends, *count, disable=True, **extra)
    finally:
        torch.set_default_dtype(default)
