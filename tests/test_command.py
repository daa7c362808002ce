"""The command: what it says and where, its exit codes, its files. The model is a fake; the real one has tests of its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import ldm
from ldm.commands import main, output, progress
from ldm.errors import LdmError, MemoryNeedError
from ldm.images import read_texts
from ldm.metadata import a1111, native
from ldm.models.shapes import load_family
from ldm.options import Job


class Fake:
    """Stands where a pipeline stands: pictures of one colour, at once."""

    def __init__(self) -> None:
        self.family = load_family("sdxl-base")
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.source, self.vae_source = "a.safetensors", None
        self.loads: list[tuple[Any, ...]] = []
        self.calls: list[dict[str, Any]] = []

    def load(self, path: Any, *, progress: Callable[[int, int], None], **keywords: Any) -> Fake:
        self.loads.append((path, keywords))
        progress(1, 1)
        return self

    def generate(self, prompt: str, negative: str | None, *, on_step: Callable[[Any], Any], **keywords: Any) -> SimpleNamespace:
        self.calls.append({"prompt": prompt, "negative": negative, **keywords})
        seed = 7 if keywords["seed"] is None else keywords["seed"]
        chosen = {"width": 16, "height": 8, "steps": 2, "cfg": 5.0, "sampler": "euler", "schedule": "karras", "sigmas": (9.0, 1.0, 0.0)}
        job = Job(prompt, negative, **{**keywords, **chosen, "seed": seed})
        for _ in range(2):
            on_step(None)
        images = [Image.new("RGB", (16, 8), (k, 0, 0)) for k in range(job.batch)]
        latents, seeds = torch.ones(job.batch, 4, 1, 2), [seed + k for k in range(job.batch)]
        return SimpleNamespace(images=images, latents=latents, seeds=seeds, job=job, stopped_at=None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    made, handler = Fake(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(vars(ldm), "load", made.load)
    monkeypatch.chdir(tmp_path)
    yield made
    signal.signal(signal.SIGTERM, handler)


def sample(*argv: str) -> int:
    return main(["sample", *argv])


def test_paths_alone_on_stdout_and_the_rest_on_stderr(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("-p", "x", "-b", "2", "-s", "40") == 0
    out, err = capsys.readouterr()
    assert out == "outputs/00001-40.png\noutputs/00002-41.png\n"
    assert "loading ldm-emoji.safetensors" in err and "loaded in" in err
    assert "saved outputs/00001-40.png  seed 40" in err and "saved outputs/00002-41.png  seed 41" in err
    assert "\r" not in err and "\033" not in err  # not a terminal: no bar, no colour


def test_quiet_says_only_the_paths(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("-p", "x", "-q") == 0
    assert capsys.readouterr() == ("outputs/00001-7.png\n", "")


def test_everything_asked_for_reaches_the_pipeline(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").touch()
    (tmp_path / "v.safetensors").touch()
    words = "-p x -n y -W 64 -H 32 --steps 3 --cfg 2 --sampler heun --schedule simple -s 5 -b 2 --profile a1111 --set ensd=1"
    files = "-m m.safetensors --vae v.safetensors --device cpu --dtype float32"
    assert sample(*f"{words} {files}".split()) == 0
    assert fake.loads == [("m.safetensors", {"device": "cpu", "dtype": "float32", "vae": "v.safetensors"})]
    wanted = {"prompt": "x", "negative": "y", "width": 64, "height": 32, "steps": 3, "cfg": 2.0, "sampler": "heun", "schedule": "simple"}
    assert fake.calls == [{**wanted, "sigmas": None, "seed": 5, "batch": 2, "profile": "a1111", "overrides": {"ensd": "1"}}]


def test_few_steps_are_remarked_on(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    for words, noted in ((["--steps", "3"], True), (["--steps", "4"], False), ([], False), (["--sigmas", "3,1,0"], True)):
        assert sample("-p", "x", *words) == 0
        assert ("note: dpmpp_2m wants at least 4 steps" in capsys.readouterr().err) is noted


def test_absent_values_stay_absent(fake: Fake) -> None:
    assert sample("-p", "x") == 0
    names = ("negative", "width", "height", "steps", "cfg", "sampler", "schedule", "sigmas", "seed", "overrides")
    assert {fake.calls[0][name] for name in names} == {None}


def test_the_picture_carries_both_records(fake: Fake) -> None:
    assert sample("-p", "a 🍎", "-b", "2", "-o", "a.png", "-q") == 0
    texts = read_texts(Path("a-1.png"))
    record = native.read(texts[native.KEY])
    assert (record.job.prompt, record.seed, record.index, record.model) == ("a 🍎", 8, 1, "a.safetensors")
    assert (record.device, record.dtype, record.torch, record.version) == ("cpu", "float32", torch.__version__, ldm.__version__)
    assert record.job.sigmas == (9.0, 1.0, 0.0)
    settings = a1111.read(texts[a1111.KEY]).settings
    assert (settings["Seed"], settings["Size"], settings["RNG"], settings["Model"]) == ("8", "16x8", "CPU", "a")


def test_latents_are_saved_too(fake: Fake) -> None:
    assert sample("-p", "x", "--latents", "new/z.safetensors", "-q") == 0
    assert np.array_equal(load_file("new/z.safetensors")["latents"], np.ones((1, 4, 1, 2), np.float32))
    assert sample("-p", "x", "--latents", "new/z.safetensors") == 2
    assert sample("-p", "x", "--latents", "new/z.safetensors", "--overwrite") == 0


def test_an_existing_name_takes_the_next_number(fake: Fake, tmp_path: Path) -> None:
    for _ in range(2):
        assert sample("-p", "x", "-o", "deep/folder", "-q") == 0
        assert sample("-p", "x", "-o", "cat.png", "-q") == 0
    assert sorted(each.name for each in (tmp_path / "deep/folder").iterdir()) == ["00001-7.png", "00002-7.png"]
    assert sorted(each.name for each in tmp_path.glob("*.png")) == ["cat-1.png", "cat.png"]


def test_overwrite_replaces_the_named_file(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"old")
    assert sample("-p", "x", "-o", "cat.png", "--overwrite", "-b", "2", "-q") == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cat-1.png", "cat.png"]
    assert Image.open(tmp_path / "cat.png").size == (16, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "x", "-W", "1025"], "width 1025 is not allowed: 16 to 8192, multiples of 8: the nearest is 1024"),
        (["-p", "x", "-s", "abc"], "--seed 'abc' is not acceptable: give a whole number"),
        (["-p", "a cat \udcff"], "prompt holds a byte that is not UTF-8 at character 7"),
        ([], "no prompt"),
        (["-p", "x", "--nonsense"], "--nonsense"),
        (["-p", "x", "-m", "none.safetensors"], "model file none.safetensors does not exist: give the path of a .safetensors file"),
        (["-p", "x", "-m", "."], "model file . is a folder"),
        (["-p", "x", "--vae", "none.safetensors"], "vae file none.safetensors does not exist"),
        (["-p", "x", "--profile", "comfy"], "did you mean comfyui?"),
        (["-p", "x", "--set", "rgn=cpu"], "did you mean rng?"),
        (["-p", "x", "--sampler", "eulr"], "euler"),
        (["-p", "x", "--schedule", "karas"], "did you mean karras?"),
        (["-p", "x", "-o", "a.jpg"], ".jpg is not written: name it a.png"),
        (["-p", "x", "-o", "file/below"], "is not a folder"),
        (["-p", "x", "--latents", "z.bin"], "must end in .safetensors"),
    ],
)
def test_refusals_come_before_the_load_in_one_line(fake: Fake, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    Path("file").touch()
    assert sample(*words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith("ldm: ")) == ("", 1, True)
    assert said in err
    assert fake.loads == []
    assert [each.name for each in Path().iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: run the tests as another user")
def test_a_folder_without_permission_is_refused_before_the_load(fake: Fake) -> None:
    Path("locked").mkdir(mode=0o500)
    assert sample("-p", "x", "-o", "locked") == 2
    assert fake.loads == []


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert main(["smaple"]) == 2
    out, err = capsys.readouterr()
    assert f"ldm {ldm.__version__}\n" in out and "did you mean sample?" in err


@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--version", 0)])
def test_flags_that_end_at_once(fake: Fake, flag: str, code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        sample(flag)
    assert caught.value.code == code


def raising(error: BaseException) -> Callable[..., Any]:
    def generate(*_words: Any, **_keywords: Any) -> Any:
        raise error

    return generate


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryNeedError("needed 14 GB, free 3 GB: close something"), 1, "ldm: needed 14 GB, free 3 GB: close something\n"),
        (LdmError("two\nlines"), 1, "ldm: two lines\n"),
        (RuntimeError("x"), 1, "ldm: unexpected RuntimeError: x: run it again with --debug and report what it shows\n"),
        (KeyboardInterrupt(), 130, "ldm: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_a_code(fake: Fake, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str) -> None:
    fake.generate = raising(error)  # type: ignore[method-assign]
    assert sample("-p", "x", "-q") == code
    assert capsys.readouterr() == ("", said)
    assert list(Path().iterdir()) == []


def test_debug_shows_the_traceback(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.generate = raising(LdmError("broken"))  # type: ignore[method-assign]
    assert sample("-p", "x", "--debug") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("ldm: broken\n")


def test_a_full_disk_is_said_and_leaves_nothing(fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert sample("-p", "x", "-q") == 1
    said = "ldm: cannot write outputs/00001-7.png: No space left on device: make room or choose another place\n"
    assert capsys.readouterr() == ("", said)
    assert list(Path("outputs").iterdir()) == []


def test_a_warning_is_a_note(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    def load(*_words: Any, **_keywords: Any) -> Fake:
        warnings.warn("the VAE was tried again", RuntimeWarning, stacklevel=1)
        return fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(ldm), "load", load)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert sample("-p", "x", "-q") == 0
    assert capsys.readouterr().err == "ldm: note: the VAE was tried again\n"


SCRIPT = """
    import signal, sys, time
    import ldm
    from ldm.commands import main
    from tests.test_command import Fake

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    class Slow(Fake):
        def generate(self, *words, **keywords):
            print("started", file=sys.stderr, flush=True)
            time.sleep({seconds})
            return super().generate(*words, **keywords)

    ldm.load = Slow().load
    sys.exit(main(["sample", "-p", "x", "-q", "-o", sys.argv[1]]))
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT.format(seconds=seconds)), str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")])
def test_signals_end_the_run_with_their_code(tmp_path: Path, number: signal.Signals, code: int, word: bytes) -> None:
    process = start(tmp_path / "out", 60)
    assert process.stderr is not None
    assert process.stderr.readline() == b"started\n"
    process.send_signal(number)
    sent = time.perf_counter()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, b"", b"ldm: " + word + b"\n")
    assert time.perf_counter() - sent < 10
    assert not (tmp_path / "out").exists()


