"""The command: what it says and where, its exit codes, its files. The model is a fake; the real one has tests of its own."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import ldm
from ldm import pictures
from ldm.checkpoint import writer
from ldm.checkpoint.memory import size
from ldm.checkpoint.safetensors import read_header
from ldm.commands import VERBS, main, output, progress
from ldm.errors import LdmError, MemoryNeedError
from ldm.metadata import a1111, native
from ldm.models.shapes import load_family
from ldm.options import Job
from scripts import synthetic


class Fake:
    """Stands where a pipeline stands: pictures of one colour, at once."""

    def __init__(self) -> None:
        self.family = load_family("sdxl-base")
        self.device, self.dtype, self.unet = torch.device("cpu"), torch.float32, torch.nn.Linear(1, 1)
        self.source, self.vae_source = "a.safetensors", None
        self.loads: list[tuple[Any, ...]] = []
        self.calls: list[dict[str, Any]] = []

    def load(self, path: Any, *, progress: Callable[[int, int], None], **keywords: Any) -> Fake:
        self.loads.append((path, keywords))
        progress(1, 1)
        return self

    def run(self, job: Job, on_step: Callable[[Any], Any]) -> SimpleNamespace:
        self.calls.append({name: getattr(job, name) for name in native.SAVED})
        seed = 7 if job.seed is None else job.seed
        job = replace(job, width=16, height=8, steps=2, cfg=5.0, sampler="euler", schedule="karras", sigmas=(9.0, 1.0, 0.0), seed=seed)
        for _ in range(2):
            on_step(None)
        images = [Image.new("RGB", (16, 8), (k, 0, 0)) for k in range(job.batch)]
        latents, seeds = torch.ones(job.batch, 4, 1, 2), [seed + k for k in range(job.batch)]
        return SimpleNamespace(images=images, latents=latents, seeds=seeds, job=job, stopped_at=None, vae_dtypes=["float32"] * job.batch)


def texts_of(path: Path) -> Any:
    return pictures.read(path).texts


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    made, handler = Fake(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(vars(ldm), "load", made.load)
    monkeypatch.setattr("ldm.commands.sample.look_ahead", lambda job, tasks: None)  # there is no file behind it
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
    files = "-m m.safetensors --vae v.safetensors --device cpu --dtype float32 --max-header 32MiB --verify"
    assert sample(*f"{words} {files}".split()) == 0
    how = {"device": "cpu", "dtype": "float32", "vae_dtype": "auto", "vae": "v.safetensors", "max_header": 2**25, "verify": True}
    assert fake.loads == [("m.safetensors", how)]
    wanted = {"prompt": "x", "negative": "y", "width": 64, "height": 32, "steps": 3, "cfg": 2.0, "sampler": "heun", "schedule": "simple"}
    wanted |= {"sigmas": None, "seed": 5, "batch": 2, "profile": "a1111", "overrides": {"ensd": "1"}}
    assert [{name: call[name] for name in wanted} for call in fake.calls] == [wanted]


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
    texts = texts_of(Path("a-1.png"))
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
    assert sorted(each.name for each in (tmp_path / "deep/folder").glob("*.png")) == ["00001-7.png", "00002-7.png"]
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
        (["-p", "x", "-m", "none.safetensors"], "unknown checkpoint 'none.safetensors': `ldm models` lists what is there, or give"),
        (["-p", "x", "-m", "."], "the folder . is here: name a .safetensors file in it"),
        (["-p", "x", "--vae", "none.safetensors"], "unknown vae 'none.safetensors'"),
        (["-p", "x", "--profile", "comfy"], "did you mean comfyui?"),
        (["-p", "x", "--set", "rgn=cpu"], "did you mean rng?"),
        (["-p", "x", "--sampler", "eulr"], "euler"),
        (["-p", "x", "--schedule", "karas"], "did you mean karras"),
        (["-p", "x", "-o", "a.gif"], ".gif is not written: name it a.png"),
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
    assert f"ldm {ldm.__version__}\n" in out and "did you mean sample" in err


@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--version", 0)])
def test_flags_that_end_at_once(fake: Fake, flag: str, code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        sample(flag)
    assert caught.value.code == code


def raising(error: BaseException) -> Callable[..., Any]:
    def run(*_words: Any, **_keywords: Any) -> Any:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryNeedError("needed 14 GB, free 3 GB: close something"), 1, "ldm: error E4001: needed 14 GB, free 3 GB: close something\n"),
        (LdmError("two\nlines"), 1, "ldm: error E1000: two lines\n"),
        (RuntimeError("x"), 1, "ldm: error E1000: unexpected RuntimeError: x: run it again with --debug and report what it shows\n"),
        (KeyboardInterrupt(), 130, "ldm: interrupted at step 1 of 30: 0 of 1 pictures are saved\n"),
    ],
)
def test_errors_are_one_line_and_a_code(fake: Fake, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str) -> None:
    fake.run = raising(error)  # type: ignore[method-assign]
    assert sample("-p", "x", "-q") == code
    assert capsys.readouterr() == ("", said)
    assert list(Path().iterdir()) == []


def test_debug_shows_the_traceback(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.run = raising(LdmError("broken"))  # type: ignore[method-assign]
    assert sample("-p", "x", "--debug") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("ldm: error E1000: broken\n")


def test_a_full_disk_is_said_and_leaves_nothing(fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert sample("-p", "x", "-q") == 1
    said = "ldm: error E5001: cannot write outputs/00001-7.png: No space left on device: make room or choose another place\n"
    assert capsys.readouterr() == ("", said)
    assert list(Path("outputs").iterdir()) == []


def broken_pipe() -> Any:
    end, start = os.pipe()
    os.close(end)
    return open(start, "w")


def full_disk() -> Any:
    return open("/dev/full", "w")


STREAMS = {"closed": lambda: None, "full": full_disk, "gone": broken_pipe}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("words", [[], ["--debug"], ["-q"]])
def test_a_picture_does_not_need_stderr(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    assert sample("-p", "x", *words) == 0
    assert capsys.readouterr().out == "outputs/00001-7.png\n"
    assert sample("-p", "x", "-W", "1", *words) == 2
    assert main([]) == 2
    assert capsys.readouterr().out == ""


def test_a_bar_that_cannot_be_drawn_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for kind in ("full", "gone"):
        stream = STREAMS[kind]()
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.Bar("sampling", False, 3) as bar:
            for _ in range(3):
                bar.step(None)
        assert (bar.done, bar.shown) == (3, True)


@pytest.mark.parametrize(("kind", "code", "said"), [("closed", 0, 0), ("gone", 0, 0), ("full", 1, 1)])
def test_every_picture_is_saved_whatever_becomes_of_stdout(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, code: int, said: int
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    assert sample("-p", "x", "-b", "3", "-q") == code
    assert len(list(Path("outputs").glob("*.png"))) == 3
    err = capsys.readouterr().err
    assert (err.count("\n"), err.count("cannot write to stdout: No space left on device")) == (said, said)


def test_paths_do_not_depend_on_the_encoding_of_stdout(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        assert sample("-p", "x", "-o", "cä", "-b", "2", "-q") == 0
        written = stream.buffer.getvalue().decode() if isinstance(stream, io.TextIOWrapper) else stream.getvalue()  # type: ignore[attr-defined]
        assert written.count("cä/0000") == 2 and len(written.splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "code", "said"), [("full", 1, "ldm: error E1000: input or output: No space left on device\n"), ("gone", 1, "")]
)
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["sample", "--help"], ["sample", "--version"]])
def test_help_that_cannot_be_printed_is_a_failure(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], kind: str, code: int, said: str
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    assert main(words) == code
    assert capsys.readouterr().err == said


def test_the_exit_code_outlives_a_broken_stream(tmp_path: Path) -> None:
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT.format(seconds=0)).replace('"-q", ', ""), str(tmp_path)]
    with open("/dev/full", "w") as full:
        run = partial(subprocess.run, words, cwd=Path(__file__).parents[1], timeout=120)
        assert run(stdout=full, stderr=subprocess.PIPE).returncode == 1
        assert run(stdout=subprocess.PIPE, stderr=full).returncode == 0
    assert len(list(tmp_path.glob("*.png"))) == 2


def refuse_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int) -> Path:
    """The disk refuses the next file, and takes those after it; returns the temporary folder. What claims write down is no such file."""
    refusals, fsync = iter([OSError(number, os.strerror(number))]), os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, 1, 0) != b"{":
            for error in refusals:
                raise error
        fsync(descriptor)

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "fsync", sync)
    return tmp_path / "tmp"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space left on device: make room or choose another place"),
        (errno.EDQUOT, "Disk quota exceeded: make room or choose another place"),
        (errno.EROFS, "Read-only file system: choose a place where you may write"),
        (errno.EIO, "Input/output error: choose another place"),
    ],
)
def test_a_picture_that_is_refused_is_kept_elsewhere_and_the_others_are_saved(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, said: str
) -> None:
    kept = refuse_once(monkeypatch, tmp_path, number) / "ldm-7.png"
    assert sample("-p", "x", "-b", "3", "-q", "-o", "out") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["out/00002-8.png", "out/00003-9.png"]
    assert err == f"ldm: error E5001: cannot write out/00001-7.png: {said}; it is kept as {kept}\n"
    assert native.read(texts_of(kept)[native.KEY]).seed == 7


def test_latents_that_are_refused_cost_no_picture(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = refuse_once(monkeypatch, tmp_path, errno.ENOSPC) / "ldm-7.safetensors"
    assert sample("-p", "x", "-q", "--latents", "z.safetensors") == 1
    out, err = capsys.readouterr()
    assert out == "outputs/00001-7.png\n" and f"kept as {kept}\n" in err
    assert list(load_file(kept)) == ["latents"] and not Path("z.safetensors").exists()


def test_what_is_kept_replaces_nothing(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = refuse_once(monkeypatch, tmp_path, errno.ENOSPC)
    (folder / "ldm-7.png").write_bytes(b"old")
    assert sample("-p", "x", "-q", "-o", "a.png", "--overwrite") == 1
    assert (folder / "ldm-7.png").read_bytes() == b"old" and (folder / "ldm-7-1.png").is_file()


def test_a_folder_that_cannot_be_read_is_written_all_the_same(fake: Fake, tmp_path: Path) -> None:
    def refuse(_folder: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        assert [sample("-p", "x", "-q"), sample("-p", "x", "-q")] == [0, 0]
    assert sorted(each.name for each in (tmp_path / "outputs").glob("*.png")) == ["00001-7.png", "00002-7.png"]


def test_overwrite_follows_links(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/old.png").write_bytes(b"old")
    (tmp_path / "cat.png").symlink_to("far/old.png")
    (tmp_path / "dog.png").symlink_to("far/new.png")
    for name, real in (("cat.png", "far/old.png"), ("dog.png", "far/new.png")):
        assert sample("-p", "x", "-o", name, "--overwrite", "-q") == 0
        assert (tmp_path / name).is_symlink() and Image.open(tmp_path / real).size == (16, 8)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["cat.png", "dog.png", "far", "new.png", "old.png"]


LONG = "ä" * 125  # 250 bytes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", f"{LONG}aa.png"], "the name has 256 bytes, the limit is 255: choose a shorter one"),
        (["-o", f"{LONG}.png", "-b", "2"], "the name has 256 bytes"),
        (["-o", f"{LONG}aaaaaa/x"], "the name has 256 bytes"),
        (["--latents", f"{LONG}.safetensors"], "the name has 262 bytes"),
        (["-o", "dd.png"], "output dd.png is a folder"),
        (["-o", "dd.png", "--overwrite"], "output dd.png is a folder"),
        (["-o", "ee.png", "--overwrite", "-b", "2"], "ee-1.png is a folder"),
        (["-o", "pipe.png", "--overwrite"], "pipe.png is not a regular file, which is not replaced: choose another name"),
        (["-o", "loop.png", "--overwrite"], "loop.png is not a regular file"),
        (["-o", "astray.png", "--overwrite"], "file is not a folder"),
        (["--latents", "pipe.safetensors", "--overwrite"], "pipe.safetensors is not a regular file"),
        (["-o", "l.safetensors", "--latents", "l.safetensors"], "are in each other's way"),
        (["-o", "l.safetensors/a.png", "--latents", "l.safetensors"], "are in each other's way"),
        (["-o", "a.png", "--latents", "a.png/l.safetensors"], "are in each other's way"),
        (["-m", "file", "--latents", "link.safetensors", "--overwrite"], "is the file that the model is read from"),
        (["-m", "f" * 300], "unknown checkpoint"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_the_load(
    fake: Fake, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    Path("file").touch()
    for folder in ("dd.png", "ee-1.png"):
        Path(folder).mkdir()
    for pipe in ("pipe.png", "pipe.safetensors"):
        os.mkfifo(pipe)
    for link, target in (("loop.png", "loop.png"), ("astray.png", "file/a.png"), ("link.safetensors", "file")):
        Path(link).symlink_to(target)
    assert sample("-p", "x", *words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), said in err) == ("", 1, True), err
    assert fake.loads == []


def test_names_up_to_the_limit_are_written(fake: Fake) -> None:
    for name in (f"{LONG}a.png", f"{'🍎' * 62}.png"):
        assert sample("-p", "x", "-o", name, "-q") == 0
        assert Path(name).is_file()
    assert sample("-p", "x", "-o", "folder", "--latents", "folder/l.safetensors", "-q") == 0


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model file of tiny width, and nothing faked."""
    monkeypatch.chdir(tmp_path)
    return str(synthetic.write(tmp_path / "tiny.safetensors", synthetic.tiny(), dtype="F16"))


