"""What scripts/*.py say of what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import emoji, grid


def test_a_grid_of_no_model_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["grid.py", str(tmp_path / "grid.png"), "--model", "nosuch"])
    assert grid.main() == 2
    said = capsys.readouterr().err
    assert "nosuch: no such file" in said and said.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--font", "--names", "--keywords"])
def test_emoji_without_what_they_are_made_of_name_the_packages(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").touch()
    others = [word for each in ("--font", "--names", "--keywords") if each != flag for word in (each, str(tmp_path / "there"))]
    monkeypatch.setattr("sys.argv", ["emoji.py", str(tmp_path / "things"), flag, str(tmp_path / "absent"), *others])
    assert emoji.main() == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'absent'}: no such file" in said and said.count("\n") == 1
    assert "fonts-noto-color-emoji unicode-data unicode-cldr-core" in said
    assert not (tmp_path / "things").exists()
