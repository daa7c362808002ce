"""Model files by name: folders of A1111 and ComfyUI, extra_model_paths.yaml, the Hub's cache, the box."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm import catalogue
from ldm.catalogue import BOX, find, places, scan
from ldm.errors import FileError, InputError
from ldm.resources import weights

A1111 = [
    "models/Stable-diffusion/sd_xl_base_1.0.safetensors",
    "models/Stable-diffusion/xl/juggernaut.safetensors",
    "models/Stable-diffusion/old.ckpt",
    "models/VAE/sdxl_vae.safetensors",
    "models/Lora/pixel.safetensors",
    "models/ControlNet/canny.safetensors",
    "embeddings/bad-hands.safetensors",
    "venv/lib/python3.11/site-packages/torch/test.safetensors",
]
COMFY = [
    "models/checkpoints/dreamshaper_xl.safetensors",
    "models/checkpoints/Juggernaut_v9.safetensors",
    "models/vae/sdxl_vae.safetensors",
    "models/loras/style/ink.safetensors",
    "models/embeddings/easy.safetensors",
    "models/upscale_models/4x.safetensors",
]


def make(root: Path, files: list[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No cache and no folder of the user's; the working folder is empty."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LDM_MODELS_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def a1111(tmp_path: Path) -> Path:
    return make(tmp_path / "webui", A1111)


@pytest.fixture
def comfy(tmp_path: Path) -> Path:
    return make(tmp_path / "comfy", COMFY)


def test_no_name_is_the_model_in_the_box() -> None:
    assert find(None) == weights() / BOX and find(None).is_file()
    assert find("ldm-emoji") == weights() / BOX


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("sd_xl_base_1.0.safetensors", "checkpoint", A1111[0]),
        ("sd_xl_base_1.0", "checkpoint", A1111[0]),
        ("SD_XL_Base_1.0", "checkpoint", A1111[0]),
        ("sd_xl", "checkpoint", A1111[0]),
        ("xl/juggernaut", "checkpoint", A1111[1]),
        ("xl\\juggernaut.safetensors", "checkpoint", A1111[1]),
        ("jugger", "checkpoint", A1111[1]),
        ("sdxl_vae", "vae", A1111[3]),
        ("pix", "lora", A1111[4]),
        ("bad-hands", "embedding", A1111[6]),
    ],
)
def test_names_in_a1111s_folders(a1111: Path, name: str, kind: str, file: str) -> None:
    assert find(name, kind, [a1111]) == a1111 / file
    assert find(name, kind, [a1111 / "models", a1111 / "embeddings"]) == a1111 / file


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("dreamshaper", "checkpoint", COMFY[0]),
        ("sdxl_vae", "vae", COMFY[2]),
        ("style/ink", "lora", COMFY[3]),
        ("easy", "embedding", COMFY[4]),
    ],
)
def test_names_in_comfyuis_folders(comfy: Path, name: str, kind: str, file: str) -> None:
    assert find(name, kind, [comfy]) == comfy / file


def test_a_plain_folder_holds_any_kind(tmp_path: Path) -> None:
    folder = make(tmp_path / "files", ["one.safetensors", "deep/er/two.safetensors"])
    for kind in catalogue.KINDS:
        assert find("one", kind, [folder]) == folder / "one.safetensors"
        assert find("deep/er/two", kind, [folder]) == find("two", kind, [folder]) == folder / "deep/er/two.safetensors"


def test_the_first_folder_wins_for_the_same_name_and_a_whole_name_over_a_beginning(a1111: Path, comfy: Path) -> None:
    assert find("sdxl_vae", "vae", [comfy, a1111]) == comfy / COMFY[2]
    assert find("sdxl_vae", "vae", [a1111, comfy]) == a1111 / A1111[3]
    assert find("juggernaut", "checkpoint", [comfy, a1111]) == a1111 / A1111[1]


def test_a_path_wins_over_every_name(a1111: Path) -> None:
    Path("sd_xl_base_1.0").write_bytes(b"x")
    assert find("sd_xl_base_1.0", "checkpoint", [a1111]) == Path("sd_xl_base_1.0")
    Path("juggernaut").mkdir()
    assert find("juggernaut", "checkpoint", [a1111]) == a1111 / A1111[1]
    assert find(os.fspath(a1111 / A1111[2])) == a1111 / A1111[2]


@pytest.mark.parametrize(
    ("name", "kind", "kind_of_error", "words"),
    [
        (
            "j",
            "checkpoint",
            InputError,
            "checkpoint 'j' could be Juggernaut_v9.safetensors, xl/juggernaut.safetensors: write more of the name",
        ),
        ("sd_xl_bse", "checkpoint", InputError, "unknown checkpoint 'sd_xl_bse': did you mean sd_xl_base_1.0"),
        ("pixel", "checkpoint", InputError, r"Lora/pixel.safetensors lies among the files of kind lora"),
        ("canny", "checkpoint", InputError, r"lies among the files of kind other"),
        ("old", "checkpoint", FileError, r"old.ckpt: is refused: pickles .\.ckpt. can run code"),
        ("old.ckpt", "checkpoint", FileError, "is refused: pickles"),
        ("org/repo", "checkpoint", InputError, "not in the Hub's cache: `ldm pull org/repo`; looked in"),
        ("org/repo:a.safetensors@v1", "checkpoint", InputError, "`ldm pull org/repo:a.safetensors@v1`"),
        ("./no.safetensors", "checkpoint", FileError, r"^./no.safetensors: no such file"),
        ("/no/such/thing", "checkpoint", FileError, "no such file: check the path"),
        ("", "checkpoint", InputError, "is empty"),
        ("a\0b", "checkpoint", InputError, "has a NUL in it"),
        ("zzz", "vae", InputError, "unknown vae 'zzz': `ldm models` lists what is there"),
        ("test", "checkpoint", InputError, "unknown checkpoint 'test'"),  # that lies in the program's packages
    ],
)
def test_what_is_not_found_is_said(a1111: Path, comfy: Path, name: str, kind: str, kind_of_error: type[Exception], words: str) -> None:
    with pytest.raises(kind_of_error, match=words) as error:
        find(name, kind, [comfy, a1111])
    assert "\n" not in str(error.value)


def test_a_folder_given_as_a_model_is_said() -> None:
    Path("thing").mkdir()
    with pytest.raises(InputError, match=r"the folder thing is here: name a .safetensors file in it"):
        find("thing")
    with pytest.raises(FileError, match="is a folder: name"):
        find("./thing")


def test_a_safetensors_file_beside_a_pickle_of_the_same_name_is_taken(tmp_path: Path) -> None:
    folder = make(tmp_path / "files", ["a.ckpt", "a.safetensors"])
    assert find("a", dirs=[folder]) == folder / "a.safetensors"
    with pytest.raises(FileError, match="refused"):
        find("a.ckpt", dirs=[folder])


YAML = """
# a comment
comfyui:
    base_path: ../comfy
    is_default: true
    checkpoints: models/checkpoints/
    loras: |
        models/loras
        models/absent

