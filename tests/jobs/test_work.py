"""The manifest, the claims and the leftovers: who makes what, and what is there after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ldm import files
from ldm.commands import output
from ldm.errors import LdmError
from ldm.files import PART, write_atomic
from ldm.jobs import leftovers
from ldm.jobs.claims import FOLDER, Claim
from ldm.jobs.manifest import NAME, Entry, Manifest, digest, digests, read_entry, write_entry
from ldm.jobs.work import Room
from ldm.options import Job

JOB = Job(prompt="a cat", seed=7, cfg=5.0)
ONE, TWO = "1" * 64, "2" * 64


def entry(folder: Path, name: str = ONE, path: str = "a.png", content: bytes = b"picture") -> Entry:
    """An entry whose picture is there."""
    (folder / path).write_bytes(content)
    return Entry(name, 7, path, hashlib.sha256(content).hexdigest(), len(content), timings={"sampling": 1.5})


def names(folder: Path) -> Iterator[Path]:
    return output.candidates(str(folder), 7, 0)


def test_a_digest_is_what_makes_the_picture() -> None:
    same = [replace(JOB, cfg=5), replace(JOB, output="elsewhere", quiet=True, model="m"), replace(JOB, overrides={})]
    assert {digest(each, "m") for each in (JOB, *same)} == {digest(JOB, "m")}
    changes = [{"prompt": "a dog"}, {"negative": ""}, {"seed": 8}, {"sigmas": (2.0, 0.0)}, {"seed": None}, {"speed": "approx"}]
    others = {digest(replace(JOB, **each), "m") for each in changes}  # type: ignore[arg-type]
    made = {digest(JOB, "m"), digest(JOB, "n"), digest(JOB, "m", 1), digest(JOB, "m", 0, {"crop": (1, 2)})}
    assert len(made | others) == 4 + len(changes)
    assert digest(replace(JOB, seed=-1), "m") == digest(replace(JOB, seed=None), "m")


def test_equal_jobs_are_told_apart_whatever_stands_between_them() -> None:
    other = replace(JOB, prompt="a dog")
    assert digests([JOB, other, JOB], "m") == [*digests([JOB], "m"), *digests([other], "m"), [digest(JOB, "m", 1)]]
    pair = replace(JOB, batch=2)
    assert digests([pair, pair], "m") == [[digest(pair, "m", at) for at in places] for places in ((0, 1), (2, 3))]


def test_a_line_comes_back_and_anything_else_is_no_line() -> None:
    whole = Entry(ONE, 2**64 - 1, "a/b.png", TWO, 5, index=3, timings={"a": 1.5})
    assert read_entry(write_entry(whole)) == whole
    plain = json.loads(write_entry(whole))
    assert read_entry(json.dumps({**plain, "later": 1}).encode()) == whole
    bad: list[dict[str, object]] = [{"seed": "7"}, {"path": "../x"}, {"path": "/x"}, {"path": "\0"}, {"digest": None}]
    bad += [{"timings": {"a": "b"}}, {"timings": {"a": float("nan")}}]
    assert [read_entry(json.dumps({**plain, **each}).encode()) for each in bad] == [None] * len(bad)
    assert [read_entry(each) for each in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"digest": "1"', b"9" * 5000)] == [None] * 7


def test_what_is_done_is_known_to_others_while_the_picture_is_whole(tmp_path: Path) -> None:
    ours, theirs = Manifest(tmp_path), Manifest(tmp_path)
    made = entry(tmp_path)
    ours.append(made)
    assert theirs.done(ONE) is None
    theirs.refresh()
    assert theirs.done(ONE) == made
    assert theirs.done(TWO) is None
    (tmp_path / "a.png").write_bytes(b"pict")
    assert theirs.done(ONE) is None
    (tmp_path / "a.png").unlink()
    assert Manifest(tmp_path).done(ONE) is None


def test_failed_is_not_done(tmp_path: Path) -> None:
    room = Room(tmp_path)
    claim = room.take(ONE)
    assert claim is not None
    with claim:
        room.fail(claim, 7)
    assert Room(tmp_path).take(ONE) is not None


@pytest.mark.parametrize("torn", [b'{"digest": "x', b"\n", b"\xff", b'{"digest": "x", "seed": 1}'])
def test_a_torn_line_is_passed_over_and_closed(tmp_path: Path, torn: bytes) -> None:
    manifest = Manifest(tmp_path)
    first, second = entry(tmp_path), entry(tmp_path, TWO, "b.png")
    manifest.append(first)
    with open(tmp_path / NAME, "ab") as file:
        file.write(torn)
    assert Manifest(tmp_path).done(ONE) == first
    manifest.append(second)
    read = Manifest(tmp_path)
    assert (read.done(ONE), read.done(TWO)) == (first, second)
    assert read.damaged == (torn.startswith((b'{"digest": "x', b"\xff")) and not torn.endswith(b"}"))


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    line = write_entry(entry(tmp_path))
    for part in (line[:10], line[10:]):
        assert manifest.done(ONE) is None
        with open(tmp_path / NAME, "ab") as file:
            file.write(part)
        manifest.refresh()
    assert manifest.done(ONE)


def test_a_manifest_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.append(entry(tmp_path))
    manifest.append(entry(tmp_path, TWO, "b.png"))
    manifest.refresh()
    (tmp_path / NAME).write_bytes(write_entry(entry(tmp_path, TWO, "b.png")))
    manifest.refresh()
    assert manifest.done(ONE) is None
    assert manifest.done(TWO)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(tmp_path)
    manifest.append(entry(tmp_path))
    before = (tmp_path / NAME).read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:20]))
    with pytest.raises(LdmError, match="No space left") as caught:
        manifest.append(entry(tmp_path, TWO, "b.png"))
    assert caught.value.code == "E5001"
    assert (tmp_path / NAME).read_bytes() == before


def test_a_folder_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(LdmError, match="cannot read"):
        Room(tmp_path / "x")
    manifest = Manifest(tmp_path / "y")
    (tmp_path / "y").write_text("")
    with pytest.raises(LdmError, match="cannot write"):
        manifest.append(Entry(ONE, 1))


def test_one_claim_at_a_time_and_free_again_when_released(tmp_path: Path) -> None:
    one, two = Room(tmp_path), Room(tmp_path)
    claim = one.take(ONE)
    assert claim is not None
    assert two.take(ONE) is None
    assert [at for at, each in two.take_all([ONE, TWO]) if each.release() is None] == [1]
    assert two.held == 1
    claim.release()
    claim.release()
    again = two.take(ONE)
    assert again is not None
    again.release()


def test_a_picture_then_its_line_and_nothing_twice(tmp_path: Path) -> None:
    one, two = Room(tmp_path), Room(tmp_path)
    claim = one.take(ONE)
    assert claim is not None
    with claim:
        made = one.put(claim, b"picture", names(tmp_path), seed=7, put=output.save_free, index=2, timings={"a": 1})
    assert (made.path, made.index, made.digest) == ("00001-7.png", 2, ONE)
    assert two.take(ONE) is None, "another process finds out when it asks for the claim"
    assert sorted(os.listdir(tmp_path)) == [FOLDER, "00001-7.png", NAME]
    assert list(two.take_all([ONE])) == []
    assert sorted(os.listdir(tmp_path)) == ["00001-7.png", NAME]


def test_a_job_of_a_maker_that_died_is_tried_at_the_end(tmp_path: Path) -> None:
    one, two = Room(tmp_path), Room(tmp_path)
    held = one.take(ONE)
    assert held is not None
    met = []
    for at, claim in two.take_all([ONE, TWO]):
        met.append(at)
        with claim:
            held.release()
            two.put(claim, str(at).encode(), names(tmp_path), seed=7, put=output.save_free)
    assert met == [1, 0]
    assert two.held == 0


CHILD = """
import os, sys
from pathlib import Path
from ldm.commands import output
from ldm.jobs.work import Room
from ldm.jobs import manifest
from ldm import files
folder, where = Path(sys.argv[1]), sys.argv[2]
def stop(*_):
    print("there", flush=True)
    sys.stdin.read()
