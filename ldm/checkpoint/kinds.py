"""What any safetensors file of this field is, from the names and shapes in its header alone, without torch.

A title claims what can be known: fine-tunes, distillations and the models they come from often have the same names and shapes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ldm.checkpoint.adapters import adapter
from ldm.checkpoint.identity import (
    CROSS,
    DIFFUSERS,
    FAMILY_KEY,
    OFFICIAL,
    UNET,
    VAE,
    Identity,
    any_holding,
    any_starting,
    first_ending,
    shape,
)

if TYPE_CHECKING:
    from ldm.checkpoint.safetensors import Header

V_WORDS = ("v", "v_pred", "v_prediction", "v-prediction")
SPEC = "modelspec."
READ_KEYS = (FAMILY_KEY, *(SPEC + key for key in ("prediction_type", "predict_key", "architecture", "title", "hash_sha256")))
OTHER_NOISE = {  # markers of models with SDXL base's names and shapes that are sampled otherwise
    "edm_vpred.sigma_max": "CosXL",
    "edm_vpred.sigma_min": "CosXL",
    "edm_mean": "Playground v2.5",
    "edm_std": "Playground v2.5",
}
DEPTHS = {  # (what a UNet's widths are, the most transformer blocks in a row on its way down) -> the model
    ("SDXL base", 10): "SDXL base",
    ("SDXL refiner", 4): "SDXL refiner",
    ("SDXL base", 4): "SSD-1B",  # these four: ComfyUI, comfy/supported_models.py
    ("SDXL base", 2): "Segmind Vega",
    ("SDXL base", 6): "KOALA 1B",
    ("SDXL base", 5): "KOALA 700M",
}
CHANNELS = {5: "depth", 7: "upscaling", 8: "image-editing", 9: "inpainting"}  # what a UNet that takes so many channels is for
LATENTS = {4: "SDXL, SD 2.x or SD 1.x", 16: "SD 3 or Flux"}  # whose latents have so many channels
FOLDER = "folders in diffusers' layout are not read: take the single file of the model (such as sd_xl_base_1.0.safetensors)"
SINGLE = "the text towers are not in the file: give a whole checkpoint in one file"
ONLY = "SDXL base, refiner and Turbo are run: give a checkpoint of these"
_DOWN = re.compile(r".*(?:input|down)_blocks\..*\.transformer_blocks\.(\d{1,3})\.norm1\.weight")
_ENCODERS = {768: ("CLIP ViT-L/14", "SDXL base or SD 1.x"), 1024: ("OpenCLIP ViT-H/14", "SD 2.x"), 1280: ("OpenCLIP ViT-bigG/14", "SDXL")}


def identify(header: Header) -> Identity:
    """What the file is; of kind "unknown" where nothing fits."""
    tests = (_foreign, _controlnet, adapter, _original, _folder_unet, _vae, _taesd, _encoder, _other_encoder)
    for test in tests:
        found: Identity | None = test(header)
        if found is not None:
            return found
    count = len(header.tensors)
    return Identity("unknown", "", "", f"unknown kind of file ({count:,} tensor{'s' if count != 1 else ''}, none of a known name)")


def said_of_prediction(header: Header) -> str:
    """What ModelSpec's field (or ComfyUI's, which has another name) says of the prediction, in small letters."""
    said = header.metadata.get(f"{SPEC}prediction_type") or header.metadata.get(f"{SPEC}predict_key", "")
    return said.strip().lower()


def predicts_v(header: Header) -> bool:
    """Whether a file says that its UNet predicts v: the marker of NoobAI-XL and ComfyUI, or ModelSpec's field."""
    return "v_pred" in header.tensors or said_of_prediction(header) in V_WORDS


def is_turbo(header: Header) -> bool:
    """Whether a file with the shapes of SDXL base says that it is Turbo: by the buffer of the official files, or by ModelSpec."""
    if "denoiser.sigmas" in header.tensors:
        return "denoiser.log_sigmas" not in header.tensors
    said = f"{header.metadata.get(f'{SPEC}architecture', '')} {header.metadata.get(f'{SPEC}title', '')}"
    return any(word in said.lower().replace("_", "-") for word in ("sdxl-turbo", "sd-xl-turbo", "sdxl turbo", "xl-v1-turbo", "xl-turbo-v1"))


def unread_metadata(header: Header) -> list[str]:
    """The keys of a file's metadata that nothing is made of, sorted: text of a stranger, which no code follows."""
    return sorted(key for key in header.metadata if key not in READ_KEYS)


