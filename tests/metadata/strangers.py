"""What other programs write beside their pixels: (name, texts of the file, program, what is understood of it)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Stranger(NamedTuple):
    name: str
    texts: dict[str, str]
    dialect: str
    prompt: str = ""
    negative: str = ""
    settings: Mapping[str, str] = MappingProxyType({})


def graph(**changes: Any) -> dict[str, Any]:
    """ComfyUI's first graph, as it comes out of the box."""
    nodes: dict[str, Any] = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 156680208700286,
                "steps": 20,
                "cfg": 8,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a glass bottle, galaxy", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    }
    return {key: value for key, value in (nodes | changes).items() if value is not None}


def sampler(**inputs: Any) -> dict[str, Any]:
    made: dict[str, Any] = graph()["3"]
    return {**made, "inputs": {**made["inputs"], **inputs}}


COMFY = {
    "Steps": "20",
    "Sampler": "euler",
    "Schedule type": "normal",
    "CFG scale": "8",
    "Seed": "156680208700286",
    "Denoising strength": "1",
}
FULL = {**COMFY, "Size": "1024x768", "Model": "sd_xl_base_1.0.safetensors"}


SIZES = {"width": 2048, "height": 1024, "crop_w": 64, "crop_h": 8, "target_width": 512, "target_height": 256}


def comfy(
    name: str, nodes: Any, prompt: str = "a glass bottle, galaxy", negative: str = "text, watermark", settings: Any = FULL
) -> Stranger:
    return Stranger(f"comfyui: {name}", {"prompt": json.dumps(nodes)}, "comfyui", prompt, negative, settings)


A1111_LINE = (
    "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 31e35c80fc, Model: x"
)
A1111_PAIRS = {
    "Steps": "30",
    "Sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "CFG scale": "7",
    "Seed": "965400086",
    "Size": "512x768",
    "Model hash": "31e35c80fc",
    "Model": "x",
}


def lines(name: str, text: str, prompt: str, negative: str, settings: dict[str, str], dialect: str = "a1111") -> Stranger:
    return Stranger(f"{dialect}: {name}", {"parameters": text}, dialect, prompt, negative, settings)


SWARM = {
    "prompt": "a cat",
    "negativeprompt": "dog",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0",
    "seed": 1,
    "steps": 20,
    "cfgscale": 7.0,
    "width": 1024,
    "height": 1024,
    "swarm_version": "0.9.5.0",
}
SWARMED = {
    "Steps": "20",
    "CFG scale": "7.0",
    "Seed": "1",
    "Model": "OfficialStableDiffusion/sd_xl_base_1.0",
    "Version": "0.9.5.0",
    "Size": "1024x1024",
}


def swarm(
    name: str, said: Any, prompt: str = "a cat", negative: str = "dog", settings: Any = SWARMED, dialect: str = "swarmui"
) -> Stranger:
    return Stranger(
        f"swarmui: {name}", {"parameters": said if isinstance(said, str) else json.dumps(said)}, dialect, prompt, negative, settings
    )


INVOKE = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "dark abstract painting",
    "negative_prompt": "image frame",
    "width": 832,
    "height": 1216,
    "seed": 1554095076,
    "rand_device": "cpu",
    "cfg_scale": 15.0,
    "steps": 50,
    "scheduler": "euler",
    "model": {"key": "9f58", "hash": "blake3:6a22", "name": "someXL_v10", "base": "sdxl", "type": "main"},
    "app_version": "5.4.3",
}
INVOKED = {
    "Steps": "50",
    "Sampler": "euler",
    "CFG scale": "15.0",
    "Seed": "1554095076",
    "Version": "5.4.3",
    "Size": "832x1216",
    "Model": "someXL_v10",
}
WORDS = ("dark abstract painting", "image frame")


def invoke(name: str, said: Any, key: str = "invokeai_metadata", words: Any = WORDS, settings: Any = INVOKED) -> Stranger:
    return Stranger(f"invokeai: {name}", {key: json.dumps(said)}, "invokeai", *words, settings)


