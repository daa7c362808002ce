"""`ldm sample` with many jobs, many formats, layers and a loop, on the model in the box."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ldm import pictures
from ldm.commands import main
from ldm.jobs.manifest import Manifest
from ldm.metadata import a1111, native
from scripts import synthetic

QUICK = ["--steps", "2", "--sampler", "euler", "-q"]
APPLE = "a red apple on a blue background"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))


def pixels(path: str | Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture).copy()


def record(path: str | Path) -> native.Record:
    return native.read(pictures.read(Path(path)).texts[native.KEY])


def test_a_list_of_seeds_is_a_picture_each_and_a_line_each_in_the_manifest() -> None:
    assert main(["sample", "-p", APPLE, "-s", "5,7-8", "-o", "out", *QUICK]) == 0
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["00001-5.png", "00002-7.png", "00003-8.png"]
    lines = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [5, 7, 8]
    assert main(["sample", "-p", APPLE, "-s", "8", "-o", "alone.png", *QUICK]) == 0
    assert (pixels("alone.png") == pixels("out/00003-8.png")).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif"])
def test_a_picture_is_made_again_from_what_it_says_in_every_format(suffix: str) -> None:
    assert (
        main(["sample", "-p", APPLE, "-n", "grey", "-s", "3", "--original-size", "96x64", "--crop", "8,0", "-o", f"one.{suffix}", *QUICK])
        == 0
    )
    assert main(["sample", "--from-image", f"one.{suffix}", "-o", f"two.{suffix}", "-q"]) == 0
    assert (pixels(f"one.{suffix}") == pixels(f"two.{suffix}")).all()
    assert record(f"one.{suffix}") == record(f"two.{suffix}")
    job = record(f"two.{suffix}").job
    assert (job.original, job.crop, job.negative) == ((64, 96), (0, 8), "grey")
    assert main(["sample", "--from-image", f"one.{suffix}", "-s", "4", "-o", "three.png", "-q"]) == 0
    assert record("three.png").seed == 4
    assert (record("three.png").job.prompt, record("three.png").job.steps) == (APPLE, 2)


def test_a_picture_of_another_tier_says_so_and_is_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [each for each in QUICK if each != "2"]
    lines.insert(1, "8")
    assert main(["sample", "-p", APPLE, "-s", "3", "--speed", "approx", "--format", "json", "-o", "one.png", *lines]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["speed"] == "approx"
    assert a1111.read(pictures.read(Path("one.png")).texts[a1111.KEY]).settings["ldm speed"] == "approx"
    assert main(["sample", "--from-image", "one.png", "-o", "two.png", "-q"]) == 0
    assert main(["sample", "--from-image", "one.png", "--speed", "exact", "-o", "exact.png", "-q"]) == 0
    assert (pixels("one.png") == pixels("two.png")).all() and record("two.png").job.speed == "approx"
    assert (pixels("one.png") != pixels("exact.png")).any()
    assert "ldm speed" not in pictures.read(Path("exact.png")).texts[a1111.KEY]


def test_a_tier_that_the_machine_does_not_have_is_refused_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "-p", APPLE, "--speed", "fp8", "--device", "cpu", "-o", "one.png"]) == 2
    said = capsys.readouterr().err
    assert "error E8001: speed fp8 needs an NVIDIA GPU" in said and "loaded" not in said


def test_sizes_that_the_model_is_told_change_the_picture() -> None:
    for name, more in (
        ("a", []),
        ("b", ["--original-size", "32x32"]),
        ("c", ["--negative-crop", "64,64"]),
        ("d", ["--target-size", "128x128"]),
    ):
        assert main(["sample", "-p", APPLE, "-s", "1", "-o", f"{name}.png", *more, *QUICK]) == 0
    assert (pixels("a.png") == pixels("d.png")).all()  # what is told anyway
    assert (pixels("a.png") != pixels("b.png")).any()
    assert (pixels("a.png") != pixels("c.png")).any()


def test_without_metadata_there_is_nothing_but_pixels_and_no_hash_leaves_the_hash_out() -> None:
    assert main(["sample", "-p", APPLE, "-s", "1", "-o", "bare.png", "--no-metadata", *QUICK]) == 0
    assert not pictures.read(Path("bare.png")).texts
    assert main(["sample", "-p", APPLE, "-s", "1", "-o", "full.png", *QUICK]) == 0
    assert main(["sample", "-p", APPLE, "-s", "1", "-o", "short.png", "--no-hash", *QUICK]) == 0
    assert (pixels("bare.png") == pixels("full.png")).all()
    said = a1111.read(pictures.read(Path("full.png")).texts[a1111.KEY]).settings
    assert said["Model hash"] == str(record("full.png").model_sha256)[:10] and len(said["Model hash"]) == 10
    assert record("short.png").model_sha256 is None


TINY = "--w 64 --h 64"
KOHYA = [f"a {colour} apple --d {seed} --s 2 --l {2 + seed % 3} --ss euler {TINY}" for seed, colour in enumerate(["red", "green", "blue"])]
OTHER = "--steps 2 --cfg_scale 3 --width 64 --height 64"
A1111 = [f'--prompt "a red apple, nr {seed}" --seed {seed} --sampler_name "Euler a" {OTHER}' for seed in range(3)]


def test_a_prompt_file_of_both_grammars_and_each_of_its_pictures_made_again() -> None:
    Path("jobs.txt").write_text("\n".join(["# two grammars", *KOHYA, "", *A1111]), encoding="utf-8")
    assert main(["sample", "--from-file", "jobs.txt", "-o", "out", "-q"]) == 0
    made = sorted(Path("out").glob("*.png"))
    assert len(made) == 6
    assert record(made[5]).job.sampler == "euler_a" and record(made[1]).job.prompt == "a green apple"
    for each in made:
        assert main(["sample", "--from-image", str(each), "-o", "again.png", "--overwrite", "-q"]) == 0
        assert (pixels(each) == pixels("again.png")).all(), each


def test_resume_makes_what_is_missing_and_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.jsonl").write_text(
        "".join(json.dumps({"prompt": APPLE, "seed": seed, "width": 64, "height": 64, "steps": 2}) + "\n" for seed in (1, 2, 2, 3))
    )
    words = ["sample", "--from-file", "jobs.jsonl", "-o", "out", "-q", "--no-hash"]
    assert main([*words, "--resume"]) == 0
    first = {path.name: path.read_bytes() for path in Path("out").glob("*.png")}
    assert len(first) == 4
    (Path("out") / "00002-2.png").unlink()
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert capsys.readouterr().out.split() == ["out/00005-2.png"]
    assert (pixels("out/00005-2.png") == pixels("out/00003-2.png")).all()
    assert main([*words, "--skip-existing"]) == 0
    assert capsys.readouterr().out == ""
    assert Manifest(Path("out")).damaged == 0


def test_a_wrong_line_stops_everything_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.txt").write_text(f"{KOHYA[0]}\nbad --w 65\n", encoding="utf-8")
    assert main(["sample", "--from-file", "jobs.txt", "-o", "out"]) == 2
    assert "jobs.txt:2" in capsys.readouterr().err and not Path("out").exists()


def test_names_by_a_pattern() -> None:
    assert main(["sample", "-p", APPLE, "-s", "1,2", "-o", "out", "--name", "{sampler}/{seed:03}-{prompt}", *QUICK]) == 0
    assert sorted(path.as_posix() for path in Path("out").rglob("*.png")) == [f"out/euler/{seed:03}-{APPLE}.png" for seed in (1, 2)]
    assert main(["sample", "-p", APPLE, "-o", "out", "--name", "../{seed}", *QUICK]) == 2
    assert main(["sample", "-p", APPLE, "-o", "x.png", "--name", "{seed}", *QUICK]) == 2


def test_json_is_an_object_a_picture_and_errors_are_objects_too(capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    assert main(["sample", "-p", APPLE, "-s", "1,2", "-o", "out", "--format", "json", *QUICK]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for each in said:
        assert each["sha256"] == hashlib.sha256(Path(each["path"]).read_bytes()).hexdigest()
        assert each["parameters"]["steps"] == 2 and each["timings"]["steps"] == 2
    assert [each["seed"] for each in said] == [1, 2]
    assert main(["sample", "-p", "x", "-W", "7", "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "E2000"


def test_a_dry_run_prints_the_finished_job_and_makes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "-p", APPLE, "-s", "1,2", "--ar", "3:2", "--dry-run", "-q"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["seed"] for each in made] == [1, 2]
    assert (made[0]["width"], made[0]["height"], made[0]["family"]) == (160, 112, "emoji")
    assert not Path("outputs").exists()
    Path("job.json").write_text(json.dumps(made[0]))
    assert main(["sample", "--params", "job.json", "--dry-run", "-q"]) == 0
    assert json.loads(capsys.readouterr().out) == made[0]


def test_lines_of_a_loop_do_not_overwrite_each_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--loop", "-s", "1", *QUICK, "-o", "x.png", "--overwrite", "-q"]
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{APPLE}\na dog\n".encode())))
        assert main(words) == 0
        assert capsys.readouterr().out.split() == ["x.png", "x-1.png"]
    assert main([*words, "-s", "1,2"]) == 2
    assert "a list of seeds and --loop" in capsys.readouterr().err


def test_flags_with_underscores() -> None:
    assert main(["sample", "--negative_prompt", "a_dog", "--cfg_scale=7", "-p", APPLE, "-s", "1", *QUICK, "-o", "under.png", "-q"]) == 0
    made = record("under.png").job
    assert (made.negative, made.cfg) == ("a_dog", 7.0)


def test_a_model_by_name_and_an_unknown_one_with_its_near_matches(capsys: pytest.CaptureFixture[str]) -> None:
    from ldm.resources import weights

    Path("models/checkpoints").mkdir(parents=True)
    Path("models/checkpoints/my-emoji.safetensors").symlink_to(weights() / "ldm-emoji.safetensors")
    words = ["sample", "-p", APPLE, "-s", "1", "--models-dir", ".", *QUICK]
    assert main([*words, "-m", "My-Emoji", "-o", "named.png"]) == 0
    assert record("named.png").model == "my-emoji.safetensors"
    assert main([*words, "--from-image", "named.png", "-o", "again.png"]) == 0
    assert main([*words, "-m", "my-emojo"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_a_loop_keeps_the_model_and_its_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "/steps 2\n/w 64\n/h 64\na red apple --d 4\n/nothing 3\n\na green apple --d 5\n/q\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["sample", "--loop", "-o", "out", "-q"]) == 0
    said = capsys.readouterr()
    assert [path.split("-")[-1] for path in said.out.split()] == ["4.png", "5.png"]
    assert said.err.count("error") == 1 and "/nothing" in said.err
    assert record("out/00002-5.png").job.width == 64


def test_the_watermark_is_refused_where_it_cannot_be_and_read_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from ldm import watermark

    assert main(["sample", "-p", APPLE, "--watermark", "sdxl", *QUICK]) == 2
    assert "too small" in capsys.readouterr().err
    assert main(["sample", "-p", APPLE, "-s", "1", "--size", "256x256", "--watermark", "sdxl", "-o", "marked.png", *QUICK]) == 0
    with Image.open("marked.png") as picture:
        assert watermark.read(picture) >= 46


def test_foreign_names_of_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "-p", "x", "--sampler", "DPM++ 2M SDE Karras", "--dry-run", "-q"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["sampler"], made["schedule"]) == ("dpmpp_2m_sde", "karras")


@pytest.mark.parametrize(
    "words",
    [
        ["-s", "1,2", "--latents", "l.safetensors"],
        ["--resume", "--latents", "l.safetensors"],
        ["-s", "1,2", "--from-file", "jobs.txt"],
        ["--loop", "--resume"],
        ["--resume", "-o", "a.png"],
        ["--resume", "--overwrite"],
        ["--resume", "-b", "2", "--set", "batch_noise=one-draw"],
    ],
)
def test_flags_that_take_something_from_each_other_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.txt").write_text("a cat\n")
    assert main(["sample", "-p", "x", *words, "-q"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_changes_a_picture_is_not_taken_for_done(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "-p", APPLE, "-s", "1", "-o", "out", "--resume", "--no-hash", *QUICK]
    for more in ([], ["--ar", "3:2"], ["--ar", "2:3"], ["--dtype", "bfloat16"], ["--type", "webp"], ["--crop", "8,8"]):
        for made in (1, 0):
            assert main([*words, *more]) == 0
            assert len(capsys.readouterr().out.split()) == made, more


def test_lines_of_one_name_do_not_replace_each_other() -> None:
    Path("jobs.txt").write_text("a cat --f cat --d 1,2,3 --w 64 --h 64\n")
    assert main(["sample", "--from-file", "jobs.txt", "-o", "out", "--overwrite", *QUICK]) == 0
    assert sorted(record(path).seed for path in Path("out").glob("*.png")) == [1, 2, 3]


def test_a_job_that_fails_is_said_and_the_others_are_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ldm.commands import sample
    from ldm.errors import NumericError

    make = sample.make_one

    def failing(pipeline: Any, task: Any, *keep: Any, **more: Any) -> Any:
        if task.job.seed == 2:
            raise NumericError("values that are not finite")
        return make(pipeline, task, *keep, **more)

    monkeypatch.setattr(sample, "make_one", failing)
    for more in ([], ["--resume"]):
        folder = f"out{len(more)}"
        assert main(["sample", "-p", APPLE, "-s", "1,2,3", "-o", folder, *more, *QUICK]) == 1
        assert "E6001" in capsys.readouterr().err
        assert sorted(record(path).seed for path in Path(folder).glob("*.png")) == [1, 3]


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each decode to come, whether it fails; those after the list do not."""
    from ldm.errors import NumericError
    from ldm.runtime import autoencoding

    fails: list[bool] = []
    decode = autoencoding.decode

    def perhaps(*given: Any) -> Any:
        if fails and fails.pop(0):
            raise NumericError("VAE decode: values that are not finite", "E6002")
        return decode(*given)

    monkeypatch.setattr(autoencoding, "decode", perhaps)
    return fails


