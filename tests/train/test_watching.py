"""What a run shows: the report's curves go forward, and TensorBoard has every figure when the run ends."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ldm.errors import InputError
from ldm.train.report import report
from ldm.train.watching import scalars


def test_steps_made_again_after_a_kill_count_once(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    lines = [(20, 9.0), (40, 8.0), (60, 7.0), (40, 6.0), (60, 5.0), (80, 4.0)]
    text = "\n".join(json.dumps({"step": step, "loss": loss}) for step, loss in lines) + '\n{"step": 100, "lo'
    (tmp_path / "unet" / "metrics.jsonl").write_text(text)
    page = report(tmp_path).read_text()
    (points,) = re.findall(r"<polyline points='([^']+)'", page)
    xs = [float(point.split(",")[0]) for point in points.split()]
    assert len(xs) == 4 and xs == sorted(xs)
    assert "unet: 80 steps" in page and "9 to 4" in page
    with pytest.raises(InputError, match="there is no folder"):
        report(tmp_path, tmp_path / "absent" / "page.html")


class Writer:
    """As TensorBoard's, whose figures are on the disk only when they were flushed."""

    waiting: list[tuple[str, float, int]]

    def __init__(self, folder: str) -> None:
        self.waiting, self.kept = [], Path(folder) / "kept.json"

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.waiting.append((name, value, step))

    def flush(self) -> None:
        self.kept.write_text(json.dumps(self.waiting))


def test_figures_are_written_out_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    write = scalars(tmp_path)
    write(SimpleNamespace(step=3), {"loss": 0.5})  # type: ignore[arg-type]
    assert json.loads((tmp_path / "kept.json").read_text()) == [["loss", 0.5, 3]]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="--tensorboard"):
        scalars(tmp_path)
