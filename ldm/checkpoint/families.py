"""Which model a file holds, from the names and shapes in its header alone, without torch."""

from __future__ import annotations

import json
from dataclasses import replace

from ldm.checkpoint.safetensors import Header
from ldm.errors import InputError
from ldm.models.shapes import Family, TowerShape, load_family
from ldm.resources import names

UNET = "model.diffusion_model."
VAE = "first_stage_model."
FAMILY_KEY = "ldm.family"  # in __metadata__: the family's numbers as JSON
EXPECTED = "expected an SDXL base or refiner checkpoint in the official single-file layout"

KINDS = (
    ("a LoRA", ("\nlora_unet_",)),
    ("a LoRA", ("\nlora_te",)),
    ("a LoRA", (".lora_A.weight\n",)),
    ("a LoRA", (".lora.down.weight\n",)),
    ("a LoRA", (".lora_linear_layer.",)),
    ("a LoRA", ("_lora.down.weight\n",)),
    ("a ControlNet", ("\ncontrol_model.",)),
    ("a ControlNet", ("\ninput_hint_block.",)),
    ("a ControlNet", ("\ncontrolnet_cond_embedding.",)),
    ("an SD 1.x checkpoint", ("\ncond_stage_model.transformer.",)),
    ("an SD 2.x checkpoint", ("\ncond_stage_model.model.",)),
    ("a UNet in diffusers' layout", ("\nconv_in.weight\n", "\ndown_blocks.")),
    ("a VAE in diffusers' layout", ("\ndecoder.mid_block.",)),
    ("a VAE alone", ("\ndecoder.up.", "\ndecoder.conv_in.weight\n")),
    ("a TAESD decoder or encoder", ("\ndecoder.layers.0.",)),
    ("a TAESD decoder or encoder", ("\n14.conv.0.weight\n",)),
    ("a TAESD decoder or encoder", ("\n1.conv.0.weight\n",)),
    ("a CLIP text encoder alone", ("\ntext_model.encoder.layers.",)),
    ("a textual inversion embedding", ("\nclip_g\n",)),
    ("a textual inversion embedding", ("\nemb_params\n",)),
    ("an SD 3 checkpoint", (".joint_blocks.",)),
    ("a Flux checkpoint", ("double_blocks.",)),
)  # what a file is when all these parts stand in its list of names, the first row that fits


def recognise(header: Header) -> Family:
    """The family of a full checkpoint: its own numbers where it carries them, otherwise the official family that its shapes are.

    Raises InputError, naming what the file looks like, when it is none that this engine runs.
    """
    family = _declared(header) or _official(header)
    if family is None:
        raise InputError(f"{header.path}: this is {looks_like(header)}: {EXPECTED}")
    return replace(family, prediction="v") if predicts_v(header) else family


def predicts_v(header: Header) -> bool:
    """Whether a file says that its UNet predicts v: the marker of NoobAI-XL and ComfyUI, or ModelSpec's field."""
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    return "v_pred" in header.tensors or said in ("v", "v_prediction", "v-prediction")


def notes(header: Header, family: Family) -> list[str]:
    """What the user should know about a recognised file, a sentence each; most files give none."""
    said = []
    if "ztsnr" in header.tensors:
        said.append("the file is marked as trained with zero terminal SNR (ztsnr); its schedule is not changed for it")
    if "edm_vpred.sigma_max" in header.tensors:
        said.append("the file is marked as EDM v-prediction (CosXL), which is not sampled as such: expect wrong pictures")
    if "denoiser.sigmas" in header.tensors and "denoiser.log_sigmas" not in header.tensors and "turbo" not in family.name:
        said.append(f"the file looks like SDXL-Turbo; it is run as {family.title}: try --steps 1 --cfg 1 --sampler euler -W 512 -H 512")
    return said


def vae_prefix(header: Header) -> str:
    """Where the VAE's tensors stand in a VAE file ("") or in a full checkpoint. Raises InputError when there is none."""
    for prefix in ("", VAE):
        if f"{prefix}decoder.conv_in.weight" in header.tensors and f"{prefix}decoder.mid.block_1.conv1.weight" in header.tensors:
            return prefix
    raise InputError(f"{header.path}: this is {looks_like(header)}: expected a VAE in the official layout, or a full checkpoint")


