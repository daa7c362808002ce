"""Which model that the engine runs a file holds, from the names and shapes in its header alone, without torch."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from ldm.checkpoint.identity import FAMILY_KEY, UNET, VAE
from ldm.checkpoint.kinds import OTHER_NOISE, identify, is_turbo, predicts_v
from ldm.checkpoint.leftovers import ema_copies
from ldm.checkpoint.safetensors import Header
from ldm.errors import FileError, InputError, listed
from ldm.limits import LIMITS
from ldm.models.shapes import Family, TowerShape, load_family
from ldm.resources import names

BASE, TURBO = "sdxl-base", "sdxl-turbo"  # of one set of shapes
HINT = 500  # characters of a usage hint


def recognise(header: Header) -> Family:
    """The family of a full checkpoint: its own numbers where it carries them, otherwise the official family that its shapes are.

    Raises FileError when it is none that this engine runs: it says what the file is, which tensors differ, and what to give instead.
    """
    family = _declared(header) or _official(header)
    if family is None:
        raise FileError(f"{header.path}: this is {identify(header)}: {_differences(header)}: {identify(header).remedy}")
    marker = next((marker for marker in OTHER_NOISE if marker in header.tensors), None)
    if marker is not None:
        what = f"{header.path}: this is {identify(header)}: its tensors are those of {family.title}, but {marker} says that it needs"
        raise FileError(f"{what} another noise schedule, which is not run: {identify(header).remedy}")
    return _with_resolution(header, _as_marked(header, family))


def _as_marked(header: Header, family: Family) -> Family:
    """The family with what the file's markers say of its prediction and its schedule."""
    if "ztsnr" not in header.tensors:
        return replace(family, prediction="v") if predicts_v(header) else family
    if not predicts_v(header) and family.prediction != "v":
        what = f"{header.path}: the file is marked as trained with zero terminal SNR (ztsnr): zero terminal SNR needs v-prediction"
        raise FileError(f"{what}, and neither v_pred nor modelspec.prediction_type says so: use a file with both markers")
    return replace(family, prediction="v", zero_terminal=True)


def notes(header: Header, family: Family) -> list[str]:
    """What the user should know about a recognised file, a sentence each; most files give none."""
    said = []
    named = f"{header.path.name} {header.metadata.get('modelspec.title', '')}".lower()
    if family.name == BASE and "turbo" in named:
        said.append(f"the file is called Turbo, but nothing marks its tensors as such: it is run as {family.title}: try --steps 4 --cfg 1")
    if ema_copies(header.tensors):
        said.append("the file carries an EMA copy of its UNet (model_ema), which is not used")
    return said


def usage_hint(header: Header) -> str:
    """ModelSpec's hint of how the file is to be used, in one line that a terminal can show, or nothing."""
    text = " ".join(header.metadata.get("modelspec.usage_hint", "").split())
    return "".join(letter for letter in text if letter.isprintable())[:HINT]


def _with_resolution(header: Header, family: Family) -> Family:
    """The family with ModelSpec's resolution as its size, where that is one."""
    match = re.fullmatch("([0-9]{2,5})x([0-9]{2,5})", header.metadata.get("modelspec.resolution", "").strip().lower())
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (LIMITS["width"].allows(width) and LIMITS["height"].allows(height)):
        return family
    return replace(family, defaults=replace(family.defaults, width=width, height=height))


def vae_prefix(header: Header) -> str:
    """Where the VAE's tensors stand in a VAE file ("") or in a full checkpoint. Raises FileError when there is none."""
    for prefix in ("", VAE):
        if f"{prefix}decoder.conv_in.weight" in header.tensors and f"{prefix}decoder.mid.block_1.conv1.weight" in header.tensors:
            return prefix
    raise FileError(f"{header.path}: this is {identify(header)}: give --vae a VAE in the official layout, or a checkpoint that has one")


def _differences(header: Header) -> str:
    """How the file differs from the official family that it is nearest to, by the tensors that tell families apart."""
    official = [load_family(name) for name in names("models") if name.startswith("sdxl-")]
    nearest = max(official, key=lambda family: len(probes(family)) - len(_mismatches(header, family)))  # base among equals
    wrong = _mismatches(header, nearest)
    return f"{len(wrong)} of the {len(probes(nearest))} tensors that {nearest.title} is known by differ: {listed(wrong)}"


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
        raise FileError(f"{header.path}: {FAMILY_KEY} in its metadata is not a JSON object: a faulty tool wrote the file")
    try:
        family = Family.from_dict(values)
    except InputError as error:
        raise FileError(f"{header.path}: {FAMILY_KEY} in its metadata: {error}") from None
    least, count = least_tensors(family), len(header.tensors)
    fewer = [f"family {family.name} has {least:,} or more, and the file {count:,}"] if count < least else []
    wrong = next(iter(_mismatches(header, family) + fewer), None)
    if wrong:
        text = f"{FAMILY_KEY} in its metadata does not fit its tensors ({wrong}): a faulty tool wrote the file"
        raise FileError(f"{header.path}: {text}", "E3007")
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
    """The family of configs/models/ that the shapes are; Turbo has those of base, and a mark of its own."""
    found = next((family for family in map(load_family, names("models")) if not _mismatches(header, family)), None)
    return load_family(TURBO) if found is not None and found.name == BASE and is_turbo(header) else found


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
    deepest = max((level for level, depth in enumerate(unet.transformer_depth) if depth), default=None)
    if deepest is not None:  # distilled models have fewer blocks there
        block = f"{UNET}input_blocks.{deepest * (unet.num_res_blocks + 1) + unet.num_res_blocks}.1."
        last = unet.transformer_depth[deepest] - 1
        found[f"{block}transformer_blocks.{last}.norm1.weight"] = (unet.channel_mult[deepest] * width,)
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
