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
_ZEROED = "ConditioningZeroOut"


def read(graph: Graph) -> tuple[str, str, dict[str, str]] | None:
    """Prompt, negative and settings of the first sampler that starts from an empty picture, else of the first; None without one."""
    samplers = [node for node in graph.values() if "KSampler" in _kind(node) and _kind(node) != "KSamplerSelect"]
    if not samplers:
        return None
    chosen = next((node for node in samplers if _size(graph, node)), samplers[0])
    inputs = _inputs(chosen)
    (positive, passed), (negative, under) = (_encoder(graph, inputs.get(name), name) for name in ("positive", "negative"))
    settings = {name: _value(graph, inputs.get(key)) for key, name in _SETTINGS.items() if key in inputs}
    settings |= {"Size": _size(graph, chosen), "Clip skip": _clip_skip(graph, positive)} | _told(graph, positive)
    settings |= {"Model": _model(graph, chosen, "ckpt_name", "unet_name"), "LoRA": _model(graph, chosen, "lora_name")}
    others = [kind for kind in dict.fromkeys((*passed, *under)) if kind != _ZEROED]
    settings |= {"Steps run": _part(graph, inputs), "Nodes": ", ".join(others), "Batch size": _batch(graph, inputs)}
    texts = _texts(graph, positive), ("", "") if _ZEROED in under else _texts(graph, negative)
    settings |= {"Second prompt": texts[0][1], "Second negative": texts[1][1], "Negative": "zeroed" if _ZEROED in under else ""}
    return texts[0][0], texts[1][0], {name: value for name, value in settings.items() if value}


def _part(graph: Graph, inputs: Mapping[str, Any]) -> str:
    """The steps that a sampler makes of all, where it does not make all."""
    first, last = (_value(graph, inputs.get(name)) for name in ("start_at_step", "end_at_step"))
    to_the_end = not last.isdecimal() or len(last) > 3 or last == _value(graph, inputs.get("steps"))  # 10000 is its word for the end
    whole = first in ("", "0") and to_the_end
    return "" if whole else f"{first or 0} to {last or 'the end'}"


def _batch(graph: Graph, inputs: Mapping[str, Any]) -> str:
    """Of how many pictures this is one, where it is not alone."""
    count = _value(graph, _inputs(_follow(graph, inputs.get("latent_image"))).get("batch_size"))
    return "" if count == "1" else count


def _texts(graph: Graph, encoder: Mapping[str, Any]) -> tuple[str, str]:
    """What the first tower reads, and the second where that is another."""
    first, second = (_value(graph, encoder.get(name)) for name in ("text_l", "text_g"))
    if first or second:
        return first, second if second != first else ""
    return next((_value(graph, encoder[name]) for name in _TEXTS if name in encoder), ""), ""


def _told(graph: Graph, encoder: Mapping[str, Any]) -> dict[str, str]:
    """The sizes that an encoder of SDXL tells the model."""
    if "text_g" not in encoder:
        return {}
    names = {"Original size": ("width", "height"), "Crop": ("crop_w", "crop_h"), "Target size": ("target_width", "target_height")}
    pairs = {name: [_value(graph, encoder.get(each)) for each in both] for name, both in names.items()}
    return {name: "x".join(pair) for name, pair in pairs.items() if all(pair)}


def _clip_skip(graph: Graph, encoder: Mapping[str, Any]) -> str:
    node = _follow(graph, encoder.get("clip"))
    for _ in range(_FAR):
        layer = _inputs(node).get("stop_at_clip_layer")
        if type(layer) is int:
            return str(-layer)
        node = _follow(graph, _inputs(node).get("clip"))
    return ""


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


def _encoder(graph: Graph, link: Any, side: str) -> tuple[Mapping[str, Any], list[str]]:
    """The inputs of the node that encodes a text, and the kinds of those between it and the sampler."""
    passed: list[str] = []
    for _ in range(_FAR):
        node = _follow(graph, link)
        inputs = _inputs(node)
        if any(_value(graph, inputs[name]) for name in _TEXTS if name in inputs) or not inputs:
            return inputs, passed
        if _kind(node) != "CLIPTextEncode":
            passed.append(_kind(node)[:40])
        link = inputs.get(side) or next((inputs[name] for name in _ON if name in inputs), None)
    return {}, passed


def _size(graph: Graph, node: Any) -> str:
    inputs = _inputs(_follow(graph, _inputs(node).get("latent_image")))
    width, height = (_value(graph, inputs.get(name)) for name in ("width", "height"))
    return f"{width}x{height}" if width and height else ""


def _model(graph: Graph, node: Any, *names: str) -> str:
    """What the first node on the way of the model says of itself under one of these names."""
    for _ in range(_FAR):
        inputs = _inputs(node)
        found = next((inputs[name] for name in names if isinstance(inputs.get(name), str)), None)
        if found is not None:
            return str(found)
        node = _follow(graph, inputs.get("model"))
    return ""
