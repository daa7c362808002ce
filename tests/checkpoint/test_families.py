"""Which family a file is, by the manifests of public files; official names and shapes against the modules."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.checkpoint.families import least_tensors, notes, probes, recognise, vae_prefix
from ldm.checkpoint.identity import FAMILY_KEY, Identity
from ldm.checkpoint.kinds import identify, unread_metadata
from ldm.checkpoint.leftovers import LEFTOVERS, TEXT_PROJECTION, ema_copies, is_leftover, leftovers
from ldm.checkpoint.loading import match
from ldm.checkpoint.safetensors import Entry, Header
from ldm.errors import FileError, InputError
from ldm.models.shapes import load_family
from scripts import synthetic
from tests.checkpoint import builders

BASE = [
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_0.9.safetensors",
    "sdxl_finetune_all_f16.safetensors",
    "sdxl_finetune_position_ids_i64.safetensors",
]
TURBO = ["sd_xl_turbo_1.0.safetensors", "sd_xl_turbo_1.0_fp16.safetensors"]
REFINER = ["sd_xl_refiner_1.0.safetensors", "sd_xl_refiner_0.9.safetensors"]
VAES = [
    "sdxl_vae.safetensors",
    "sdxl_vae_fp16_fix.safetensors",
    "sdxl_vae_fp16_plain.safetensors",
    "vae-ft-mse-840000-ema-pruned.safetensors",
]
TITLES = tomllib.loads((Path(__file__).parents[1] / "data" / "titles.toml").read_text(encoding="utf-8"))  # written by hand


def with_tensors(header: Header, more: dict[str, tuple[int, ...]], dtype: str = "F32") -> Header:
    """The header with tensors more; their places do not matter here."""
    return replace(header, tensors={**header.tensors, **{name: Entry(dtype, shape, 0, 0) for name, shape in more.items()}})


def test_every_public_file_is_named_for_what_it_is() -> None:
    assert {name: identify(builders.header(name)).title for name in builders.manifests()} == TITLES
    assert len(TITLES) == 65


@pytest.mark.parametrize(("family", "files"), [("sdxl-base", BASE), ("sdxl-refiner", REFINER), ("sdxl-turbo", TURBO)])
def test_official_families(family: str, files: list[str]) -> None:
    for name in files:
        assert recognise(builders.header(name)) == load_family(family), name
        assert identify(builders.header(name)).flag == "--model"


@pytest.mark.parametrize("name", sorted(set(builders.manifests()) - {*BASE, *REFINER, *TURBO}))
def test_every_other_public_file_is_refused_by_name(name: str) -> None:
    """What it is, the first five tensors that differ with both shapes, the count, and what to do."""
    header = builders.header(name)
    with pytest.raises(FileError) as caught:
        recognise(header)
    assert caught.value.code == "E3006"
    said = str(caught.value)
    assert re.match(rf"{re.escape(name)}: this is an? {re.escape(TITLES[name])}: \d of the \d tensors that .* is known by differ: ", said)
    differing = re.findall(r"[\w.]+ is (?:absent|\([\d, ]*\)), not \([\d, ]+\)", said)
    count = int(re.findall(r": (\d) of the", said)[0])
    assert len(differing) == min(count, 5) and (count <= 5 or f"; and {count - 5} more: " in said)
    assert said.endswith(identify(header).remedy) and said.isprintable()


@pytest.mark.parametrize("name", sorted(builders.manifests()))
def test_vae(name: str) -> None:
    header = builders.header(name)
    if name in VAES:
        assert vae_prefix(header) == ""
    elif any(tensor.startswith("first_stage_model.") for tensor in header.tensors):
        assert vae_prefix(header) == "first_stage_model."
    else:
        with pytest.raises(InputError, match="give --vae a VAE in the official layout"):
            vae_prefix(header)


@pytest.mark.parametrize(
    ("family", "file", "counts"),
    [("sdxl-base", BASE[0], [197 - 1, 390 - 1, 248, 1680]), ("sdxl-refiner", REFINER[0], [390 - 1, 248, 1220])],
)
def test_official_names_and_shapes_are_the_modules(family: str, file: str, counts: list[int]) -> None:
    """Nothing but position_ids and logit_scale is left of the official files."""
    found = [dict(synthetic.file_shapes(part)) for part in synthetic.parts(load_family(family))]
    assert [len(shapes) for shapes in found] == counts
    ours = {name: shape for shapes in found for name, shape in shapes.items()}
    theirs = builders.shapes(file)
    rest = set(theirs) - set(ours)
    assert all(name.endswith(("position_ids", "logit_scale")) for name in rest)
    assert ours == {name: shape for name, shape in theirs.items() if name not in rest}


@pytest.mark.parametrize("file", [*BASE, *REFINER, *TURBO])
def test_official_files_are_accounted_for(file: str) -> None:
    header = builders.header(file)
    match(header, synthetic.parts(recognise(header)))


def test_vae_leftovers() -> None:
    part = next(part for part in synthetic.parts(load_family("sdxl-base")) if part.prefix == "first_stage_model.")
    for name in VAES[:3]:
        match(builders.header(name), [replace(part, prefix="")])


def test_declared_family() -> None:
    family = synthetic.tiny()
    text = json.dumps(family.to_dict())
    parts = [part for part in synthetic.parts(family) if part.prefix != "first_stage_model."]  # the VAE may be elsewhere
    tensors = {name: Entry("F16", shape, 0, 0) for part in parts for name, shape in synthetic.file_shapes(part)}
    header = Header(Path("box.safetensors"), 0, 0, tensors, {FAMILY_KEY: text}, (0, 0, 0))
    assert recognise(header) == family
    assert least_tensors(family) <= len(tensors) < 1.4 * least_tensors(family)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    for stands, message in {Entry("F16", (), 0, 0): rf"{first} is \(\), not", None: f"{first} is absent, not"}.items():
        changed = {name: entry for name, entry in {**tensors, first: stands}.items() if entry is not None}
        with pytest.raises(InputError, match=message):
            recognise(replace(header, tensors=changed))
    with pytest.raises(InputError, match="has 2,098 or more, and the file 9"):
        recognise(replace(header, tensors={name: tensors[name] for name in probes(family)}))
    for bad, message in {
        "[1]": "is not a JSON object",
        "{": "is not a JSON object",
        text.replace('"model_channels": 16', '"model_channels": 24'): r"input_blocks.0.0.weight is \(16, 4, 3, 3\), not \(24, 4, 3, 3\)",
        text.replace('"model_channels"', '"modl_channels"'): "box.safetensors: ldm.family in its metadata: .*unknown key 'modl_channels'",
    }.items():
        with pytest.raises(InputError, match=message):
            recognise(replace(header, metadata={FAMILY_KEY: bad}))


def test_prediction_and_schedule_follow_the_markers() -> None:
    header, base = builders.header(BASE[0]), load_family("sdxl-base")
    for shape in ((0,), (1,)):
        marked = with_tensors(header, {"v_pred": shape})
        assert recognise(marked) == replace(base, prediction="v") and "v-prediction" in identify(marked).details
        both = with_tensors(marked, {"ztsnr": shape})
        assert recognise(both) == replace(base, prediction="v", zero_terminal=True)
        assert "zero terminal SNR" in identify(both).details and notes(both, base) == []
        match(both, synthetic.parts(recognise(both)))
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        said = replace(header, metadata={key: "v"})
        assert recognise(said).prediction == "v"
        assert recognise(with_tensors(said, {"ztsnr": (0,)})).zero_terminal
        assert recognise(replace(header, metadata={key: "epsilon"})) == base
    with pytest.raises(
        FileError, match=r"\(ztsnr\): zero terminal SNR needs v-prediction, and neither v_pred nor .*: use a file with both"
    ):
        recognise(with_tensors(header, {"ztsnr": (0,)}))


@pytest.mark.parametrize(
    ("markers", "name"),
    [
        ({"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}, "CosXL"),
        ({"edm_vpred.sigma_min": ()}, "CosXL"),
        ({"edm_vpred.sigma_max": (), "v_pred": (0,), "ztsnr": (0,)}, "CosXL"),
        ({"edm_mean": (4,), "edm_std": (4,)}, "Playground v2.5"),
        ({"edm_std": (4,)}, "Playground v2.5"),
    ],
)
def test_models_of_other_noise_schedules_are_refused(markers: dict[str, tuple[int, ...]], name: str) -> None:
    header = with_tensors(builders.header(BASE[0]), markers)
    assert identify(header).model == name and identify(header).flag == ""
    with pytest.raises(FileError, match=f"this is a {name} checkpoint, .*, but {next(iter(markers))} says .* another noise schedule"):
        recognise(header)
    match(header, synthetic.parts(load_family("sdxl-base")))  # as tensors they are known


def test_turbo() -> None:
    """By its buffer, or by ModelSpec; a name alone gives a note."""
    header, turbo = builders.header(BASE[0]), load_family("sdxl-turbo")
    base = load_family("sdxl-base")
    assert replace(turbo, name=base.name, title=base.title, defaults=base.defaults) == base
    assert (turbo.defaults.schedule, turbo.defaults.steps, turbo.defaults.cfg) == ("trailing", 1, 1.0)
    for key, text in {"modelspec.title": "SDXL Turbo 1.0", "modelspec.architecture": "stable-diffusion-xl-turbo-v1"}.items():
        assert recognise(replace(header, metadata={key: text})) == turbo
    called = replace(header, path=Path("DreamShaperXL_Turbo.safetensors"))
    assert recognise(called) == base and "called Turbo, but nothing marks" in notes(called, base)[0]
    refiner = replace(builders.header(REFINER[0]), metadata={"modelspec.title": "SDXL Turbo"})
    assert recognise(refiner).name == "sdxl-refiner"
    for name in (*BASE, *REFINER, *TURBO):
        assert notes(builders.header(name), recognise(builders.header(name))) == []


def test_ema_copies() -> None:
    """Copies of the file's own UNet are tolerated and said; the same names of another shape, or of nothing, are not."""
    header = builders.header(BASE[0])
    unet = {name: entry.shape for name, entry in header.tensors.items() if name.startswith("model.diffusion_model.")}
    copies = {"model_ema." + name.removeprefix("model.").replace(".", ""): shape for name, shape in unet.items()}
    copied = with_tensors(header, {**copies, "model_ema.decay": (), "model_ema.num_updates": ()})
    assert recognise(copied) == load_family("sdxl-base") and "EMA copy of the UNet" in identify(copied).details
    assert len(ema_copies(copied.tensors)) == 1680
    match(copied, synthetic.parts(load_family("sdxl-base")))
    assert "EMA copy of its UNet" in notes(copied, load_family("sdxl-base"))[0]
    first = next(iter(copies))
    for wrong in ({first: (3,)}, {f"{first}s": copies[first]}, {"model_ema.first_stage_modelx": (3,)}):
        with pytest.raises(InputError, match="1 unknown"):
            match(with_tensors(header, wrong), synthetic.parts(load_family("sdxl-base")))
    assert len(ema_copies(builders.header("v1-5-pruned.safetensors").tensors)) == 686