def test_a_job_that_will_not_fit_is_refused_before_anything_is_allocated(
    real: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_words: Any, **_keywords: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("ldm.runtime.need.free_memory", lambda device: 512 * 2**20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(ldm), "load", built)
        assert sample("-p", "x", "-m", real, "--device", "cpu", "-W", "2048", "-H", "1536", "-q") == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    wanted = r"ldm: error E4001: 2048x1536 in float32 \(.* of weights, .* to compute\) needs .* and 537 MB are free: "
    found = re.match(wanted + r"take width (\d+) and height (\d+) ", err)
    assert found is not None, err
    width, height = map(int, found.groups())
    assert sample("-p", "x", "-m", real, "--device", "cpu", "-W", str(width), "-H", str(height), "--steps", "1", "-q", "-o", "a.png") == 0


def test_memory_that_runs_out_while_loading_is_one_line(
    real: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2199023255552 bytes. Error code 12"
    monkeypatch.setattr("ldm.checkpoint.loading.allocate", raising(RuntimeError(text)))
    assert sample("-p", "x", "-m", real, "--device", "cpu", "-q") == 1
    err = capsys.readouterr().err
    assert err.startswith("ldm: error E4002: loading the model: out of memory (2199.0 GB more asked for, ") and err.count("\n") == 1
    assert err.endswith(" free): close other programs, or take dtype bfloat16\n")


def test_debug_lists_the_metadata_that_is_not_read(real: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "told.safetensors"
    header = read_header(real)
    tensors = [(name, each.dtype, each.shape, bytes(each.end - each.start)) for name, each in header.tensors.items()]
    writer.save(path, tensors, {**header.metadata, "auto_map": "os.system", "trust_remote_code": "\x1b[2J"})
    words = ("-p", "x", "-m", str(path), "--device", "cpu", "--steps", "1", "-W", "16", "-H", "16")
    assert sample(*words) == 0
    assert "auto_map" not in capsys.readouterr().err
    assert sample(*words, "--debug") == 0
    assert "metadata that is not read: 'auto_map', 'trust_remote_code'\n" in capsys.readouterr().err


def test_the_largest_header_is_the_users(real: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("-p", "x", "-m", real, "--max-header", "100B") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("ldm: error E3005: ")


def test_a_value_that_starts_with_a_dash_is_explained(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("-p", "-c") == 2
    assert 'an equals sign: write --prompt="-c": see ldm sample --help' in capsys.readouterr().err
    assert sample("--prompt=-c", "-q") == 0
    assert fake.calls[0]["prompt"] == "-c"


def test_a_model_whose_name_is_not_text_has_one_spelling(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"m\xff.safetensors")
    Path(name).touch()
    fake.source = name
    assert sample("-p", "x", "-m", name, "-o", "a.png") == 0
    assert "loading m�.safetensors (0 bytes)\n" in capsys.readouterr().err
    assert native.read(texts_of(Path("a.png"))[native.KEY]).model == "m�.safetensors"


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--set", "ensd=0"], None),
        (["--set", "ensd=5"], None),
        (["--profile", "a1111", "--set", "ensd=0"], None),
        (["--profile", "a1111", "--set", "ensd=5"], "5"),
        (["--set", "ancestral_rng=continued", "--set", "ensd=5"], "5"),
    ],
)
def test_ensd_is_written_where_it_has_an_effect(fake: Fake, words: list[str], written: str | None) -> None:
    assert sample("-p", "x", "-q", "-o", "a.png", *words) == 0
    assert a1111.read(texts_of(Path("a.png"))[a1111.KEY]).settings.get("ENSD") == written


def test_a_warning_is_a_note(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    def load(*_words: Any, **_keywords: Any) -> Fake:
        warnings.warn("the VAE was tried again", RuntimeWarning, stacklevel=1)
        return fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(ldm), "load", load)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert sample("-p", "x") == 0
            assert "\nldm: note: the VAE was tried again\n" in capsys.readouterr().err
            assert sample("-p", "x", "-q") == 0
            assert capsys.readouterr().err == ""


SCRIPT = """
    import signal, sys, time
    import ldm
    import ldm.commands.sample
    from ldm.commands import main
    from tests.test_command import Fake

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    class Slow(Fake):
        def run(self, *words, **keywords):
            print("started", file=sys.stderr, flush=True)
            time.sleep({seconds})
            return super().run(*words, **keywords)

    ldm.load = Slow().load
    ldm.commands.sample.look_ahead = lambda job, tasks: None
    sys.exit(main(["sample", "-p", "x", "-q", "-o", sys.argv[1]]))
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT.format(seconds=seconds)), str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")])
def test_signals_end_the_run_with_their_code(tmp_path: Path, number: signal.Signals, code: int, word: bytes) -> None:
    process = start(tmp_path / "out", 3600)
    assert process.stderr is not None
    assert process.stderr.readline() == b"started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (code, b"", b"ldm: " + word + b" at step 1 of 30: 0 of 1 pictures are saved\n")
    assert not (tmp_path / "out").exists()


def test_pictures_are_written_though_nobody_reads_the_paths(tmp_path: Path) -> None:
    process = start(tmp_path, 0)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"started\n"
    assert process.wait(timeout=300) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["00001-7.png", "manifest.jsonl"]


def test_names_that_are_not_text_are_printed_as_they_are(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    process = start(folder, 0)
    out, _ = process.communicate(timeout=300)
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
    assert size(count) == text


@pytest.mark.parametrize(("steps", "seconds", "text"), [(20, 10, "2.0 it/s"), (10, 20, "2.0 s/it"), (0, 1, ""), (1, 0, "")])
def test_rates(steps: int, seconds: float, text: str) -> None:
    assert progress.rate(steps, seconds) == text


def test_the_words_of_a_verb_stand_apart_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    verbs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in verbs] == list(VERBS)
    assert all(re.match(r"  [a-z]+ {2,}\S", line) for line in verbs)
