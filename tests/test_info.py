"""`ldm info`: facts of model files and pictures, fast, without torch, and safe to look at."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from ldm.checkpoint.writer import save
from ldm.commands import main
from ldm.commands.streams import printable
from ldm.resources import weights
from scripts.faults import kinds as faults

ROOT = Path(__file__).parents[1]
BOX = weights() / "ldm-emoji.safetensors"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\nldm: all is well\u202e\x9b31m"


def info(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["info", *map(str, words)]) == code
    told = capsys.readouterr()
    return told.out, told.err


def facts(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(info(capsys, "--json", *words)[0])
    return made


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """sd_xl_base_1.0 as a sparse file of its full size, with metadata of the kinds that are met."""
    picture = "data:image/jpeg;base64," + "A" * 30_000
    metadata = {"modelspec.title": "Stable Diffusion XL 1.0 Base", "modelspec.thumbnail": picture, "zz": HOSTILE}
    return faults.sparse("sd_xl_base_1.0.safetensors", tmp_path / "base.safetensors", metadata)


def test_a_full_checkpoint(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = facts(capsys, base)
    assert told["family"] == "sdxl-base" and told["flag"] == "--model" and told["prediction"] == "epsilon"
    assert told["parts"] == {"UNet": 2_567_463_684, "VAE": 83_653_863, "text tower 1": 123_060_480, "text tower 2": 694_659_840}
    assert told["parameters"] == sum(told["parts"].values())
    assert told["dtypes"] == {"F16": {"tensors": 2515, "bytes": 6_937_675_890}} and told["bytes"] == base.stat().st_size
    assert [name.rpartition(".")[2] for name in told["leftovers"]["names"]] == ["position_ids", "logit_scale"]
    assert told["metadata"]["modelspec.thumbnail"] == "(30,023 bytes, not shown)" and told["metadata"]["zz"] == HOSTILE
    out, err = info(capsys, base)
    assert err == "" and "SDXL base 1.0 checkpoint or a fine-tune of it" in out and "AAAA" not in out
    assert "with --model: Stable Diffusion XL base, 1024x1024, dpmpp_2m karras, 30 steps, cfg 5" in out
    assert "UNet 2,567,463,684, VAE 83,653,863" in out and "F16 2,515 tensors 6.9 GB" in out
    assert all(line.isprintable() for line in out.splitlines())
    assert r"zz          \x1b[2J\x1b]0;owned\x07\r\nldm: all is well\u202e\x9b31m" in out


COMMAND = """
import sys
from ldm.commands import main
code = main(["info", sys.argv[1]])
print("heavy:", sorted({"torch", "numpy", "PIL", "safetensors"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def test_without_torch_and_in_three_tenths_of_a_second(base: Path) -> None:
    """Of the processor's time, the best of five: one thread, so on an idle machine that is the time that passes."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(5):
        start = spent()
        done = subprocess.run([sys.executable, "-c", COMMAND, base], cwd=ROOT, capture_output=True, text=True, check=True)
        times.append(spent() - start)
        assert "heavy: []" in done.stderr and "2,515 tensors" in done.stdout
    assert min(times) < 0.3, times


def test_the_model_in_the_box(capsys: pytest.CaptureFixture[str]) -> None:
    told = facts(capsys, BOX)
    assert told["family"] == "emoji" and told["prediction_from"] == "its metadata"
    assert told["parts"] == {"UNet": 9_587_284, "VAE": 1_718_807, "text tower 1": 1_621_696, "text tower 2": 2_462_496}


def test_files_that_are_not_run_are_shown_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("v1-5-pruned", "sdxl_vae", "taesdxl_decoder", "example_lycoris_loha_tucker_sdxl")
    files = [faults.sparse(f"{name}.safetensors", tmp_path / f"{name}.safetensors") for name in names]
    out, err = info(capsys, *files)
    assert err == "" and out.count("\n\n") == 3
    assert "not run: SDXL base, refiner and Turbo are run" in out and "with --vae" in out and "not used: TAESD is not used yet" in out
    assert "LoHa for SDXL base" in out and "700, which are not read" in out
    lines = [json.loads(line) for line in info(capsys, "--json", *files)[0].splitlines()]
    assert [line["kind"] for line in lines] == ["checkpoint", "VAE", "TAESD", "LoRA"]
    assert "6 of the 9 tensors" in lines[0]["refused"] and lines[1]["flag"] == "--vae"


def test_one_refused_file_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"GGUF" + bytes(60))
    out, err = info(capsys, bad, BOX, tmp_path / "none.safetensors", tmp_path, code=2)
    assert "ldm emoji" in out and len(err.splitlines()) == 3 and all(line.startswith("ldm: error E") for line in err.splitlines())
    assert "GGUF" in err.splitlines()[0] and "no such file" in err.splitlines()[1] and "folder" in err.splitlines()[2]


WRONG = [([], "FILE"), (["--nonsense", "a"], "--nonsense"), (["--max-header", "big", "a"], "--max-header")]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = info(capsys, *words, code=2)
    assert out == "" and said in err and "see ldm info --help" in err and len(err.splitlines()) == 1


def test_the_largest_header_is_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert "E3005" in info(capsys, "--max-header", "1000", BOX, code=2)[1]
    assert "ldm emoji" in info(capsys, "--max-header", "1MiB", BOX)[0]


def test_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hashlib import sha256

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = facts(capsys, "--hash", "--verify", BOX)
    content = BOX.read_bytes()
    whole, rest = sha256(content).hexdigest(), sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert (told["sha256"], told["autov2"]) == (whole, whole[:10]) and rest.startswith(told["autov3"])
    assert whole in info(capsys, "--hash", BOX)[0]
    assert "sha256" not in facts(capsys, BOX)


def test_strange_words_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, keys, values and the path itself cannot move the cursor, nor fill the screen."""
    path = tmp_path / "a\x1b[31m.safetensors"
    metadata = {HOSTILE: HOSTILE, "long" * 500: "x", **{f"key{i}": "v" for i in range(500)}}
    save(path, [("conditioner\u202e\u200b", "F32", (768,), bytes(3072))], metadata)  # named as an embedding, by its token
    for words in ((path,), ("--json", path)):
        out, _ = info(capsys, *words)
        assert all(line.isprintable() for line in out.splitlines()) and len(out) < 40_000
    out, _ = info(capsys, path)
    assert "and 402 keys more" in out and r"conditioner\u202e\u200b" in out


def test_strange_words_in_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names of a file that is refused, and of those beside it, cannot move the cursor either."""
    bad = tmp_path / "\x1b]0;x\x07\u202e.safetensors"
    bad.write_bytes(b"GGUF")
    _, err = info(capsys, bad, tmp_path, code=2)
    assert len(err.splitlines()) == 2 and all(line.isprintable() for line in err.splitlines())
    assert err.count(r"\x1b]0;x\x07\u202e.safetensors") == 2


def test_the_digests_of_a_file_with_a_large_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.safetensors", [("a", "F32", (1,), bytes(4))], {"k": "x" * 2**24})
    assert "E3005" in info(capsys, "--hash", path, code=2)[1]
    assert "autov3" in info(capsys, "--hash", "--max-header", "17MiB", path)[0]


def test_printable() -> None:
    assert printable("a\\b\xe9\u6f22") == "a\\b\xe9\u6f22"
    assert printable("\x1b\n\u202e\udcff\U000e0001") == r"\x1b\n\u202e\udcff\U000e0001"


def test_other_encodings_of_stdout(tmp_path: Path) -> None:
    path = tmp_path / "\u6f22.safetensors"
    save(path, [("a", "F32", (1,), bytes(4))], {"k": "\u6f22"})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "ldm", "info", path], cwd=ROOT, capture_output=True, check=True, env=environment)
    assert rb"\u6f22.safetensors" in done.stdout


def picture(path: Path, **texts: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (8, 16)).save(path, pnginfo=chunks)
    return path


def test_our_own_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ldm.metadata import native
    from tests.metadata.test_native import RECORD

    path = picture(tmp_path / "a.png", ldm=native.write(RECORD), parameters="x\nSteps: 1, Sampler: Euler, Seed: 1")
    told = facts(capsys, path)
    assert told["made_by"] == "ldm" and told["record"] == json.loads(native.write(RECORD)) and (told["width"], told["height"]) == (8, 16)
    out, _ = info(capsys, path)
    assert "PNG picture, 8x16" in out and "made by ldm" in out and f"Seed: {RECORD.seed}" in out


def test_pictures_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = f"a cat {HOSTILE}\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x16"
    told = facts(capsys, picture(tmp_path / "a.png", parameters=lines, workflow='{"nodes": []}'))
    assert told["made_by"] == "a1111" and told["prompt"].startswith("a cat")
    assert told["negative"] == "a dog" and told["settings"]["Seed"] == "5"
    assert told["texts"]["workflow"] == {"characters": 13, "start": '{"nodes": []}'}
    out, _ = info(capsys, tmp_path / "a.png")
    assert all(line.isprintable() for line in out.splitlines()) and "made by a1111" in out and "Sampler: Euler a" in out
    graph = {"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal"}}}
    assert facts(capsys, picture(tmp_path / "b.png", prompt=json.dumps(graph)))["made_by"] == "comfyui"
    assert "no text says" in info(capsys, picture(tmp_path / "c.png"))[0]
    told = facts(capsys, picture(tmp_path / "d.png", ldm='{"schema": 99}'))
    assert "another version" in told["record_refused"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_formats(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    text = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (8, 16)).save(path, exif=exif.tobytes())
    told = facts(capsys, path)
    assert told["title"].endswith("picture, 8x16") and told["prompt"] == "a cat" and told["settings"]["Steps"] == "20"


def test_a_damaged_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    out, err = info(capsys, path, code=2)
    assert out == "" and err.startswith("ldm: error E2000: ") and len(err.splitlines()) == 1
