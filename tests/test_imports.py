"""What is imported when: nothing of torch before it is needed, and never the packages that generation does without."""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import ldm
from ldm.commands import sample

ROOT = Path(__file__).parents[1]
LIGHT = [
    "ldm",
    "ldm.errors",
    "ldm.files",
    "ldm.resources",
    "ldm.options",
    "ldm.models.shapes",
    "ldm.checkpoint.safetensors",
    "ldm.checkpoint.digests",
    "ldm.checkpoint.families",
    "ldm.checkpoint.kinds",
    "ldm.checkpoint.describe",
    "ldm.diffusion.profiles",
    "ldm.metadata.native",
    "ldm.metadata.a1111",
    "ldm.images",
    "ldm.commands",
    "ldm.commands.sample",
    "ldm.commands.info",
    "ldm.commands.output",
    "ldm.jobs.prompts",
    "ldm.jobs.work",
    "ldm.naming",
    "ldm.commands.progress",
]


def python(*words: str, timeout: float = 300) -> str:
    """The output of a fresh interpreter; it must succeed."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", LIGHT)
def test_these_modules_do_not_import_torch(name: str) -> None:
    assert python("-c", f"import sys, {name}; print('torch' in sys.modules)").strip() == "False"


HELP = """
import runpy, sys
sys.argv = ["ldm", "--help"]
try:
    runpy.run_module("{module}", run_name="__main__")
except SystemExit as end:
    assert not end.code
print("heavy:", sorted({{"torch", "numpy", "PIL", "tqdm", "open_clip"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("module", ["ldm", "ldm.sample"])
def test_help_imports_nothing_heavy(module: str) -> None:
    out = python("-c", HELP.format(module=module))
    assert "usage: ldm" in out and "heavy: []" in out


@pytest.mark.parametrize("words", [["-c", "import ldm"], ["-m", "ldm", "--help"], ["-m", "ldm.sample", "--help"]])
def test_start_takes_less_than_three_tenths_of_a_second(words: list[str]) -> None:
    """Of the processor's time: one thread, so on an idle machine that is the time that passes."""
    best = float("inf")
    for _ in range(10):
        start = spent()
        python(*words)
        best = min(best, spent() - start)
        if best < 0.3:
            return
    pytest.fail(f"the best of ten starts took {best:.2f} s")


ENDS = """
import atexit, gc, sys
atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 1000))
sys.argv = ["ldm", "--version"]
from ldm.commands import program
sys.exit(program())
"""


def test_a_command_that_ends_leaves_its_memory_to_the_system() -> None:
    """What is frozen is not gone through for garbage at the end of the process."""
    assert python("-c", ENDS).splitlines()[-1] == "True True"


def test_memory_is_collected_where_triton_would_list_it() -> None:
    assert python("-c", f"import sys; sys.modules['triton'] = sys\n{ENDS}").splitlines()[-1] == "True False"


def test_a_load_is_not_interrupted_to_look_for_garbage() -> None:
    looks: list[str] = []

    def look(phase: str, info: dict[str, int]) -> None:
        looks.append(phase)

    gc.callbacks.append(look)
    try:
        with sample._uncollected():
            looks.clear()
            made = [[each] for each in range(100_000)]
            assert not looks
        assert gc.isenabled()
        made += [[each] for each in range(100_000)]
        assert looks
    finally:
        gc.callbacks.remove(look)


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_public_names_are_listed_and_found_and_others_are_not() -> None:
    assert set(ldm.__all__) <= set(dir(ldm))
    for name in ldm.__all__:
        assert getattr(ldm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = ldm.lod  # type: ignore[attr-defined]


BLOCKED = """
import sys
from importlib.machinery import PathFinder

NAMES = {"open_clip", "torchvision", "diffusers", "transformers", "k_diffusion", "torchsde", "torchdiffeq", "scipy", "accelerate", "timm"}


class Refuse:
    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise ImportError(f"generation imports {module.__name__}")


class Finder:
    # The packages can be looked for, as for the vocabulary that lies in one of them, but not imported.
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in NAMES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Refuse()
        return spec


sys.meta_path.insert(0, Finder)
from ldm.commands import main

code = main(["sample", "-p", "a red apple", "--steps", "2", "-q", "-o", sys.argv[1], "--device", "cpu"])
print("slow:", sorted({"ftfy", "numpy.polynomial", "xml.sax", "torch._dynamo", "triton"} & set(sys.modules)))
print("imported:", sorted(NAMES & set(sys.modules)))
sys.exit(code)
"""


def test_a_picture_is_made_without_the_packages_that_are_for_tests(tmp_path: Path) -> None:
    out = python("-c", BLOCKED, str(tmp_path / "a.png"))
    assert out.splitlines()[-2:] == ["slow: []", "imported: []"]
    assert (tmp_path / "a.png").is_file()