def test_pictures_are_written_though_nobody_reads_the_paths(tmp_path: Path) -> None:
    process = start(tmp_path, 0)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"started\n"
    assert process.wait(timeout=60) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["00001-7.png"]


def test_names_that_are_not_text_are_printed_as_they_are(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    process = start(folder, 0)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, os.fsencode(folder) + b"/00001-7.png\n")


def test_two_hands_on_one_folder_never_meet(tmp_path: Path) -> None:
    def save(path: Path) -> Path:
        with open(path, "x"):
            return path

    made = [output.save_free(output.candidates(str(tmp_path), seed % 2, 0), save) for seed in range(20)]
    stale = [output.candidates(str(tmp_path / "a.png"), 0, 0) for _ in range(5)]
    made += [output.save_free(names, save) for names in stale]
    assert len(set(made)) == 25


def test_the_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for term, quiet, shown in (("xterm", False, True), ("dumb", False, False), ("xterm", True, False)):
        monkeypatch.setenv("TERM", term)
        with progress.Bar("sampling", quiet, 3) as bar:
            for _ in range(3):
                bar.step(None)
        assert bar.done == 3
        assert ("3/3" in capsys.readouterr().err) is shown


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (1500, "2 kB"), (31_700_000, "32 MB"), (6_938_078_334, "6.9 GB")])
def test_sizes(count: int, text: str) -> None:
    assert progress.size(count) == text


@pytest.mark.parametrize(("steps", "seconds", "text"), [(20, 10, "2.0 it/s"), (10, 20, "2.0 s/it"), (0, 1, ""), (1, 0, "")])
def test_rates(steps: int, seconds: float, text: str) -> None:
    assert progress.rate(steps, seconds) == text
