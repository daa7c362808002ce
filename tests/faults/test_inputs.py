"""Rows D1, D3, D4, G1 and G5 at reduced counts, and that each experiment can miss its goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm import checks, limits, options
from ldm.checkpoint import licences
from ldm.commands import main
from ldm.metadata import native
from ldm.resources import weights
from scripts.faults import Figure, inputs


@pytest.mark.parametrize(("row", "count"), [("d1", 40), ("d3", 18), ("d4", None), ("g1", None), ("g5", 20)])
def test_row(row: str, count: int | None) -> None:
    figure: Figure = getattr(inputs, row)(count)
    assert figure.good, figure


def test_every_byte_and_every_flag_with_text_is_tried() -> None:
    cases = list(inputs.byte_cases())
    assert len(cases) > 5000 and {word[-1] for _, word in cases} >= set(range(1, 256))
    flags = {flag.strip("-").replace("-", "_") for knob in options.KNOBS.values() if knob.parse is str for flag in knob.flags}
    assert {flag for flag in flags if len(flag) > 1} - {"prompt_2", "negative_2"} <= set(inputs.TEXTS)


def test_the_table_of_sizes_has_the_codes_limits() -> None:
    for name, (said, _) in inputs.LIMITED.items():
        assert said == str(limits.LIMITS[name])


def blind(name: str, text: Any) -> None:
    """A check of texts that sees nothing."""


def test_d1_misses_what_fails_after_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(record: object) -> str:
        raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "a picture that cannot be written")

    monkeypatch.setattr(native, "write", write)
    assert not inputs.d1(6).good
    monkeypatch.undo()
    monkeypatch.setattr(checks, "check_text", blind)
    assert not inputs.d1(6).good


def test_d3_and_d4_miss_what_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = limits.LIMITS
    monkeypatch.setitem(table, "seed", limits.Limit(0, 2**80, note=table["seed"].note))
    monkeypatch.setattr(inputs, "SEEDS", {"7": 7, str(2**64): None})
    assert not inputs.d3().good
    monkeypatch.setitem(table, "width", limits.Limit(16, 8192, 16))
    monkeypatch.setattr(inputs, "LIMITED", {"width": ("16 to 8192, multiples of 8", (("1000", "1000"),))})
    assert not inputs.d4().good


def test_d4_misses_what_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MILLISECONDS", 0)
    assert not inputs.d4(2).good


def test_g1_misses_a_package_that_is_not_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "imported", lambda source: {"torch", "requests"})
    assert not inputs.g1().good


def test_the_first_names_of_imports() -> None:
    assert inputs.imported("import a.x\ndef f():\n    from b.y import z\n    import c\nfrom . import d\n") == {"a", "b", "c"}


def test_g5_misses_a_licence_that_is_lost_or_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "carried", lambda sources: {})
    assert not inputs.g5(20).good
    monkeypatch.undo()
    monkeypatch.setattr(licences, "_remember", lambda names: None)
    assert not inputs.g5(5).good


def test_a_licence_is_said_by_the_file_before_the_table(tmp_path: Path) -> None:
    header = inputs._as_published({"name": "sd_xl_base_1.0.safetensors", "size": 6_938_078_334})
    assert licences.licence(header) == "CreativeML Open RAIL++-M License"
    header.metadata[licences.KEY] = " my\n own " + "x" * 999
    assert licences.licence(header) == f"my own {'x' * 999}"[: licences.LONGEST]


def test_the_command_names_a_licence_once_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box = weights() / "ldm-emoji.safetensors"
    monkeypatch.setenv("LDM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(licences, "published", lambda: [{"name": box.name, "size": box.stat().st_size, "licence": "Strict License"}])
    said = [inputs.run([*inputs.line(), *words], tmp_path).said for words in (["--quiet"], ["--dry-run"], [], [])]
    assert [each.count("is under the Strict License, which restricts its use") for each in said] == [0, 0, 1, 0]
    assert main(["info", str(box)]) == 0
    assert "  licence     Apache-2.0\n" in capsys.readouterr().out
