"""`ldm doctor`: each fault is found, and only what keeps pictures from being made changes the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm import doctor
from ldm.doctor import FAULT, NOTE, OK, Finding
from ldm.errors import InputError


def command(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ldm", "doctor", *words], capture_output=True, text=True, timeout=300, check=False, env=env
    )


def test_a_machine_that_works_has_no_fault(tmp_path: Path) -> None:
    done = command("--json", "--models-dir", str(tmp_path))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout
    assert {
        "python",
        "ldm",
        "torch",
        "cpu",
        "triton",
        "einops",
        "vocabulary",
        "torchvision",
        "memory",
        "outputs",
        "hub cache",
        "models",
        "hub",
    } <= {each["name"] for each in found}
    assert {each["state"] for each in found} <= {OK, NOTE} and set(found[0]) == {"state", "name", "text", "remedy"}


BLOCK = """
import sys
from importlib.machinery import PathFinder


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name == {name!r} else PathFinder.find_spec(name, path, target)


sys.meta_path[:] = [each for each in sys.meta_path if each is not PathFinder]
sys.meta_path.append(Finder)
from ldm.commands import main

sys.exit(main(["doctor"]))
"""


def test_without_torch_there_is_a_fault_and_its_remedy() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCK.format(name="torch")], capture_output=True, text=True, timeout=300, check=False)
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault")]
    assert done.returncode == 1 and done.stderr.endswith("no pictures can be made until mended\n"), done.stdout + done.stderr
    assert faults == ["fault torch        not installed: pip install 'torch>=2.11'"]


def test_a_package_that_is_missing_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(doctor._package(name).state == OK for name in doctor.PACKAGES)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert str(doctor._package("pillow")) == "fault pillow       not installed: pip install pillow"


@pytest.mark.parametrize("error", [InputError("no vocabulary: pip install open_clip_torch"), EOFError("cut"), ImportError("regex")])
def test_a_vocabulary_that_is_missing_or_damaged_is_a_fault(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_text: str) -> list[int]:
        raise error

    assert doctor._vocabulary().state == OK
    monkeypatch.setattr("ldm.text.tokenizer.encode", fail)
    assert doctor._vocabulary().state == FAULT and "pip install" in str(doctor._vocabulary())
    monkeypatch.setattr("ldm.text.tokenizer.encode", lambda text: [1])
    assert "is not CLIP's" in str(doctor._vocabulary())


def test_a_torch_that_is_old_or_broken_is_a_fault(tmp_path: Path) -> None:
    for text, words in (
        ("__version__ = '2.1.0'", "fault torch        2.1.0"),
        ("raise OSError('libcudart.so.13: cannot open')", "libcudart"),
    ):
        (tmp_path / "torch.py").write_text(FAKE + text)
        program = "from ldm.doctor import _torch; print(next(_torch()))"
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=env)
        assert done.stdout.startswith("fault torch") and words in done.stdout and "torch" in done.stdout.rpartition(": ")[2]


FAKE = "class version:\n    cuda = hip = None\n\n\n"


class Probe:
    """A process that ends as it is told to."""

    def __init__(self, code: int, said: str = "", hangs: bool = False) -> None:
        self.returncode, self.said, self.hangs = code, said, hangs

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if self.hangs and timeout is not None:
            raise subprocess.TimeoutExpired("python", timeout)
        return "", self.said

    def kill(self) -> None:
        self.hangs = False


@pytest.mark.parametrize(
    ("probe", "state", "words"),
    [
        (None, OK, "not installed"),
        (Probe(0), OK, "never imported"),
        (Probe(1, "Traceback\nRuntimeError: operator torchvision::nms does not exist\n"), NOTE, "operator torchvision::nms does not exist"),
        (Probe(-11), NOTE, "exit code -11"),
        (Probe(0, hangs=True), NOTE, "does not end in 120 s"),
    ],
)
def test_a_torchvision_of_another_torch_is_noted(probe: Any, state: str, words: str) -> None:
    found = doctor._torchvision(probe)
    assert found.state == state and words in str(found)


def test_the_probe_runs_in_a_process_of_its_own() -> None:
    found = doctor._torchvision(doctor._probe("a_module_that_is_not_there"))
    assert found.state == NOTE and "No module named" in found.text


def one(found: Iterator[Finding] | Finding) -> Finding:
    return found if isinstance(found, Finding) else next(iter(found))


class Cuda:
    """A torch whose devices do as they are told."""

    def __init__(self, count: int, error: str = "") -> None:
        self.count, self.error = count, error
        self.version = type("Version", (), {"cuda": "13.0", "hip": None})
        self.backends = type(
            "Backends",
            (),
            {"cpu": type("Cpu", (), {"get_cpu_capability": lambda: "AVX2"}), "mps": type("Mps", (), {"is_available": lambda: False})},
        )
        self.cuda = self

    def get_num_threads(self) -> int:
        return 2

    def device_count(self) -> int:
        return self.count

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self.error:
            raise RuntimeError(self.error)
        return 10**9, 24 * 10**9

    def get_device_name(self, index: int) -> str:
        return f"GPU {index}"


def test_devices_are_listed_and_a_broken_driver_is_a_note() -> None:
    assert [each.name for each in doctor._devices(Cuda(2))] == ["cpu", "cuda:0", "cuda:1"]
    assert [(each.state, each.name) for each in doctor._devices(Cuda(0))] == [(OK, "cpu"), (NOTE, "cuda")]
    broken = list(doctor._devices(Cuda(1, "CUDA error: 999\nunknown")))[-1]
    assert broken.state == NOTE and "CUDA error: 999 unknown" in broken.text


def test_little_room_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: 2 * 10**9)
    assert doctor._memory().state == NOTE and "2.0 GB free" in doctor._memory().text
    monkeypatch.setattr(doctor, "free_memory", lambda: None)
    assert doctor._memory().state == NOTE
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    assert "only 0.00 GB free" in doctor._disk("outputs", tmp_path, "x").text
    assert doctor._disk("outputs", Path("/dev/null/x"), "choose").state == NOTE


def test_the_model_in_the_box_and_the_configs_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "weights", lambda: tmp_path)
    assert doctor._ldm().state == NOTE
    monkeypatch.setattr(doctor, "configs", lambda: tmp_path)
    assert doctor._ldm().state == FAULT


def test_models_folders_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert "1 files, and 1 pickles, which are refused" in one(doctor._models([tmp_path])).text
    assert one(doctor._models([tmp_path / "absent"])).state == NOTE
    assert one(doctor._models([])).state == NOTE


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert "a token is set" in str(doctor._hub()) and "secret" not in str(doctor._hub())
