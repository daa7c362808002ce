"""The style figures hold, and the measure that says so finds each kind of fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import style

PACKAGE = Path(__file__).parents[1] / "ldm"


@pytest.mark.parametrize("name", style.LIMITS)
def test_the_package_keeps_the_limit(name: str) -> None:
    value, note = style.measure(PACKAGE)[name]
    assert value <= style.LIMITS[name], f"{name} is {value:.4g}, the limit {style.LIMITS[name]}: {note}"


def broken(folder: Path, **files: str) -> set[str]:
    """The limits that a package of these files breaks."""
    package = folder / "pack"
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return {name for name, (value, _) in style.measure(package).items() if value > style.LIMITS.get(name, value)}


GOOD = "def f(a: int, *b: int, c: int = 1, **d: int) -> int:\n    return a\n\n\ndef g() -> None: ...\n"


def body(count: int) -> str:
    return "def h() -> None:\n" + "".join(f"    x{line} = {line}\n" for line in range(count))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"a": GOOD}, set()),
        ({"a": GOOD + body(49)}, {"function p90"}),
        ({"a": GOOD * 20 + body(50)}, {"function longest", "duplicated %"}),
        ({"a": GOOD + "\n" * 300}, {"module longest"}),
        ({"a": GOOD + "def k(x):\n    return x\n"}, {"not annotated %"}),
        ({"a": GOOD, "b": GOOD + body(6), "c": body(6)}, {"duplicated %"}),
        ({"a": GOOD + "import pack.b", "b": "from pack import a"}, {"import circles"}),
        ({"a": GOOD + "import pack.b", "b": "def f() -> None:\n    from pack.a import g"}, {"import circles"}),
        ({"a": GOOD + "import pack.b", "b": "if TYPE_CHECKING:\n    from pack.a import g"}, set()),
        ({f"m{k}": f"from pack.m{k + 1} import f\n{GOOD if not k else ''}" for k in range(6)} | {"m6": ""}, {"import depth"}),
        ({f"m{k}": f"from pack import m{k + 1}\n{GOOD if not k else ''}" for k in range(5)} | {"m5": ""}, set()),
        ({"a": GOOD + "@triton.jit\n" + body(60).replace("h()", "kernel()")}, set()),
        ({"a": GOOD + "def k() -> None:\n    @triton.jit\n" + body(60).replace("def ", "    def ").replace("    x", " " * 8 + "x")}, set()),
    ],
)
def test_each_fault_is_found(tmp_path: Path, files: dict[str, str], names: set[str]) -> None:
    assert broken(tmp_path, **files) == names


def test_the_command_prints_a_table_and_fails_on_a_broken_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text(GOOD)
    assert style.main([str(tmp_path)]) == 0
    (tmp_path / "a.py").write_text(GOOD + body(60))
    assert style.main([str(tmp_path)]) == 1
    assert "BROKEN function longest" in capsys.readouterr().out