def test_pictures_before_a_decode_that_fails_are_saved(breaking: list[bool], capsys: pytest.CaptureFixture[str]) -> None:
    small = [*QUICK, "-W", "64", "-H", "64", "--no-hash"]
    breaking += [False, False, True]
    assert main(["sample", "-p", APPLE, "-s", "3", "-b", "4", "-o", "a.png", "--latents", "a.safetensors", *small]) == 1
    said = capsys.readouterr()
    assert said.out.split() == ["a.png", "a-1.png"] and "E6002" in said.err and said.err.count("\n") == 1
    assert sorted(path.name for path in Path().glob("a*.*")) == ["a-1.png", "a.png", "a.safetensors"]
    assert load_file("a.safetensors")["latents"].shape[0] == 4
    assert (record("a-1.png").seed, record("a-1.png").vae_dtype) == (4, "float32")
    breaking.append(True)
    assert main(["sample", "-p", APPLE, "-o", "b", "--latents", "b.safetensors", *small]) == 1  # the first of all
    assert Path("b.safetensors").exists() and not Path("b").exists()


def test_the_manifest_lists_the_pictures_that_are_saved_before_a_decode_that_fails(breaking: list[bool]) -> None:
    jobs = [{"prompt": APPLE, "seed": seed, "width": 64, "height": 64, "steps": 2, "batch": 2} for seed in (10, 20)]
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    breaking += [False, True]
    assert main(["sample", "--from-file", "jobs.jsonl", "-o", "out", "-q", "--no-hash"]) == 1
    lines = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [10, 20, 21]
    assert sorted(line["path"] for line in lines) == sorted(path.name for path in Path("out").glob("*.png"))


def test_what_the_header_and_the_words_tell_is_refused_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ldm

    family = replace(synthetic.tiny(), prediction="v", zero_terminal=True)
    model = str(synthetic.write(tmp_path / "zero.safetensors", family))
    monkeypatch.setitem(vars(ldm), "load", lambda *words, **more: pytest.fail("loaded"))
    refused = {
        "40 and 39 chunks of 75 tokens, 1560 together": ["-p", "word " * 75 * 40, "-n", "word " * 75 * 39],
        "alphas 'float16'": ["-p", "x", "-m", model, "--sigmas", "14,1,0", "--set", "alphas=float16"],
    }
    for said, words in refused.items():
        assert main(["sample", *words, "-q"]) == 2
        assert said in capsys.readouterr().err
    assert main(["sample", "-p", "word " * 75 * 40, "-n", "word " * 75 * 20, "--dry-run", "-q"]) == 0
