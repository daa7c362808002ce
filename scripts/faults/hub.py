"""Downloads that are cut, changed or damaged on the way (C8), and connections that nobody asked for (G4)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm.errors import LdmError
from ldm.hub.fetching import fetch
from ldm.hub.names import HubName
from ldm.hub.plans import Plan, library, make_plan
from scripts.faults import Figure
from scripts.faults.hubserver import Fault, Hub, Repo, etag, serving

ROOT = Path(__file__).parents[2]
MIB = 2**20
NAME = HubName("org/repo", "a.safetensors")
AGAIN = MIB  # bytes that may be fetched a second time after a cut


def weights(size: int, seed: int = 0) -> bytes:
    """A safetensors file of about `size` random bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(size)


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """An environment whose Hub is this server, with nothing of the user's: no proxy, no token, no cache."""
    kept = {
        key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and not key.startswith(("HF_", "HUGGING"))
    }
    kept.pop("TRANSFORMERS_OFFLINE", None)
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "NO_PROXY": "*",
        "PYTHONPATH": str(ROOT),
    }


@contextlib.contextmanager
def as_environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass
class Tally:
    """What came of the downloads of C8."""

    runs: int = 0
    bad: int = 0  # files taken that are not the one on the Hub
    lost: int = 0  # downloads that ended without the file where they should have had it
    again: list[int] = field(default_factory=list)  # bytes fetched twice, a download that was cut
    refused: int = 0  # with an error of one line


class _End(Exception):
    """The process ends here."""