def _foreign(header: Header) -> Identity | None:
    """Models of other kinds, by parts of names that nothing else has."""
    others = (
        ("checkpoint", "SD 3", "SD 3 checkpoint", ("joint_blocks.",)),
        ("adapter", "Flux", "LoRA or adapter for Flux", ("lora_unet_double_blocks",)),
        ("checkpoint", "Flux", "Flux checkpoint", ("double_blocks.",)),
        ("checkpoint", "SVD", "SVD checkpoint (video)", (".time_stack.", ".temporal_transformer_blocks.")),
        ("adapter", "", "AnimateDiff motion module", ("motion_modules.",)),
        ("adapter", "", "IP-Adapter", ("ip_adapter.", ".to_k_ip.")),
        ("ControlNet", "", "ControlNet in LoRA form (Control-LoRA)", ("lora_controlnet",)),
    )
    for kind, model, name, parts in others:
        if any_holding(header, *parts) and not (kind == "checkpoint" and any_holding(header, ".lora_A.", ".lora_down.", ".lora.down.")):
            return Identity(kind, model, "", name, remedy=ONLY)
    return None


def _model(width: int, vector: int, cross: int) -> str:
    """The model of a UNet: width of its first layer, of its vector conditioning and of the text it reads."""
    sizes = {"SDXL base": (320, 2816), "SDXL refiner": (384, 2560), "SD 2.x": (320, 0), "SD 1.x": (320, 0)}
    model = CROSS.get(cross, "")
    return model if sizes.get(model) == (width, vector) else ""


def _unet(header: Header, first: str, vector: str, prefix: str = "") -> tuple[str, int]:
    """(model or "", channels that it takes)."""
    sides = shape(header, first)
    if len(sides) != 4:
        return "", 0
    model = _model(sides[0], (shape(header, vector) or (0, 0))[-1], (first_ending(header, "attn2.to_k.weight", prefix) or (0,))[-1])
    return model, sides[1]


def _by_depth(header: Header, model: str) -> str:
    """The model of a whole UNet whose widths are those of `model`: distilled ones have the widths of SDXL base and fewer blocks."""
    if not model.startswith("SDXL"):
        return model
    numbers = [int(found[1]) for found in map(_DOWN.fullmatch, header.tensors) if found]
    return DEPTHS.get((model, 1 + max(numbers, default=-1)), "")


def _original(header: Header) -> Identity | None:
    """A file with a UNet under the official names: a checkpoint, or the UNet alone."""
    prefix = next((start for start in (UNET, "") if f"{start}input_blocks.0.0.weight" in header.tensors), None)
    if prefix is None:
        return None
    model, channels = _unet(header, f"{prefix}input_blocks.0.0.weight", f"{prefix}label_emb.0.0.weight", prefix)
    model = _by_depth(header, model)
    named, details = _variant(header, model, channels)
    if not any_starting(header, "conditioner.", "cond_stage_model."):
        name = f"{named or 'unknown'} UNet without its text towers"
        return Identity("UNet", named, OFFICIAL, name, tuple(details), remedy=SINGLE)
    details += ["without a VAE"] if not any_starting(header, VAE) else []
    if not model and FAMILY_KEY in header.metadata:
        return Identity("checkpoint", "", OFFICIAL, f"checkpoint of a family of its own ({FAMILY_KEY})", tuple(details), "--model", ONLY)
    runs = named in ("SDXL base 1.0", "SDXL base 0.9", "SDXL refiner 1.0", "SDXL refiner 0.9", "SDXL Turbo")
    name = f"{named} checkpoint" if named else "checkpoint of an unknown family (its UNet has shapes that are not known)"
    name += " or a fine-tune of it" if named.endswith(" 1.0") else ""
    return Identity("checkpoint", named, OFFICIAL, name, tuple(details), "--model" if runs else "", ONLY)


def _purpose(model: str, channels: int) -> str:
    """ "SDXL inpainting" for a UNet that takes 9 channels."""
    return f"{model.removesuffix(' base')} {CHANNELS[channels]}" if model and channels in CHANNELS else model


def _variant(header: Header, model: str, channels: int) -> tuple[str, list[str]]:
    """The model, more exactly, by what stands beside the UNet, and more about it."""
    copy = "EMA copy of the UNet" if any_starting(header, "model_ema.diffusion_model") else "EMA counters"
    details = [copy] if any_starting(header, "model_ema.") else []
    if channels not in (4, 0):
        details.insert(0, f"its UNet takes {channels} channels, not 4")
        base = "CosXL" if "edm_vpred.sigma_max" in header.tensors else model
        return _purpose(base, channels), details
    if model.startswith("SDXL"):
        model, more = _sdxl(header, model)
        return model, more + details
    return model, details


def _sdxl(header: Header, model: str) -> tuple[str, list[str]]:
    for marker, name in OTHER_NOISE.items():
        if marker in header.tensors:
            return name, [f"marked by {marker}"]
    details = ["v-prediction"] if predicts_v(header) else []
    details += ["zero terminal SNR"] if "ztsnr" in header.tensors else []
    if model == "SDXL base" and is_turbo(header):
        return "SDXL Turbo", details
    return f"{model} {'0.9' if 'denoiser.log_sigmas' in header.tensors else '1.0'}", details