NOVEL = {
    "prompt": "1girl, rain",
    "steps": 28,
    "height": 1216,
    "width": 832,
    "scale": 5.0,
    "uncond_scale": 0.0,
    "seed": 3042318414,
    "sampler": "k_euler_ancestral",
    "noise_schedule": "karras",
    "uc": "lowres, bad",
    "request_type": "PromptGenerateRequest",
}
NOVELTY = {"Title": "AI generated image", "Software": "NovelAI", "Source": "Stable Diffusion XL C1E1DE52", "Description": "1girl, rain"}
NOVELS = {
    "Steps": "28",
    "Sampler": "k_euler_ancestral",
    "Schedule type": "karras",
    "CFG scale": "5.0",
    "Seed": "3042318414",
    "Size": "832x1216",
}
SDCPP_PAIRS = {"Steps": "20", "CFG scale": "7.0", "Guidance": "3.5", "Seed": "42", "Size": "512x512", "Model": "m", "RNG": "cuda"}
SDCPP = "a lovely cat\nNegative prompt: blur\nSteps: 20, CFG scale: 7.0, Guidance: 3.5, Seed: 42, Size: 512x512, Model: m, RNG: cuda"


def unknown(name: str, **texts: str) -> Stranger:
    return Stranger(f"unknown: {name}", texts, "unknown")