def test_leftovers_are_exact() -> None:
    """The name alone does not excuse a tensor, nor does a part of it."""
    scalar, steps = Entry("F32", (), 0, 4), Entry("F32", (1000,), 0, 4000)
    assert is_leftover("model_ema.decay", scalar) and is_leftover("denoiser.sigmas", steps) and is_leftover("betas", steps)
    for name, entry in {
        "model_ema.decay": steps,
        "model_ema.diffusion_modelinput_blocks00weight": scalar,
        "denoiser.sigmas": scalar,
        "x.betas": steps,
        "betas2": steps,
        "conditioner.embedders.1.model.logit_scale.x": scalar,
    }.items():
        assert not is_leftover(name, entry), name

    for name, shape in {"v_pred": (2,), "ztsnr": (), "edm_mean": (), "edm_vpred.sigma_max": (1,), "denoiser.other": (1000,)}.items():
        assert not is_leftover(name, Entry("F32", shape, 0, 0)), name
    assert is_leftover("edm_std", Entry("F32", (4,), 0, 16)) and is_leftover("v_pred", Entry("F32", (1,), 0, 4))


def test_the_list_of_leftovers_is_complete_and_sourced() -> None:
    """Every tensor of the official files of families that are run is a module's, or a row of the list; every row has its source."""
    for name in (*BASE, *REFINER, *TURBO, *VAES[:3]):
        header = builders.header(name)
        odd = {tensor for tensor in header.tensors if tensor.startswith(("denoiser.", "model_ema.")) or tensor.endswith(("_ids", "_scale"))}
        assert leftovers(header.tensors) == odd, name
    assert all(row.source and row.shapes for row in LEFTOVERS) and all(TEXT_PROJECTION.values())
    assert set(TEXT_PROJECTION) == {".weight", ".weight.weight"}