def looks_like(header: Header) -> str:
    """A few words for what a file seems to be, when it is not a family that is run."""
    listed = "\n" + "\n".join(header.tensors) + "\n"
    for kind, parts in KINDS:
        if all(part in listed for part in parts):
            return kind
    return _embedding(header) or _unet_kind(header) or "not recognised by its tensors"


def _embedding(header: Header) -> str | None:
    """diffusers saves an embedding as one tensor (vectors, width) under the token's name."""
    shapes = [entry.shape for entry in header.tensors.values()]
    return "a textual inversion embedding" if len(shapes) == 1 and len(shapes[0]) in (1, 2) else None


def _unet_kind(header: Header) -> str | None:
    """What is unusual about a file that has a UNet under the official names."""
    first = header.tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        return None
    if len(first.shape) == 4 and first.shape[1] != 4:
        kind = {8: "an image-editing", 9: "an inpainting"}.get(first.shape[1], "an unknown")
        return f"{kind} checkpoint (its UNet takes {first.shape[1]} channels, not 4)"
    if not any(name.startswith("conditioner.") for name in header.tensors):
        return "a UNet without its text towers"
    return "a checkpoint of an unknown family (the shapes of its UNet or text towers are none that are known)"


def _declared(header: Header) -> Family | None:
    """The family that the file's own metadata gives, held against its shapes."""
    text = header.metadata.get(FAMILY_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: not JSON, or an integer of thousands of digits
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{header.path}: {FAMILY_KEY} in its metadata is not a JSON object: a faulty tool wrote the file")
    try:
        family = Family.from_dict(values)
    except InputError as error:
        raise InputError(f"{header.path}: {FAMILY_KEY} in its metadata: {error}") from None
    least, count = least_tensors(family), len(header.tensors)
    fewer = [f"family {family.name} has {least:,} or more, and the file {count:,}"] if count < least else []
    wrong = next(iter(_mismatches(header, family) + fewer), None)
    if wrong:
        raise InputError(f"{header.path}: {FAMILY_KEY} in its metadata does not fit its tensors ({wrong}): a faulty tool wrote the file")
    return family


def least_tensors(family: Family) -> int:
    """Tensors that a checkpoint of a family has at least, from its blocks; the VAE may be elsewhere (`--vae`) and is not counted.

    A residual block has 10, a transformer block 20, a tower's layer 12 under OpenCLIP's names.
    """
    unet = family.unet
    stages = 2 * unet.num_res_blocks + 1  # a level, down and up
    residual = stages * len(unet.channel_mult) + 2
    transformer = stages * sum(unet.transformer_depth) + unet.middle_depth
    return 10 * residual + 20 * transformer + 12 * sum(tower.layers for tower in family.towers)


def _official(header: Header) -> Family | None:
    """The family of configs/models/ that the shapes are."""
    return next((family for family in map(load_family, names("models")) if not _mismatches(header, family)), None)


def _mismatches(header: Header, family: Family) -> list[str]:
    found = {name: header.tensors[name].shape if name in header.tensors else None for name in probes(family)}
    wrong = [(name, found[name], shape) for name, shape in probes(family).items() if found[name] != shape]
    return [f"{name} is {'absent' if stands is None else stands}, not {shape}" for name, stands, shape in wrong]


def probes(family: Family) -> dict[str, tuple[int, ...]]:
    """A few tensors that tell families apart; that everything fits is for strict loading to say. The VAE may be absent (`--vae`)."""
    unet = family.unet
    width = unet.model_channels
    found = {
        f"{UNET}input_blocks.0.0.weight": (width, unet.in_channels, 3, 3),
        f"{UNET}time_embed.0.weight": (4 * width, width),
        f"{UNET}out.2.weight": (unet.out_channels, width, 3, 3),
    }
    if unet.vector_dim:
        found[f"{UNET}label_emb.0.0.weight"] = (4 * width, unet.vector_dim)
    for tower in family.towers:
        found |= _tower_probes(tower)
    return found


def _tower_probes(tower: TowerShape) -> dict[str, tuple[int, ...]]:
    tokens, layer, norm = {
        "hf": ("text_model.embeddings.token_embedding.weight", "text_model.encoder.layers", "layer_norm1"),
        "open_clip": ("token_embedding.weight", "transformer.resblocks", "ln_1"),
    }[tower.layout]
    return {
        f"{tower.prefix}{tokens}": (tower.vocab, tower.width),
        f"{tower.prefix}{layer}.{tower.layers - 1}.{norm}.weight": (tower.width,),
    }