room = Room(folder)
claim = room.take("1" * 64)
if where == "claimed": stop()
if where == "writing": files._publish = stop
if where == "named": manifest.Manifest.append = stop
room.put(claim, b"picture", output.candidates(str(folder), 7, 0), seed=7, put=output.save_free)
"""


@pytest.fixture
def child(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that stops at the place that the test names."""
    words = [sys.executable, "-c", CHILD, str(tmp_path), request.param]
    with subprocess.Popen(words, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


def make(folder: Path) -> list[str]:
    """What another process does with the same job; the files that are there then."""
    room = Room(folder)
    for _, claim in room.take_all([ONE]):
        with claim:
            room.put(claim, b"picture", names(folder), seed=7, put=output.save_free)
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("child", ["claimed", "writing", "named"], indirect=True)
def test_a_living_process_keeps_its_job_and_a_killed_one_loses_it_at_once(tmp_path: Path, child: subprocess.Popen[str]) -> None:
    before = sorted(os.listdir(tmp_path))
    assert make(tmp_path) == before
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert make(tmp_path) == ["00001-7.png", NAME], "made once, and nothing is left over"
    read = Manifest(tmp_path)
    assert read.done(ONE) is not None
    assert (tmp_path / NAME).read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("child", ["named"], indirect=True)
@pytest.mark.parametrize("what", [b"damaged", b"picturr", None])
def test_what_is_not_the_picture_that_was_being_written_is_not_taken_for_it(
    tmp_path: Path, child: subprocess.Popen[str], what: bytes | None
) -> None:
    child.kill()
    child.wait()
    if what is None:
        (tmp_path / "00001-7.png").unlink()
    else:
        (tmp_path / "00001-7.png").write_bytes(what)
    here = make(tmp_path)
    assert here == (["00001-7.png", NAME] if what is None else ["00001-7.png", "00002-7.png", NAME])


def test_a_picture_of_another_job_is_not_taken_for_it(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.manifest.append(entry(tmp_path, TWO))
    claim = room.take(ONE)
    assert claim is not None
    claim.intend(entry(tmp_path))
    os.close(claim._descriptor)  # as a kill does
    assert Room(tmp_path).manifest.done(ONE) is None


ABSENT = b'{"digest": "%s", "seed": 1, "path": "a.png"}' % ONE.encode()


@pytest.mark.parametrize("content", [b"", b"{", b"x" * 10**6, b'{"digest": "3", "seed": 1}', ABSENT])
def test_claims_that_say_nothing_useful_are_removed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / ONE).write_bytes(content)
    room = Room(tmp_path)
    assert os.listdir(tmp_path) == []
    claim = room.take(ONE)
    assert claim is not None
    claim.release()


def test_a_folder_of_claims_that_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, times = Path.mkdir, iter(range(3))

    def gone(self: Path, *args: object, **keywords: object) -> None:
        if self.name == FOLDER and next(times, None) is not None:
            raise FileExistsError  # and it is not there any more when it is looked at
        mkdir(self, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", gone)
    assert Room(tmp_path).take(ONE) is not None
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / FOLDER).write_text("a file in the way")
    with pytest.raises(LdmError, match="cannot claim"):
        Room(tmp_path / "x").take(ONE)


def test_files_of_others_among_the_claims_stay(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "notes").write_text("mine")
    list(Room(tmp_path).take_all([]))
    assert (tmp_path / FOLDER / "notes").read_text() == "mine"


def test_a_claim_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / FOLDER / ONE).symlink_to(tmp_path / "mine")
    with pytest.raises(LdmError, match="cannot claim"):
        Room(tmp_path).take(ONE)
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_locks_a_folder_is_for_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / f".a.png.abcdefgh{PART}"
    part.write_bytes(b"")
    monkeypatch.setattr("ldm.jobs.claims.lock", lambda descriptor: None)
    monkeypatch.setattr("ldm.jobs.leftovers.lock", lambda descriptor: None)
    one, two = Room(tmp_path), Room(tmp_path)
    assert one.take(ONE) is not None
    assert two.take(ONE) is not None
    assert part.exists(), "whose it is cannot be told"