def strange(*names: str, shape: tuple[int, ...] = (4, 4)) -> Identity:
    return identify(Header(Path("x"), 0, 0, {name: Entry("F16", shape, 0, 0) for name in names}, {}, (0, 0, 0, 0)))


UNKNOWN = "unknown kind of file (2 tensors, none of a known name)"


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (["a", "b"], UNKNOWN),
        (["model.diffusion_model.joint_blocks.0.x", "b"], "SD 3 checkpoint"),
        (["double_blocks.0.img_attn.norm", "b"], "Flux checkpoint"),
        (["model.diffusion_model.input_blocks.1.1.time_stack.0.x", "b"], "SVD checkpoint (video)"),
        (["down_blocks.0.motion_modules.0.x", "b"], "AnimateDiff motion module"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "IP-Adapter"),
        (["lora_controlnet", "input_blocks.0.0.up"], "ControlNet in LoRA form (Control-LoRA)"),
        (["lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", "b"], "LoRA or adapter for Flux"),
        (
            ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "b"],
            "LoRA for a diffusion transformer (SD 3 or another), PEFT's names, rank 4, 1 modules (UNet 1)",
        ),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "b"], "T5 text encoder of SD 3 or Flux, diffusers' layout"),
    ],
)
def test_other_kinds_are_named(names: list[str], title: str) -> None:
    assert strange(*names).title == title