def _controlnet(header: Header) -> Identity | None:
    remedy = "ControlNets are not applied yet: give an SDXL base, refiner or Turbo checkpoint"
    for layout, mark, first, vector in (
        (DIFFUSERS, "controlnet_cond_embedding.conv_in.weight", "conv_in.weight", "add_embedding.linear_1.weight"),
        (f"{OFFICIAL} (control_model.)", "control_model.input_hint_block.0.weight", "control_model.input_blocks.0.0.weight", ""),
        (f"{OFFICIAL} without a prefix", "input_hint_block.0.weight", "input_blocks.0.0.weight", ""),
    ):
        if mark not in header.tensors:
            continue
        blocks = any_holding(header, "attn2.to_k.weight")
        model = _unet(header, first, vector)[0] or {2816: "SDXL base", 2560: "SDXL refiner"}.get((shape(header, vector) or (0,))[-1], "")
        details = () if blocks else ("small: no transformer blocks",)
        name = f"ControlNet for {model or 'a model that is not known'}"
        return Identity("ControlNet", model, layout, name, details, remedy=remedy)
    return None


def _folder_unet(header: Header) -> Identity | None:
    if "conv_in.weight" not in header.tensors or not any_starting(header, "down_blocks."):
        return None
    model, channels = _unet(header, "conv_in.weight", "add_embedding.linear_1.weight")
    details = [f"takes {channels} channels, not 4"] if channels != 4 else []
    named = _purpose(_by_depth(header, model), channels)
    return Identity("UNet", named, DIFFUSERS, f"{named or 'unknown'} UNet", tuple(details), remedy=FOLDER)


def _vae(header: Header) -> Identity | None:
    official = next((start for start in ("", VAE) if f"{start}decoder.mid.block_1.conv1.weight" in header.tensors), None)
    folder = any_starting(header, "decoder.mid_block.")
    if official is None and not folder:
        return None
    channels = (shape(header, f"{official or ''}decoder.conv_in.weight") or (0, 0))[1]
    model = LATENTS.get(channels, "")
    name = f"VAE of {model} (they have the same names and shapes)" if model else f"VAE of {channels} channels"
    details = ["older attention names"] if any_holding(header, ".proj_attn.") else []
    details += ["EMA counters"] if "model_ema.decay" in header.tensors else []
    details += ["encoder alone"] if not any_holding(header, "decoder.") else []
    if folder:
        remedy = "VAEs are read in the official layout: give such a file with --vae, and a checkpoint as the model"
        return Identity("VAE", model, DIFFUSERS, name, tuple(details), remedy=remedy)
    remedy = "give it with --vae, and a checkpoint as the model"
    return Identity("VAE", model, OFFICIAL, name, tuple(details), "--vae" if channels == 4 else "", remedy)


def _taesd(header: Header) -> Identity | None:
    remedy = "TAESD is not used yet: give an SDXL base, refiner or Turbo checkpoint"
    if any_starting(header, "decoder.layers.", "encoder.layers.") and any_holding(header, ".conv.0.weight"):
        both = [part for part in ("encoder", "decoder") if any_starting(header, f"{part}.layers.")]
        layout, words, channels = DIFFUSERS, " and ".join(both), (shape(header, "decoder.layers.0.weight") or (0, 0))[1]
    elif shape(header, "1.weight")[2:] == (3, 3) and "3.conv.0.weight" in header.tensors:
        layout, words, channels = OFFICIAL, "decoder", shape(header, "1.weight")[1]
    elif shape(header, "0.weight")[1:] == (3, 3, 3) and "1.conv.0.weight" in header.tensors:
        layout, words, channels = OFFICIAL, "encoder", (first_ending(header, "14.weight") or (0,))[0]
    else:
        return None
    model = LATENTS.get(channels, "")
    name = f"TAESD {words} for {model} (they have the same names and shapes)" if model else f"TAESD {words}"
    return Identity("TAESD", model, layout, name, remedy=remedy)


def _encoder(header: Header) -> Identity | None:
    if not any_starting(header, "text_model.encoder.layers."):
        return None
    width = (shape(header, "text_model.embeddings.token_embedding.weight") or (0,))[-1]
    encoder, model = _ENCODERS.get(width, ("CLIP", ""))
    folder = {"SDXL": " (text_encoder_2)", "SDXL base or SD 1.x": " (text_encoder)"}.get(model, "")
    name = f"{encoder} text encoder" + (f" of {model}" if model else "")
    return Identity("text encoder", model, DIFFUSERS + folder, name, remedy=FOLDER)


def _other_encoder(header: Header) -> Identity | None:
    if any_starting(header, "encoder.block.0.layer.0.SelfAttention."):
        return Identity("text encoder", "SD 3 or Flux", DIFFUSERS, "T5 text encoder of SD 3 or Flux", remedy=ONLY)
    if any_starting(header, "transformer.resblocks.") and "token_embedding.weight" in header.tensors:
        encoder, model = _ENCODERS.get(shape(header, "token_embedding.weight")[-1], ("OpenCLIP", ""))
        name = f"{encoder} text encoder" + (f" of {model}" if model else "")
        return Identity("text encoder", model, "OpenCLIP's layout", name, remedy=SINGLE)
    return None
