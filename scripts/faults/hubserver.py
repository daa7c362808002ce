"""A server on the loopback that speaks the Hub's protocol as far as downloads need it, and breaks it on purpose.

HEAD and GET /org/repo/resolve/REVISION/FILE (ETag, X-Repo-Commit, Content-Length, Range), GET /api/models/org/repo/revision/REVISION,
X-Error-Code for what is not given. Real files of weights come by a redirect to another host, without the token: `cdn` does so too.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WINDOW = 2**17  # bytes on the way
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False


@dataclass
class Fault:
    """What one GET of a file does wrong."""

    cut: int | None = None  # bytes of the body after which the connection ends
    reset: bool = False  # ... by RST, as when a machine vanishes, in place of FIN
    status: int | None = None  # answered in place of the file
    whole: bool = False  # 200 and the whole file, whatever range was asked for
    etag: str | None = None  # told in place of the true one
    flip: int | None = None  # this byte of the file is sent wrong
    act: Callable[[], None] | None = None  # done before the answer
    stall: threading.Event | None = None  # waited for after the cut


@dataclass
class Hub:
    """The server's state: change it while it runs."""

    repos: dict[str, Repo] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)  # one a GET of a file, the first first; none left: no fault
    always: Fault | None = None  # of every GET of a file
    head_etag: str | None = None  # told by every HEAD in place of the true one
    head_status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)  # of every HEAD, in place of the true ones; None: left out
    cdn: bool = False
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)  # method, path, Range, Authorization
    sent: int = 0  # bytes of files
    url: str = ""
    cdn_url: str = ""

    def clear(self) -> None:
        """Forget what was asked and what was to go wrong."""
        self.requests.clear()
        self.faults.clear()
        self.always = self.head_etag = self.head_status = None
        self.sent = 0


def etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def setup(self) -> None:
        """A window of the size that connections have: what is in it is lost when a connection is reset."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WINDOW)
        super().setup()

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(head=True)

    def do_GET(self) -> None:
        self._serve(head=False)

    def _serve(self, head: bool) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        parts = [unquote(part) for part in path.split("/")]  # a revision may have a slash, quoted
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self._tell(f"{parts[2]}/{parts[3]}", "/".join(parts[5:]) or "main")
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._file(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]), head)
        else:
            self._refuse(404, "")

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code} if code else {}, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _found(self, name: str, revision: str) -> Repo | None:
        """The repository, or None when the refusal has been sent."""
        repo = self.hub.repos.get(name)
        if repo is None:
            self._refuse(401, "RepoNotFound")
        elif repo.gated and not self.headers.get("Authorization") and not self._is_cdn():
            self._refuse(401, "GatedRepo")
        elif revision not in (*repo.revisions, repo.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return repo
        return None

    def _tell(self, name: str, revision: str) -> None:
        repo = self._found(name, revision)
        if repo is None:
            return
        siblings = [{"rfilename": file, "size": len(content), "blobId": "0" * 40} for file, content in repo.files.items()]
        body = json.dumps({"id": name, "sha": repo.commit, "siblings": siblings, "tags": [], "private": False}).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _file(self, name: str, revision: str, file: str, head: bool) -> None:
        if head and self.hub.head_status is not None:
            self._refuse(self.hub.head_status, "")
            return
        repo = self._found(name, revision)
        if repo is None:
            return
        content = repo.files.get(file)
        if content is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit}, b"")
        elif head:
            self._head(repo, content)
        elif self.hub.cdn and not self._is_cdn():
            self._answer(302, {"Location": f"{self.hub.cdn_url}{self.path}", "X-Linked-Etag": f'"{etag(content)}"'}, b"")
        else:
            self._get(repo, file)

    def _is_cdn(self) -> bool:
        return self.headers.get("Host", "") in self.hub.cdn_url

    def _head(self, repo: Repo, content: bytes) -> None:
        tag = self.hub.head_etag or etag(content)
        headers: dict[str, str | None] = {"ETag": f'"{tag}"', "X-Repo-Commit": repo.commit, "Content-Length": str(len(content))}
        moved = self.hub.cdn and not self._is_cdn()
        if moved:
            headers |= {"Location": f"{self.hub.cdn_url}{self.path}", "X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        kept = {key: value for key, value in (headers | self.hub.headers).items() if value is not None}
        self._answer(302 if moved else 200, kept, b"")

    def _get(self, repo: Repo, file: str) -> None:
        fault = self.hub.faults.pop(0) if self.hub.faults else self.hub.always or Fault()
        if fault.act is not None:
            fault.act()
        content = repo.files[file]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and not fault.whole else 0
        if fault.status is not None or start >= len(content) > 0:
            self._answer(fault.status or 416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            return
        body = bytearray(content)
        if fault.flip is not None:
            body[fault.flip] ^= 1
        headers = {"ETag": f'"{fault.etag or etag(content)}"', "X-Repo-Commit": repo.commit}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, headers, memoryview(body)[start:], fault)

    def _send(self, status: int, headers: dict[str, str], body: memoryview, fault: Fault) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        part = body if fault.cut is None else body[: fault.cut]
        try:
            self.wfile.write(part)
        except OSError:  # the client has gone
            self.close_connection = True
        self.hub.sent += len(part)
        if fault.cut is not None:
            if fault.stall is not None:
                fault.stall.wait(60)
            self._hang_up(fault.reset)

    def _hang_up(self, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # without the shutdown that would send FIN first


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the experiments."""


@contextmanager
def serving(**repos: Repo) -> Iterator[Hub]:
    """A hub with these repositories (the name's first "__" is the slash), at `url` until the block ends."""
    hub = Hub({name.replace("__", "/", 1): repo for name, repo in repos.items()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.cdn_url = (
        f"http://{host}:{server.server_address[1]}" for host, server in zip(("127.0.0.1", "localhost"), servers, strict=True)
    )
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