def test_unets_alone_and_unknown_families() -> None:
    header = builders.header(BASE[0])
    alone = replace(header, tensors={name: entry for name, entry in header.tensors.items() if not name.startswith("conditioner.")})
    assert identify(alone).name == "SDXL base 1.0 UNet without its text towers"
    assert "text towers are not in the file" in identify(alone).remedy
    without = replace(header, tensors={name: entry for name, entry in header.tensors.items() if not name.startswith("first_stage_model.")})
    assert recognise(without).name == "sdxl-base" and "without a VAE" in identify(without).details
    first = "model.diffusion_model.input_blocks.0.0.weight"
    assert strange(first, "conditioner.embedders.0.model.ln_final.weight").title.startswith("checkpoint of an unknown family")
    for channels, title in {8: "SDXL image-editing", 9: "SDXL inpainting", 7: "SDXL upscaling", 12: "SDXL base"}.items():
        wide = with_tensors(header, {first: (320, channels, 3, 3)})
        assert identify(wide).title.startswith(f"{title} checkpoint, official layout, its UNet takes {channels} channels, not 4")
        with pytest.raises(FileError, match=rf"1 of the 9 .*: {first} is \(320, {channels}, 3, 3\), not \(320, 4, 3, 3\)"):
            recognise(wide)
    edit = with_tensors(header, {first: (320, 8, 3, 3), "edm_vpred.sigma_max": ()})
    assert identify(edit).model == "CosXL image-editing"
    declared = replace(
        header, tensors={first: Entry("F16", (8, 4, 3, 3), 0, 0), "conditioner.x": Entry("F16", (), 0, 0)}, metadata={FAMILY_KEY: "{}"}
    )
    assert "a family of its own (ldm.family)" in identify(declared).title


@pytest.mark.parametrize(
    ("depth", "title"), [(4, "SSD-1B checkpoint"), (2, "Segmind Vega checkpoint"), (7, "checkpoint of an unknown family")]
)
def test_distilled_models_are_not_called_sdxl_base(depth: int, title: str) -> None:
    """Their widths and towers are those of SDXL base, their UNets have fewer blocks."""
    header = builders.header(BASE[0])
    kept = [each for each in header.tensors if int((re.findall(r"transformer_blocks\.(\d+)\.", each) or [0])[0]) < depth]
    short = replace(header, tensors={name: header.tensors[name] for name in kept})
    assert identify(short).title.startswith(title) and identify(short).flag == ""
    with pytest.raises(FileError, match=f"this is an? {title}.*1 of the 9 .*input_blocks.8.1.transformer_blocks.9.norm1.weight is absent"):
        recognise(short)


def test_tensors_of_comfyui_saves_are_leftovers() -> None:
    """CLIP-L's temperature and projection, which SDXL does not use, under each name; another shape is unknown."""
    header, parts = builders.header(BASE[0]), synthetic.parts(load_family("sdxl-base"))
    clip = "conditioner.embedders.0."
    for name in ("text_projection", "transformer.text_projection.weight"):
        match(with_tensors(header, {f"{clip}{name}": (768, 768), f"{clip}logit_scale": ()}), parts)
        with pytest.raises(InputError, match=r"\(1 unknown\)"):
            match(with_tensors(header, {f"{clip}{name}": (768, 1280)}), parts)


def test_a_stacked_tensor_is_counted_once() -> None:
    header, parts = builders.header(BASE[0]), synthetic.parts(load_family("sdxl-base"))
    stacked = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    without = replace(header, tensors={name: entry for name, entry in header.tensors.items() if name != stacked})
    for changed, said in {
        "missing": (without, rf"\(1 missing\): missing: {stacked} \(3840, 1280\): use"),
        "shape": (with_tensors(header, {stacked: (3840, 1)}), rf"\(1 of another shape\): .*{stacked} is \(3840, 1\), not"),
        "dtype": (with_tensors(header, {stacked: (3840, 1280)}, "F8_E4M3"), r"\(1 of a dtype that is not read\)"),
    }.values():
        with pytest.raises(InputError, match=said):
            match(changed, parts)


def test_nothing_is_claimed_by_words_in_the_metadata() -> None:
    """Shapes decide; what ModelSpec says is shown by `ldm info`."""
    header = builders.header("example_kohya_sd15_lora.safetensors")
    claimed = replace(header, metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.title": "SDXL Turbo"})
    assert identify(claimed) == identify(header)
    assert unread_metadata(claimed) == [] and unread_metadata(replace(header, metadata={"auto_map": "x", "a": "b"})) == ["a", "auto_map"]
