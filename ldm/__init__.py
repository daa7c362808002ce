"""ldm: a latent diffusion engine for SDXL.

    import ldm
    pipeline = ldm.load("sd_xl_base_1.0.safetensors")    # no path: the model in the box
    result = pipeline.generate("a red apple on a blue background", seed=1)
    result.images[0].save("apple.png")

The public names are loaded on first use, so `import ldm` costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.errors import InputError, LdmError
    from ldm.pipeline import Pipeline, load
    from ldm.results import Result
    from ldm.text.conditioning import Conditioning

__version__ = "0.1.0"
__all__ = ["Conditioning", "InputError", "LdmError", "Pipeline", "Result", "__version__", "load"]

_HOMES = {
    "Conditioning": "ldm.text.conditioning",
    "InputError": "ldm.errors",
    "LdmError": "ldm.errors",
    "Pipeline": "ldm.pipeline",
    "Result": "ldm.results",
    "load": "ldm.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ldm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