class Bench:
    """One hub, one file and one cache, emptied before every download."""

    def __init__(self, hub: Hub, cache: Path, seed: int) -> None:
        self.hub, self.cache, self.draw = hub, cache, random.Random(seed)
        self.content = hub.repos[NAME.repo].files[str(NAME.file)]
        self.tally = Tally()

    def fresh(self) -> Plan:
        shutil.rmtree(self.cache, ignore_errors=True)
        self.hub.clear()
        self.hub.repos[NAME.repo].files[str(NAME.file)] = self.content
        return make_plan(NAME, self.cache)

    def place(self) -> int:
        return self.draw.randrange(len(self.content))

    def end(self, plan: Plan, *, should: bool | None) -> None:
        """Fetch and count: `should` says whether a file is due (None: it may be), and it must be the one that is on the Hub now."""
        self.tally.runs += 1
        try:
            path = fetch(plan, pause=lambda seconds: None)
        except LdmError:
            self.tally.refused += 1
            self.tally.lost += should is True
            self.tally.bad += plan.path.exists()
            return
        self.tally.bad += path.read_bytes() != self.hub.repos[NAME.repo].files[str(NAME.file)] or should is False

    def cut(self) -> None:
        """Up to three cuts of one download, by FIN or RST, in one process or with its end at each."""
        plan = self.fresh()
        cuts = [Fault(cut=self.place() // 2, reset=self.draw.random() < 0.5) for _ in range(self.draw.randint(1, 3))]
        self.hub.faults = cuts
        ends = self.draw.random() < 0.5

        def pause(_seconds: float) -> None:
            if ends:
                raise _End

        for _ in range(len(cuts)):
            with contextlib.suppress(_End):
                fetch(plan, pause=pause)
        self.end(plan, should=True)
        self.tally.again.append(self.hub.sent - len(self.content))

    def wrong(self, kind: int) -> None:
        """One fault of another kind than a cut."""
        plan = self.fresh()
        first = Fault(cut=self.place(), reset=False)
        flip = Fault(flip=self.place())
        changed = bytes([*self.content[:-1], self.content[-1] ^ 1])
        act = lambda: self.hub.repos[NAME.repo].files.update({str(NAME.file): changed})  # noqa: E731
        faults: list[tuple[list[Fault], Fault | None, bool | None]] = [
            ([flip], None, False),  # damaged on the way, whole
            ([first, flip], None, True),  # ... after a cut: fetched again from the start
            ([first], flip, None),  # ... every time, unless it came before the cut
            ([Fault(etag="0" * 64)], None, True),  # another file, once
            ([], Fault(etag="0" * 64), False),  # ... every time
            ([first, Fault(status=416)], None, True),
            ([], Fault(status=416), False),
            ([first, Fault(whole=True)], None, True),
            ([first, Fault(status=503), Fault(status=429)], None, True),
            ([], Fault(status=503), False),
            ([first, Fault(act=act)], None, True),  # the repository changes between two requests
        ]
        self.hub.faults, self.hub.always, should = faults[kind % len(faults)]
        self.end(plan, should=should)

    def part(self, kind: int) -> None:
        """What an earlier run left is damaged, too long, or another program's."""
        plan = self.fresh()
        plan.part.parent.mkdir(parents=True)
        left = bytearray(self.content[: max(self.place(), 1)])
        left[self.draw.randrange(len(left))] ^= 1 << self.draw.randrange(8)
        longer = self.content + b"more"
        plan.part.write_bytes((bytes(left), longer, bytes(len(self.content)))[kind % 3])
        if kind % 4 == 3:
            plan.blob.write_bytes(bytes(len(self.content)))  # in the cache under the right name
        self.end(plan, should=True)

    def head(self) -> None:
        """The Hub tells another digest than the file has."""
        self.fresh()
        self.hub.head_etag = etag(self.draw.randbytes(8))
        self.hub.always = Fault(etag=self.hub.head_etag)
        self.end(make_plan(NAME, self.cache), should=False)


def c8(count: int | None = None) -> Figure:
    """Cuts, and a fifth as many of every other fault; kills of the command and the Hub's own client beside them."""
    count = count or 1000
    with tempfile.TemporaryDirectory() as folder, serving(org__repo=Repo({str(NAME.file): weights(3 * MIB)})) as hub:
        home = Path(folder)
        with as_environment(environment(hub, home)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bench = Bench(hub, home / "hub", seed=count)
            for _ in range(count):
                bench.cut()
            for index in range(count // 5):
                bench.wrong(index)
                bench.part(index)
                bench.head()
            kills = [_killed(bench, home) for _ in range(max(count // 50, 1))]
            theirs = _stock(hub, home / "stock", max(count // 100, 2))
    tally = bench.tally
    again = max(tally.again + kills)
    downloads = f"{tally.runs:,} downloads of {len(bench.content):,} bytes, {count:,} cut up to three times and {len(kills)} killed"
    twice = f"fetched twice {sum(tally.again):,} bytes in all, at most {again:,}"
    reached = f"{tally.bad} bad files accepted, {tally.lost} good ones lost in {downloads}; {twice}; {theirs}"
    goal = f"0 bad files accepted; resume re-fetches at most {AGAIN:,} bytes"
    return Figure(goal, reached, tally.bad == 0 and tally.lost == 0 and again <= AGAIN)


def _killed(bench: Bench, home: Path) -> int:
    """Kill `ldm pull` in the middle, run it again: the bytes that were fetched twice."""
    bench.fresh()
    go = threading.Event()
    cut = bench.place()
    bench.hub.faults = [Fault(cut=cut, stall=go)]
    words = [sys.executable, "-m", "ldm", "pull", str(NAME), "-q"]
    first = subprocess.Popen(words, env=environment(bench.hub, home), cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while bench.hub.sent < cut and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    first.kill()
    first.wait()
    go.set()
    done = subprocess.run(words, env=environment(bench.hub, home), cwd=home, capture_output=True, text=True, check=False, timeout=120)
    bench.tally.runs += 1
    bench.tally.lost += done.returncode != 0
    bench.tally.bad += done.returncode == 0 and Path(done.stdout.strip()).read_bytes() != bench.content
    return bench.hub.sent - len(bench.content)


def _stock(hub: Hub, cache: Path, count: int) -> str:
    """What the Hub's own client does with the same faults, for comparison."""
    client, draw, again, taken = library(), random.Random(1), [], 0
    hub.repos[NAME.repo].files["b.safetensors"] = content = weights(24 * MIB, 1)
    for index in range(count):
        shutil.rmtree(cache, ignore_errors=True)
        hub.clear()
        hub.faults = [Fault(cut=draw.randrange(len(content)), reset=index % 2 == 1)]
        for _ in range(2):
            with contextlib.suppress(client.errors.HTTPError):
                client.hf_hub_download(NAME.repo, "b.safetensors", cache_dir=cache, endpoint=hub.url)
        again.append(hub.sent - len(content))
        shutil.rmtree(cache, ignore_errors=True)
        hub.clear()
        hub.always = Fault(flip=draw.randrange(len(content)))
        taken += Path(client.hf_hub_download(NAME.repo, "b.safetensors", cache_dir=cache, endpoint=hub.url)).read_bytes() != content
    version = client.__version__
    twice = f"up to {max(again):,} bytes of {len(content):,} fetched twice at one cut"
    return f"huggingface_hub {version} alone: {twice}, {taken} of {count} damaged files accepted"


HOOK = """
import os, sys

LOG = os.open(os.environ["SOCKET_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def hook(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        os.write(LOG, f"{event} {arguments[1:]!r}\n".encode())
        raise OSError(f"{event}: the network is forbidden here")


sys.addaudithook(hook)
"""  # as sitecustomize: every Python process below sees it
CONTROL = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"


@dataclass(frozen=True)
class Ward:
    """A place where processes run without a network, and what they try is written down."""

    folder: Path
    traced: bool  # by the system's calls too, where strace may be used
    walled: bool  # in a network namespace of their own

    @property
    def log(self) -> Path:
        return self.folder / "sockets"

    def run(self, words: Sequence[str]) -> tuple[int, list[str]]:
        """Exit code, and the attempts at a connection of a run of Python with these words."""
        self.log.write_text("")
        trace = self.folder / "trace"
        prefix = ["unshare", "-rn"] if self.walled else []
        prefix += ["strace", "-f", "-qq", "-e", "trace=socket", "-o", str(trace)] if self.traced else []
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        env = kept | {"PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}", "SOCKET_LOG": str(self.log), "HF_HOME": str(self.folder / "hf")}
        env |= {"XDG_CACHE_HOME": str(self.folder / "cache")}
        done = subprocess.run([*prefix, sys.executable, *words], cwd=self.folder, env=env, capture_output=True, check=False, timeout=600)
        tried = self.log.read_text().splitlines()
        if self.traced:
            tried += [line for line in trace.read_text().splitlines() if "AF_INET" in line]
        return done.returncode, tried


def _ward(folder: Path) -> Ward:
    (folder / "sitecustomize.py").write_text(HOOK)
    walled = _works("unshare", "-rn", "true")
    return Ward(folder, _works(*(["unshare", "-rn"] if walled else []), "strace", "-f", "-o", os.devnull, "true"), walled)


def _works(*words: str) -> bool:
    return shutil.which(words[0]) is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0


def g4(count: int | None = None) -> Figure:
    """The verbs but `pull`, and `pull --offline`, where a connection is an error; the first `count` of them."""
    box = str(ROOT / "weights" / "ldm-emoji.safetensors")
    runs: list[tuple[list[str], int]] = [
        (["sample", "-p", "a red apple", "--steps", "2", "-o", "a.png", "--device", "cpu"], 0),
        (["models"], 0),
        (["pull", "--offline", "org/repo"], 2),
        (["--help"], 0),
        (["sample", "--help"], 0),
        (["sample", "-m", box, "-p", "two cats", "--steps", "1", "-b", "2", "-s", "3", "--profile", "a1111", "-o", "b"], 0),
        (["doctor"], 0),
        (["pull", "--help"], 0),
        (["info", box], 0),
        (["info", "a.png"], 0),
        (["--version"], 0),
    ][:count]
    with tempfile.TemporaryDirectory() as name:
        ward = _ward(Path(name))
        seen = ward.run(["-c", CONTROL])[1]
        results = [(words, code, *ward.run(["-m", "ldm", *words])) for words, code in runs]
    tried = [f"{words[0]}: {line}" for words, _, _, lines in results for line in lines]
    failed = [f"{' '.join(words[:2])} ended with {found}" for words, code, found, _ in results if found != code]
    how = "audit hook" + (", system calls" if ward.traced else "") + (", no network in the namespace" if ward.walled else "")
    what = "; ".join([f"{len(tried)} attempts in {len(results)} commands", *tried, *failed])
    reached = f"{what} ({how}; a connection made on purpose shows as {len(seen)})"
    return Figure("0 sockets outside `pull`, and all commands work", reached, not tried and not failed and bool(seen))
