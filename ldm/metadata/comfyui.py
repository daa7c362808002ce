"""ComfyUI's graph of nodes as A1111's words: the sampler node, and what its inputs lead to.

    {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["6", 0], ...}}, "6": {"class_type": "CLIPTextEncode", ...}}

An input is a value, or a link [node id, output]. Links are followed with a limit, so a graph that is a circle ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Graph = Mapping[str, Any]
_SETTINGS = {
    "steps": "Steps",
    "sampler_name": "Sampler",
    "scheduler": "Schedule type",
    "cfg": "CFG scale",
    "seed": "Seed",
    "noise_seed": "Seed",
    "denoise": "Denoising strength",
}
_TEXTS = ("text", "text_g", "text_l", "string", "value")
_ON = ("conditioning", "conditioning_1", "conditioning_to", "positive", "negative")  # the inputs of nodes between a prompt and its sampler
_FAR = 50  # links followed


def read(graph: Graph) -> tuple[str, str, dict[str, str]] | None:
    """Prompt, negative and settings of the first sampler that starts from an empty picture, else of the first; None without one."""
    samplers = [node for node in graph.values() if "KSampler" in _kind(node)]
    if not samplers:
        return None
    chosen = next((node for node in samplers if _size(graph, node)), samplers[0])
    inputs = _inputs(chosen)
    settings = {name: _value(graph, inputs.get(key)) for key, name in _SETTINGS.items() if key in inputs}
    settings |= {"Size": _size(graph, chosen), "Model": _model(graph, chosen)}
    positive, negative = (_prompt(graph, inputs.get(name), name) for name in ("positive", "negative"))
    return positive, negative, {name: value for name, value in settings.items() if value}


def _kind(node: Any) -> str:
    kind = node.get("class_type") if isinstance(node, dict) else None
    return kind if isinstance(kind, str) else ""


def _inputs(node: Any) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _follow(graph: Graph, link: Any) -> Any:
    """The node that a link names; None for anything else."""
    return graph.get(link[0]) if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str) else None


def _value(graph: Graph, value: Any) -> str:
    """A value, or that of the node it is linked to."""
    for _ in range(_FAR):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                return str(value)
            except ValueError:  # a number with more digits than Python prints
                return ""
        inputs = _inputs(_follow(graph, value))
        value = next((inputs[name] for name in (*_TEXTS, "seed", "noise_seed", "int", "float") if name in inputs), None)
    return ""


def _prompt(graph: Graph, link: Any, side: str) -> str:
    for _ in range(_FAR):
        inputs = _inputs(_follow(graph, link))
        text = next((_value(graph, inputs[name]) for name in _TEXTS if name in inputs), "")
        if text:
            return text
        link = inputs.get(side) or next((inputs[name] for name in _ON if name in inputs), None)
    return ""


def _size(graph: Graph, node: Any) -> str:
    inputs = _inputs(_follow(graph, _inputs(node).get("latent_image")))
    width, height = (_value(graph, inputs.get(name)) for name in ("width", "height"))
    return f"{width}x{height}" if width and height else ""


def _model(graph: Graph, node: Any) -> str:
    for _ in range(_FAR):
        inputs = _inputs(node)
        for name in ("ckpt_name", "unet_name"):
            if isinstance(inputs.get(name), str):
                return str(inputs[name])
        node = _follow(graph, inputs.get("model"))
    return ""