def test_only_temporary_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    dead = [tmp_path / f".a.png.abc_1234{PART}", tmp_path / f"..b.{'0' * 8}{PART}"]
    kept = [tmp_path / each for each in (f"a.png.abcdefgh{PART}", f".a.png.abc{PART}", ".a.png.abcdefgh.part", ".a.png", PART, "a.png")]
    for path in (*dead, *kept):
        path.write_bytes(b"x")
    fifo, link, folder = (tmp_path / f".{name}.abcdefgh{PART}" for name in "fld")
    os.mkfifo(fifo)
    link.symlink_to(kept[-1])
    folder.mkdir()

    def write(file: object) -> None:
        assert leftovers.sweep(tmp_path) == 2, "the file that is being written is not one of them"

    write_atomic(tmp_path / "new.png", write, overwrite=False)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, fifo, link, folder, tmp_path / "new.png"])
    assert leftovers.sweep(tmp_path / "none") == 0


def test_a_writer_whose_file_is_swept_before_it_is_locked_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, swept = files.lock, []

    def late(descriptor: int) -> bool | None:
        if not swept:
            swept.append(leftovers.sweep(tmp_path))
        return lock(descriptor)

    monkeypatch.setattr(files, "lock", late)
    write_atomic(tmp_path / "a.png", lambda file: file.write(b"x"), overwrite=False)
    assert swept == [1]
    assert os.listdir(tmp_path) == ["a.png"]


def test_the_order_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be written, the picture's bytes, its name, then its line; each is on the disk before the next begins."""
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **keywords: object) -> object:
            first = args[0]
            calls.append(f"{name} {Path(os.readlink(f'/proc/self/fd/{first}')).name if isinstance(first, int) else 'picture'}")
            return real(*args, **keywords)

        monkeypatch.setattr(os, name, call)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    room = Room(tmp_path)
    claim = room.take(ONE)
    assert claim is not None
    for name in ("fsync", "link", "pwrite", "write"):
        watch(name)
    room.put(claim, b"picture", names(tmp_path), seed=7, put=output.save_free)
    shown = ["part" if PART in each else each for each in (call.replace(ONE, "claim") for call in calls)]
    folder = f"fsync {tmp_path.name}"
    line = [f"write {NAME}", f"fsync {NAME}", folder]
    assert shown == ["pwrite claim", "fsync claim", f"fsync {FOLDER}", "part", "link picture", folder, *line]
    claim.release()


def test_asking_for_a_done_job_among_many_takes_no_time(tmp_path: Path) -> None:
    many, made = [f"{at:064x}" for at in range(5000)], entry(tmp_path)
    (tmp_path / NAME).write_bytes(b"".join(write_entry(replace(made, digest=each)) for each in many))
    start = time.thread_time()
    assert list(Room(tmp_path).take_all(many)) == []
    assert time.thread_time() - start < 2


def test_a_claim_is_a_context(tmp_path: Path) -> None:
    claim = Room(tmp_path).take(ONE)
    assert isinstance(claim, Claim)
    with pytest.raises(ValueError), claim:
        raise ValueError
    assert Room(tmp_path).take(ONE) is not None