STRANGERS = [
    # A1111, Forge, SD.Next, Fooocus in its A1111 mode
    lines("plain", f"a red fox\nNegative prompt: blur\n{A1111_LINE}", "a red fox", "blur", A1111_PAIRS),
    lines("no negative", f"a red fox\n{A1111_LINE}", "a red fox", "", A1111_PAIRS),
    lines("no prompt", A1111_LINE, "", "", A1111_PAIRS),
    lines("only a negative", f"Negative prompt: blur\n{A1111_LINE}", "", "blur", A1111_PAIRS),
    lines("many lines", f"a\n\nb, c:1\nNegative prompt: d\ne\n{A1111_LINE}", "a\n\nb, c:1", "d\ne", A1111_PAIRS),
    lines("weights and networks", f"(a:1.2) <lora:b:0.8> [c]\n{A1111_LINE}", "(a:1.2) <lora:b:0.8> [c]", "", A1111_PAIRS),
    lines("emoji", f"🦊 é 狐\n{A1111_LINE}", "🦊 é 狐", "", A1111_PAIRS),
    lines("carriage returns", f"a fox\r\n{A1111_LINE}\r\n", "a fox", "", A1111_PAIRS),
    lines(
        "hashes",
        f'x\n{A1111_LINE}, Lora hashes: "one: 0123456789ab, two: ba9876543210", Version: v1.10.1',
        "x",
        "",
        {**A1111_PAIRS, "Lora hashes": "one: 0123456789ab, two: ba9876543210", "Version": "v1.10.1"},
    ),
    lines(
        "Civitai's resources",
        f'x\n{A1111_LINE}, Hashes: {{"model": "31e35c80fc", "lora:a": "b"}}',
        "x",
        "",
        {**A1111_PAIRS, "Hashes": '{"model": "31e35c80fc"'},
    ),
    lines("hires fix", f"x\n{A1111_LINE}, Hires upscale: 2", "x", "", {**A1111_PAIRS, "Hires upscale": "2"}),
    lines("a quoted value", f'x\n{A1111_LINE}, Note: "a, b: c"', "x", "", {**A1111_PAIRS, "Note": "a, b: c"}),
    lines("Forge", f"x\n{A1111_LINE}, Version: f2.0.1v1.10.1", "x", "", {**A1111_PAIRS, "Version": "f2.0.1v1.10.1"}, "forge"),
    lines("ours without the record", f"x\n{A1111_LINE}, Version: ldm 0.1.0", "x", "", {**A1111_PAIRS, "Version": "ldm 0.1.0"}, "ldm"),
    # stable-diffusion.cpp
    *(
        lines(name, f"{SDCPP}, {text}", "a lovely cat", "blur", {**SDCPP_PAIRS, **pairs}, "sd.cpp")
        for name, text, pairs in (
            ("its version", "Version: stable-diffusion.cpp", {"Version": "stable-diffusion.cpp"}),
            (
                "its object",
                'Version: stable-diffusion.cpp master-5, SDCPP: {"a": 1, "b": 2}',
                {"Version": "stable-diffusion.cpp master-5", "SDCPP": '{"a": 1'},
            ),
        )
    ),
    # ComfyUI
    comfy("the first graph", graph()),
    comfy(
        "sampler with a start step",
        graph(**{"3": {**sampler(noise_seed=7), "class_type": "KSamplerAdvanced"}}),
        settings={**FULL, "Seed": "7"},
    ),
    comfy("two samplers", graph(**{"10": sampler(latent_image=["3", 0], seed=2)})),
    comfy("the second pass stands first", {"10": sampler(latent_image=["3", 0], seed=2), **graph()}),
    comfy(
        "a network between",
        graph(**{"3": sampler(model=["11", 0]), "11": {"class_type": "LoraLoader", "inputs": {"lora_name": "l", "model": ["4", 0]}}}),
        settings={**FULL, "LoRA": "l"},
    ),
    comfy(
        "a prompt in a node of its own",
        graph(
            **{
                "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["12", 0]}},
                "12": {"class_type": "PrimitiveString", "inputs": {"value": "from afar"}},
            }
        ),
        "from afar",
    ),
    comfy(
        "SDXL's node",
        graph(**{"6": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "big", "text_l": "small"}}}),
        "small",
        settings={**FULL, "Second prompt": "big"},
    ),
    comfy(
        "SDXL's sizes, another layer, a negative of zeros, a part of the steps",
        graph(
            **{
                "3": {**sampler(positive=["6", 0], negative=["17", 0], end_at_step=12), "class_type": "KSamplerAdvanced"},
                "6": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "a", "text_l": "a", "clip": ["16", 0], **SIZES}},
                "16": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -3, "clip": ["4", 1]}},
                "17": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
            }
        ),
        "a",
        "",
        {**FULL, "Clip skip": "3", "Original size": "2048x1024", "Crop": "64x8", "Target size": "512x256"}
        | {"Steps run": "0 to 12", "Negative": "zeroed"},
    ),
    Stranger(
        "comfyui: a sampler put together",
        {"prompt": json.dumps({"1": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}})},
        "unknown",
    ),
    comfy(
        "a ControlNet between",
        graph(
            **{
                "3": sampler(positive=["13", 0], negative=["13", 1]),
                "13": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["6", 0], "negative": ["7", 0]}},
            }
        ),
        settings={**FULL, "Nodes": "ControlNetApplyAdvanced"},
    ),
    comfy(
        "a combination",
        graph(**{"3": sampler(positive=["14", 0]), "14": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0]}}}),
        settings={**FULL, "Nodes": "ConditioningCombine"},
    ),
    comfy(
        "a seed by a link",
        graph(**{"3": sampler(seed=["15", 0]), "15": {"class_type": "Seed", "inputs": {"seed": 99}}}),
        settings={**FULL, "Seed": "99"},
    ),
    comfy(
        "a picture at the start",
        graph(**{"5": {"class_type": "VAEEncode", "inputs": {}}}),
        settings={k: v for k, v in FULL.items() if k != "Size"},
    ),
    comfy(
        "a circle",
        graph(**{"6": {"class_type": "ConditioningConcat", "inputs": {"conditioning_to": ["6", 0]}}}),
        "",
        settings={**FULL, "Nodes": "ConditioningConcat"},
    ),
    comfy("links to nothing", {"3": sampler(positive=["99", 0])}, "", "", COMFY),
    comfy("no inputs", {"3": {"class_type": "KSampler"}}, "", "", {}),
    comfy(
        "wrong types", {"3": {"class_type": "KSampler", "inputs": {"seed": True, "steps": [[], 0], "cfg": {}, "model": [1, 0]}}}, "", "", {}
    ),
    Stranger("comfyui: only a workflow", {"workflow": '{"nodes": [{"id": 1}], "links": []}'}, "comfyui"),
    Stranger(
        "comfyui: both",
        {"prompt": json.dumps(graph()), "workflow": '{"nodes": []}'},
        "comfyui",
        "a glass bottle, galaxy",
        "text, watermark",
        FULL,
    ),
    # SwarmUI
    swarm("plain", {"sui_image_params": SWARM}),
    swarm("more beside", {"sui_image_params": SWARM, "sui_extra_data": {"date": "2025-01-01"}, "sui_models": []}),
    swarm(
        "with a sampler",
        {"sui_image_params": {**SWARM, "sampler": "euler", "scheduler": "normal"}},
        settings={**SWARMED, "Sampler": "euler", "Schedule type": "normal"},
    ),
    swarm("no negative", {"sui_image_params": {**SWARM, "negativeprompt": ""}}, negative=""),
    swarm("spread over lines", json.dumps({"sui_image_params": SWARM}, indent=2)),
    # InvokeAI
    invoke("5.4", INVOKE),
    invoke("3.1", {**INVOKE, "model": {"model_name": "someXL_v10", "base_model": "sdxl"}, "loras": [], "controlnets": []}),
    invoke("no model", {**INVOKE, "model": None}, settings={k: v for k, v in INVOKED.items() if k != "Model"}),
    invoke(
        "2.3",
        {"image": {"prompt": [{"prompt": "old", "weight": 1}], "steps": 5, "seed": 1}},
        "sd-metadata",
        ("old", ""),
        {"Steps": "5", "Seed": "1"},
    ),
    invoke("2.2", {"image": {"prompt": "older", "cfg_scale": 7.5}}, "sd-metadata", ("older", ""), {"CFG scale": "7.5"}),
    # NovelAI
    Stranger(
        "novelai: plain",
        {**NOVELTY, "Comment": json.dumps(NOVEL)},
        "novelai",
        "1girl, rain",
        "lowres, bad",
        {**NOVELS, "Model": NOVELTY["Source"]},
    ),
    Stranger(
        "novelai: prompt in the description",
        {"Software": "NovelAI", "Description": "rain", "Comment": json.dumps({"steps": 28, "uc": "x"})},
        "novelai",
        "rain",
        "x",
        {"Steps": "28"},
    ),
    # what is none of them
    Stranger("none: nothing", {}, "none"),
    unknown("a photo editor", Software="GIMP 2.10"),
    unknown("a comment", Comment="Created with GIMP"),
    unknown("a sentence", parameters="just some words"),
    unknown("an object", parameters='{"prompt": "a", "steps": 1}'),
    unknown("a broken object", parameters='{"sui_image_params": {"prompt": "a"'),
    unknown("a list", parameters="[1, 2]"),
    unknown("a graph without a sampler", prompt='{"1": {"class_type": "LoadImage", "inputs": {}}}'),
    unknown("a prompt that is text", prompt="a cat"),
    unknown("NovelAI without settings", Software="NovelAI", Comment="hello"),
    unknown("an object of another program", Comment=json.dumps(NOVEL), Software="other"),
    unknown("InvokeAI's key with a list", invokeai_metadata="[]"),
    unknown("our key with rubbish", ldm="rubbish"),
    unknown("deep", parameters='{"a":' * 100_000, prompt="[" * 100_000),
    unknown(
        "code", parameters="__import__('os').system('false')", prompt="!!python/object/apply:os.system ['false']", workflow="cos\nsystem\n."
    ),
]
