"""States on disk: a process killed while saving, or a damaged file, costs the newest state and no other."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch

from ldm.errors import InputError, LdmError
from ldm.files import lock
from ldm.train import sealed
from ldm.train.state import OTHER, load_mean, load_state, refuse_other, save_state


def save(folder: Path, step: int) -> Path:
    return save_state(folder, step, {"model.w": torch.full((3,), float(step)), "ema.w": torch.full((3,), -float(step))})[0]


def step_of(folder: Path) -> int:
    found = load_state(folder, lambda _: None)
    assert found is not None
    assert found[1]["model.w"].tolist() == [float(found[0])] * 3
    return found[0]


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{s:08}.{end}" for s in (3, 10) for end in ("json", "safetensors")]
    assert step_of(tmp_path) == 10
    assert load_mean(tmp_path)["w"].tolist() == [-10.0] * 3


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_kill_while_saving_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    save(tmp_path, 1)
    calls: list[int] = []

    def killed(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        return written(*args, **options)  # type: ignore[arg-type]

    written = sealed.write_atomic
    monkeypatch.setattr(sealed, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert step_of(tmp_path) == 1
    monkeypatch.undo()
    save(tmp_path, 3)
    assert len(list(tmp_path.glob("state-*"))) == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_state_is_named_and_passed_over(tmp_path: Path, suffix: str, cut: bool) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2).with_suffix(suffix)
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] if cut else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    said: list[str] = []
    found = load_state(tmp_path, said.append)
    assert found is not None
    assert found[0] == 1
    assert said == ["state-00000002 is damaged: passed over"]


def test_an_untrained_stage_is_named(tmp_path: Path) -> None:
    assert load_state(tmp_path / "vae", pytest.fail) is None
    with pytest.raises(InputError, match="'vae'"):
        load_mean(tmp_path / "vae")


def test_a_run_that_starts_over_keeps_its_states(tmp_path: Path) -> None:
    """Later states that are damaged do not push out the new ones."""
    for step in (4000, 5000):
        save(tmp_path, step).write_bytes(b"cut")
    assert load_state(tmp_path, lambda _: None) is None
    for step in (100, 200, 300):
        save(tmp_path, step)
        assert step_of(tmp_path) == step
    assert len(list(tmp_path.glob("state-00000*.json"))) == 2


def test_a_record_that_is_no_object_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).with_suffix(".json").write_text("null")
    assert step_of(tmp_path) == 1


@pytest.mark.parametrize("limit", [1, 20, 24, 1000])
def test_shards_hold_what_one_file_does(tmp_path: Path, limit: int) -> None:
    tensors = {name: torch.arange(3) * k + 0.5 for k, name in enumerate("abcd")}  # 12 bytes each
    files = save_state(tmp_path, 5, tensors, limit)
    assert len(files) == {1: 4, 20: 4, 24: 2, 1000: 1}[limit]
    found = load_state(tmp_path, pytest.fail)
    assert found is not None and found[0] == 5
    assert found[1].keys() == tensors.keys() and all(torch.equal(found[1][name], tensors[name]) for name in tensors)
    save_state(tmp_path, 6, tensors, limit)
    save_state(tmp_path, 7, tensors)
    assert not list(tmp_path.glob("state-00000005*"))
    assert step_of_any(tmp_path) == 7


def step_of_any(folder: Path) -> int:
    found = load_state(folder, lambda _: None)
    assert found is not None
    return found[0]


def test_a_shard_that_is_gone_is_damage(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(3) for name in "abcd"}
    save_state(tmp_path, 1, tensors, 24)
    save_state(tmp_path, 2, tensors, 24)[1].unlink()
    assert step_of_any(tmp_path) == 1


def test_what_a_killed_process_had_begun_is_removed(tmp_path: Path) -> None:
    """And what a living one writes is not."""
    dead, living = (tmp_path / f".state-00000002.safetensors.{name}.ldm.part" for name in ("aaaaaaaa", "bbbbbbbb"))
    dead.write_bytes(b"half")
    with living.open("wb") as file:
        assert lock(file.fileno())
        save(tmp_path, 3)
        assert not dead.exists() and living.exists()


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ("r m d p", "r m d p", ""),
        ("r m d p", "r m d", ""),
        ("", "r m d", ""),
        ("r m d p", "r M d", "of another model: go on"),
        ("r m d p", "R m D", "of another recipe and other data: go on"),
        ("r m d p", "r m d P", "of data of which other pictures could be opened: go on"),
        ("one", "r m d", "of another recipe: go on"),
    ],
)
def test_a_state_of_another_run_says_in_what(there: str, here: str, said: str, tmp_path: Path) -> None:
    save_state(tmp_path, 1, {"model.w": torch.zeros(1)}, origin=there)
    for look in (lambda: refuse_other(tmp_path, here, OTHER), lambda: load_state(tmp_path, pytest.fail, here)):
        if said:
            with pytest.raises(InputError, match=f"state-00000001.json: {said}"):
                look()
        else:
            look()


def test_a_tensor_is_measured_once_for_all_shards() -> None:
    asked: list[int] = []

    class Measured:
        @property
        def nbytes(self) -> int:
            asked.append(1)
            return 10

    tensors = {str(at): Measured() for at in range(100)}
    assert [len(part) for part in sealed._shards(tensors, 500)] == [50, 50] and len(asked) == 100  # type: ignore[arg-type]


def test_the_state_that_is_left_is_none_of_a_later_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (900, 5000, 1000):
        save(tmp_path, step)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(sealed, "write_atomic", full)
    for step, left in ((950, 900), (1000, 1000), (1001, 1000)):
        with pytest.raises(LdmError, match=f"with --resume from state-{left:08}"):
            save(tmp_path, step)


def test_tensors_of_all_kinds_are_read_once_into_their_places(tmp_path: Path) -> None:
    floats = {str(dtype): torch.arange(6).view(2, 3).to(dtype).T for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.bool)}
    small = {"one": torch.tensor(3), "none": torch.zeros(0, 4), "bytes": torch.arange(7, dtype=torch.uint8)}
    tensors = {**floats, **small, "large": torch.randn(2**20)}
    (file,) = save_state(tmp_path, 1, tensors)
    tracemalloc.start()
    found = load_state(tmp_path, pytest.fail)
    _, most = tracemalloc.get_traced_memory()  # torch's own is not among it
    tracemalloc.stop()
    assert found is not None and most < 2**20
    assert found[1].keys() == tensors.keys()
    assert all(found[1][name].dtype == value.dtype and torch.equal(found[1][name], value) for name, value in tensors.items())
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"U32"'))
    assert load_state(tmp_path, lambda _: None) is None


def test_a_full_disk_is_told_with_the_state_that_is_left(tmp_path: Path) -> None:
    """By the system itself: files of at most 4 kB."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save(tmp_path, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(LdmError) as caught:
            save_state(tmp_path, 2, {"model.w": torch.zeros(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file = tmp_path / "state-00000002.safetensors"
    assert str(caught.value) == f"cannot write {file}: File too large: make room, then continue with --resume from state-00000001"
    assert caught.value.code == "E5001" and step_of(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000001.json", "state-00000001.safetensors"]
