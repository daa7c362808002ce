"""The Hub: names, the cache's layout, and `ldm pull` against a server on the loopback."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.errors import FileError, LdmError
from ldm.hub import fetching, plans
from ldm.hub.names import HubName, cache_folder, cached, everything, is_offline, parse
from scripts.faults.hub import as_environment, environment, weights
from scripts.faults.hubserver import COMMIT, Fault, Hub, Repo, etag, serving

CONTENT = weights(300_000)
TOKEN = "hf_" + "secretsecret"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    repos = {
        "org__repo": Repo({"a.safetensors": CONTENT, "old.ckpt": b"\x80\x02pickle"}, revisions=("main", "v2", "refs/pr/1")),
        "org__many": Repo({"a.safetensors": CONTENT, "b.safetensors": CONTENT, "unet/c.safetensors": CONTENT}),
        "org__deep": Repo({"unet/c.safetensors": CONTENT}),
        "org__none": Repo({"model.ckpt": b"\x80\x02pickle"}),
        "org__gated": Repo({"a.safetensors": CONTENT}, gated=True),
        "org__fake": Repo({"a.safetensors": b"PK\x03\x04" + bytes(200)}),
    }
    with serving(**repos) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path) -> Iterator[Hub]:
    server.clear()
    server.headers.clear()
    server.cdn = False
    with as_environment(environment(server, tmp_path)):
        yield server


def sent(hub: Hub, count: int) -> bool:
    """Whether the server has sent so many bytes: it counts when its last write has come back, which may be after the client has all."""
    until = time.monotonic() + 10
    while hub.sent < count and time.monotonic() < until:
        time.sleep(0.01)
    return hub.sent == count


def got(hub: Hub, method: str = "GET") -> list[str | None]:
    """The ranges of the requests for files."""
    return [ranged for verb, path, ranged, _ in hub.requests if verb == method and not path.startswith("api/")]


def fetch(name: str = "org/repo:a.safetensors", **options: Any) -> Path:
    found = parse(name)
    assert found is not None
    return fetching.fetch(plans.make_plan(found), pause=lambda seconds: None, **options)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/repo", HubName("org/repo")),
        ("org/repo:a.safetensors", HubName("org/repo", "a.safetensors")),
        ("org/repo:unet/a.safetensors@v1.0", HubName("org/repo", "unet/a.safetensors", "v1.0")),
        ("org/repo@refs/pr/1", HubName("org/repo", None, "refs/pr/1")),
        ("a/b-c.d_e", HubName("a/b-c.d_e")),
        *((text, None) for text in ("repo", "a/b/c", "org/", "/repo", "../repo", "org/..", "org/repo:", "org/repo@", "o--g/repo", "")),
        *((f"org/repo:{file}", None) for file in ("../x", "a/../../x", "/etc/passwd", "a//b", "a\\b", "a\0b", "a\nb", "./a")),
        *((f"org/repo:a@{revision}", None) for revision in ("..", "../../x", "a//b", "x" * 300)),
    ],
)
def test_names_of_the_hub(text: str, name: HubName | None) -> None:
    assert parse(text) == name
    if name is not None:
        assert parse(str(name)) == name


@pytest.mark.parametrize(
    ("values", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
        ({"HF_HOME": "/c"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, f"{Path.home()}/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_own_library_has_it(values: dict[str, str], folder: str) -> None:
    assert cache_folder(values) == Path(folder)
    words = [sys.executable, "-c", "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"]
    env = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), **values}
    assert subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip() == folder


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("on", True), ("YES", True), ("0", False), ("", False), ("false", False)])
def test_the_environment_can_forbid_connections(value: str, offline: bool) -> None:
    assert is_offline({"HF_HUB_OFFLINE": value}) is offline
    assert is_offline({"TRANSFORMERS_OFFLINE": value}) is offline


def test_a_file_is_pulled_and_the_hubs_own_library_finds_it(hub: Hub) -> None:
    seen: list[int] = []
    path = fetch(progress=lambda more, total: seen.append(more))
    assert path.read_bytes() == CONTENT and path.is_symlink()
    assert sum(seen) == len(CONTENT)
    code = "import huggingface_hub as h; print(h.hf_hub_download('org/repo', 'a.safetensors', local_files_only=True))"
    said = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert Path(said.stdout.strip()) == path
    assert cached(HubName("org/repo", "a.safetensors")) == path == cached(HubName("org/repo"))
    assert cached(HubName("org/repo", "a.safetensors", COMMIT)) == path == cached(HubName("org/repo", "a.safetensors", COMMIT[:8]))
    assert cached(HubName("org/repo", "a.safetensors", "v2")) is None
    assert list(everything(cache_folder())) == [(HubName("org/repo", "a.safetensors"), path)]


def test_a_second_pull_fetches_nothing_and_a_damaged_copy_is_replaced(hub: Hub) -> None:
    blob = fetch().resolve()
    fetch("org/repo:a.safetensors@v2")
    assert len(got(hub)) == 1
    blob.write_bytes(bytes(len(CONTENT)))
    with pytest.warns(UserWarning, match="damaged: downloading it again"):
        assert fetch().read_bytes() == CONTENT
    assert len(got(hub)) == 2


def test_the_only_file_of_a_repository_needs_no_name(hub: Hub) -> None:
    assert fetch("org/repo").name == "a.safetensors"
    assert fetch("org/deep").parent.name == "unet"
    assert fetch("org/repo@refs/pr/1").read_bytes() == CONTENT


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 8, 1000, 65_536, len(CONTENT) - 1])
def test_a_cut_download_goes_on_where_it_was(hub: Hub, cut: int, reset: bool) -> None:
    hub.faults = [Fault(cut=cut, reset=reset)]
    assert fetch().read_bytes() == CONTENT
    again = got(hub)[-1]
    assert len(got(hub)) == 2
    if not reset:
        assert again == (f"bytes={cut}-" if cut else None)
        assert sent(hub, len(CONTENT))


def test_a_later_process_goes_on_where_an_earlier_one_was_stopped(hub: Hub) -> None:
    hub.faults = [Fault(cut=100_000)]

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    name = HubName("org/repo", "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch(plans.make_plan(name), pause=stop)
    plan = plans.make_plan(name)
    assert plan.have == 100_000 and cached(name) is None
    fetching.fetch(plan, pause=stop)
    assert got(hub) == [None, "bytes=100000-"] and not plan.part.exists()


def test_the_token_goes_to_the_hub_and_not_to_the_host_that_it_names(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.cdn = True
    hub.faults = [Fault(cut=1000)]
    assert fetch("org/gated").read_bytes() == CONTENT
    files = [(ranged, token) for method, _, ranged, token in hub.requests if method == "GET"][1:]
    assert files == [(None, f"Bearer {TOKEN}"), (None, None), ("bytes=1000-", f"Bearer {TOKEN}"), ("bytes=1000-", None)]


def test_a_server_without_ranges_sends_all_again(hub: Hub) -> None:
    hub.faults = [Fault(cut=1000), Fault(whole=True)]
    assert fetch().read_bytes() == CONTENT
    assert sent(hub, len(CONTENT) + 1000)


def test_a_file_that_changes_is_fetched_anew(hub: Hub) -> None:
    other = weights(300_000, seed=2)
    repo = hub.repos["org/repo"]
    hub.faults = [Fault(cut=1000), Fault(act=lambda: repo.files.update({"a.safetensors": other}))]
    try:
        with pytest.warns(UserWarning, match="has changed: starting again"):
            assert fetch().read_bytes() == other
    finally:
        repo.files["a.safetensors"] = CONTENT


@pytest.mark.parametrize("left", [bytes(1000), bytes(len(CONTENT)), CONTENT + b"more", CONTENT])
def test_what_an_earlier_run_left_is_checked(hub: Hub, left: bytes) -> None:
    plan = plans.make_plan(HubName("org/repo", "a.safetensors"))
    plan.part.parent.mkdir(parents=True)
    plan.part.write_bytes(left)
    assert fetching.fetch(plan).read_bytes() == CONTENT
    assert sent(hub, {1000: 2 * len(CONTENT) - 1000}.get(len(left), 0 if left == CONTENT else len(CONTENT)))
    assert not plan.part.exists()


def test_damage_after_a_cut_is_mended_by_all_of_it(hub: Hub) -> None:
    hub.faults = [Fault(cut=1000), Fault(flip=2000)]
    assert fetch().read_bytes() == CONTENT
    assert got(hub) == [None, "bytes=1000-", None]


@pytest.mark.parametrize(
    ("always", "code", "words"),
    [
        (Fault(flip=1000), "E3010", "another digest than the Hub says"),
        (Fault(status=416), "E9001", "the connection breaks off: 0 of 300,"),
        (Fault(status=503), "E9001", "the Hub answers 503: try again later; 0 of 300,"),
        (Fault(status=403), "E2000", "the Hub refuses it .403."),
        (Fault(cut=0), "E9001", "the connection breaks off"),
    ],
)
def test_what_stays_wrong_is_refused(hub: Hub, always: Fault, code: str, words: str) -> None:
    hub.always = always
    with pytest.raises(LdmError, match=words) as error:
        fetch()
    assert error.value.code == code
    assert cached(HubName("org/repo", "a.safetensors")) is None


def test_an_etag_that_changes_with_every_request_is_refused(hub: Hub) -> None:
    hub.always = Fault(etag="0" * 64)
    with pytest.warns(UserWarning, match="starting again"), pytest.raises(LdmError, match="changes with every request"):
        fetch()


def test_a_digest_of_the_hub_that_is_wrong_is_found(hub: Hub) -> None:
    hub.head_etag = etag(b"another")
    hub.always = Fault(etag=hub.head_etag)
    with pytest.raises(FileError, match="another digest"):
        fetch()


def test_a_small_file_has_the_digest_of_a_git_blob(hub: Hub) -> None:
    import hashlib

    hub.head_etag = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    hub.always = Fault(etag=hub.head_etag)
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Repo-Commit": None}, "HF_ENDPOINT|Hub"),
        ({"X-Repo-Commit": "../../../etc"}, "does not answer as the Hub does"),
        ({"ETag": '"../../x"'}, "gives no digest"),
        ({"ETag": 'W/"abc"'}, "gives no digest"),
        ({"ETag": None}, "cannot be reached|no digest"),
    ],
)
def test_a_server_that_is_no_hub_is_refused(hub: Hub, headers: dict[str, str | None], words: str) -> None:
    hub.headers = headers
    with pytest.raises(LdmError, match=words):
        fetch()


def test_a_zip_under_the_name_of_safetensors_is_thrown_away(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"^org/fake:a.safetensors: is a zip archive"):
        fetch("org/fake")
    assert [path for path in (tmp_path / "hub").rglob("*") if path.is_file()] == []


def test_two_processes_do_not_write_one_file(hub: Hub) -> None:
    plan = plans.make_plan(HubName("org/repo", "a.safetensors"))
    plan.part.parent.mkdir(parents=True)
    with plan.part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LdmError, match="another process is downloading it"):
            fetching.fetch(plan)


def test_a_disk_that_is_too_small_is_said_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(LdmError, match=r"0\.0 GB are to come and 0\.0 GB are free in") as error:
        fetch()
    assert error.value.code == "E5001" and got(hub) == []


# ---- the command ----


def pull(*words: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ldm", "pull", *words]
    return subprocess.run(command, env=env or dict(os.environ), capture_output=True, text=True, timeout=120, check=False, **options)


def test_the_command_says_what_how_much_and_where_and_prints_the_path(hub: Hub, tmp_path: Path) -> None:
    dry = pull("org/repo", "--dry-run", "-q")
    assert dry.returncode == 0 and dry.stdout == "" and got(hub) == []
    done = pull("org/repo")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == CONTENT and tmp_path in path.parents
    first, last = done.stderr.splitlines()
    assert first.startswith(f"org/repo:a.safetensors: 300 kB, to {tmp_path}/hub (") and first.endswith(" GB free)")
    assert last.startswith("org/repo:a.safetensors: ") and "does not use" in last
    offline = pull("org/repo", "--offline", "--json", env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert offline.returncode == 0 and json.loads(offline.stdout)["path"] == str(path)
    again = pull("org/repo")
    assert again.returncode == 0 and "already: checking" in again.stderr and len(got(hub)) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["org/gated"], 2, "E2000: org/gated: is gated: accept its terms"),
        (["org/gated:a.safetensors"], 2, "E2000: org/gated:a.safetensors: is gated"),
        (["org/absent"], 2, "E2000: org/absent: the Hub has no such repository"),
        (["org/repo:b.safetensors"], 2, "E2000: org/repo:b.safetensors: the repository has no such file"),
        (["org/repo:a.safetensors@v9"], 2, "the repository has no such revision"),
        (["org/repo:old.ckpt"], 2, "only .safetensors files are downloaded, and never pickles"),
        (["org/none"], 2, "has no .safetensors file"),
        (["org/many"], 2, "has 2 .safetensors files: name one of them: org/many:a.safetensors (0.00 GB), org/many:b.safetensors"),
        (["sdxl"], 2, "does not name a file of the Hub"),
        (["org/repo:../../x.safetensors"], 2, "does not name a file of the Hub"),
        (["org/absent", "--offline"], 2, "connections are forbidden"),
    ],
)
def test_refusals_are_one_line(hub: Hub, words: list[str], code: int, said: str) -> None:
    done = pull(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("ldm: error E") and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "E9001: org/repo:a.safetensors: the Hub cannot be reached (ConnectError"),
        ({"HF_ENDPOINT": "nowhere"}, 2, "E2000: HF_ENDPOINT 'nowhere' is not an address"),
        ({"HF_ENDPOINT": "http://[::"}, 2, "is not an address"),
        ({"HF_HUB_OFFLINE": "1"}, 2, "is not in the Hub's cache"),
        ({"HF_HUB_CACHE": "/proc/nowhere"}, 1, "E5001: cannot write /proc/nowhere"),
        ({"HF_HUB_CACHE": "/dev/null/x"}, 1, "E5001: cannot write"),
    ],
)
def test_failures_are_one_line(hub: Hub, change: dict[str, str], code: int, said: str) -> None:
    done = pull("org/repo:a.safetensors", "-q", env={**os.environ, **change, "HF_TOKEN": TOKEN})
    assert done.returncode == code and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_without_the_hubs_library_the_extra_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('no')")
    done = pull("org/repo", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"})
    assert done.returncode == 2 and 'pip install "ldm[hub]"' in done.stderr and done.stderr.count("\n") == 1


def test_a_full_disk_keeps_what_has_come_and_the_next_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = pull("org/repo", "-q", preexec_fn=small)
    assert done.returncode == 1 and "E5001: cannot write" in done.stderr, done.stderr
    assert "after 200,000 of 300," in done.stderr and done.stderr.count("\n") == 1
    assert cached(HubName("org/repo"), tmp_path / "hub") is None
    assert pull("org/repo", "-q").returncode == 0
    assert got(hub)[-1] == "bytes=200000-"


def test_an_interrupt_ends_it_with_130_and_keeps_what_has_come(hub: Hub, tmp_path: Path) -> None:
    go = threading.Event()
    hub.faults = [Fault(cut=100_000, stall=go)]
    command = [sys.executable, "-m", "ldm", "pull", "org/repo", "-q"]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    plan = plans.make_plan(HubName("org/repo", "a.safetensors"))
    until = time.monotonic() + 300
    while plan.have < 100_000 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    go.set()
    assert (process.returncode, said) == (130, "ldm: interrupted\n")
    assert plan.have == 100_000


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", 1), ("y", 0)])
def test_a_large_download_asks_at_a_terminal(hub: Hub, answer: str, code: int) -> None:
    import pty

    ours, theirs = pty.openpty()
    program = "import sys; from ldm.commands import main, pull; pull.ASK_ABOVE = 10; sys.exit(main(['pull', 'org/repo', '-q']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, env=dict(os.environ))
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 1000)
    os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=300)
    os.close(ours)
    assert process.returncode == code and bool(out) is (code == 0)
    assert len(got(hub)) == (code == 0)