a111:
    base_path: {webui}
    checkpoints: models/Stable-diffusion
    vae: models/VAE
    controlnet: models/ControlNet
    custom_nodes: 7
"""


def test_comfyuis_extra_model_paths(tmp_path: Path, a1111: Path, comfy: Path) -> None:
    file = make(tmp_path / "settings", ["x"]) / "extra_model_paths.yaml"
    file.write_text(YAML.format(webui=a1111))
    assert find("dreamshaper", "checkpoint", [file]) == comfy / COMFY[0]
    assert find("xl/juggernaut", "checkpoint", [file]) == a1111 / A1111[1]
    assert find("style/ink", "lora", [file]) == comfy / COMFY[3]
    assert find("sdxl_vae", "vae", [file]) == a1111 / A1111[3]
    assert {each.kind for each in scan([file]).files} == {"checkpoint", "lora", "vae", "other"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"- a\n- b\n",
        b"a: [",
        b"\xff\xfe\x00",
        b"!!python/object/apply:os.system ['touch ran']",
        b"a: " + b"[" * 2000,
        b"x" * (2**20 + 1),
    ],
)
def test_a_yaml_file_that_is_none_is_a_note(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "extra.yaml"
    file.write_bytes(text)
    found = scan([file])
    assert found.files == () and len(found.notes) == 1 and "not read as an extra_model_paths.yaml" in found.notes[0]
    assert not Path("ran").exists()


def test_a_folder_that_is_not_there_or_cannot_be_read_is_a_note(a1111: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def locked(path: Path) -> object:
        if Path(path).name == "VAE":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(catalogue.os, "scandir", locked)
    found = scan([a1111, tmp_path / "absent"])
    assert found.notes == (f"{a1111}/models/VAE could not be read (Permission denied)", f"models folder {tmp_path}/absent does not exist")
    assert find("sd_xl", dirs=[a1111, tmp_path / "absent"])
    with pytest.raises(InputError, match="VAE could not be read"):
        find("sdxl_vae", "vae", [a1111])


def test_links_are_followed_each_folder_once(tmp_path: Path, a1111: Path) -> None:
    folder = make(tmp_path / "files", ["real/a.safetensors"])
    (folder / "again").symlink_to(folder)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "far").symlink_to(a1111 / "models" / "Stable-diffusion")
    (folder / "b.safetensors").symlink_to(a1111 / A1111[0])
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert [each.name for each in scan([folder]).files] == [
        "b.safetensors",
        "gone.safetensors",
        "far/old.ckpt",
        "far/sd_xl_base_1.0.safetensors",
        "far/xl/juggernaut.safetensors",
        "real/a.safetensors",
    ]
    assert find("b", dirs=[folder]) == folder / "b.safetensors"


def test_the_walk_is_bounded_in_depth_and_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = make(tmp_path / "deep", ["/".join("abcdefghijkl"[:depth]) + "/m.safetensors" for depth in range(1, 12)])
    found = scan([deep])
    assert len(found.files) == catalogue.MAX_DEPTH and "8 folders deep" in found.notes[0]
    wide = make(tmp_path / "wide", [f"{number}/m.safetensors" for number in range(30)])
    monkeypatch.setattr(catalogue, "MAX_ENTRIES", 40)
    found = scan([wide])
    assert len(found.files) == 10 and "the limits are 40 files" in found.notes[0]


def test_names_of_any_bytes_and_letters(tmp_path: Path) -> None:
    folder = make(tmp_path / "files", ["cafe\u0301.safetensors", "Straße.safetensors"])
    (folder / os.fsdecode(b"x\xff.safetensors")).write_bytes(b"x")
    assert find("café", dirs=[folder]) == folder / "cafe\u0301.safetensors"
    assert find("STRASSE", dirs=[folder]) == folder / "Straße.safetensors"
    assert find(os.fsdecode(b"x\xff"), dirs=[folder]).is_file()


def test_places_come_from_the_flags_and_then_from_the_environment(tmp_path: Path) -> None:
    given = places(["/a", "~/b"], {"LDM_MODELS_DIR": os.pathsep.join(["/c", "", "/a", "/d"])})
    assert given == [Path("/a"), Path.home() / "b", Path("/c"), Path("/d")]
    assert places([], {}) == []


def test_a_file_of_the_hubs_cache_is_found_without_the_hub(tmp_path: Path) -> None:
    repo = tmp_path / "hf/hub/models--org--repo"
    commit = "0123456789abcdef" * 2 + "01234567"
    make(repo, [f"snapshots/{commit}/a.safetensors", f"snapshots/{commit}/unet/b.safetensors", "refs/main", "refs/v1"])
    (repo / "refs/main").write_text(commit)
    (repo / "refs/v1").write_text("../../../../../etc")
    snapshot = repo / "snapshots" / commit
    assert find("org/repo:a.safetensors") == snapshot / "a.safetensors"
    assert find("org/repo:unet/b.safetensors@main") == snapshot / "unet/b.safetensors"
    assert find(f"org/repo:a.safetensors@{commit[:7]}") == snapshot / "a.safetensors"
    with pytest.raises(InputError, match=r"has 2 files in the Hub's cache: name one of them: org/repo:a.safetensors, org/repo:unet/b"):
        find("org/repo")
    with pytest.raises(InputError, match=r"ldm pull org/repo:a.safetensors@v1"):
        find("org/repo:a.safetensors@v1")
