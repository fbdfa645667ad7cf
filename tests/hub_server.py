"""A Hub on 127.0.0.1 that serves the repositories put into it to the real client."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """The files of each branch or ``refs/pr/N``; its requests, as (number, author, status); who may read it."""

    revisions: dict[str, Files]
    requests: list[tuple[int, str, str]] = field(default_factory=list)
    discussions_disabled: bool = False
    gated: bool = False
    private_token: str | None = None

    def commit(self, revision: str) -> str:
        files = self.revisions[revision]
        return hashlib.sha1(b"".join(name.encode() + files[name] for name in sorted(files))).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch that a name or a commit means."""
        return next((name for name in self.revisions if revision in (name, self.commit(name))), None)


class HubServer:
    """``repositories`` by id (data sets begin with ``datasets/``); ``log`` holds each request as method and path."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        self.hub.log.append(f"{self.command} {unquote(self.path)}")

    def _answer(self) -> None:
        url = urlsplit(self.path)
        if "/resolve/" in url.path:
            repository_id, _, rest = url.path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._resolve(repository_id, unquote(revision), unquote(name))
        elif url.path.startswith("/api/models/") and url.path.endswith("/discussions"):
            repository_id = url.path.removeprefix("/api/models/").removesuffix("/discussions")
            self._discussions(repository_id, {key: value[0] for key, value in parse_qs(url.query).items()})
        else:
            self._send(404)

    def _resolve(self, repository_id: str, revision: str, name: str) -> None:
        repository = self._open(repository_id)
        if repository is None:
            return
        branch = repository.find(revision)
        commit = {"X-Repo-Commit": repository.commit(branch)} if branch else {}
        content = repository.revisions[branch].get(name) if branch else None
        if content is not None:
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(200, content, commit | {"ETag": etag, "Accept-Ranges": "bytes"})
        else:
            self._refuse(404, "EntryNotFound" if branch else "RevisionNotFound", commit)

    def _discussions(self, repository_id: str, wanted: dict[str, str]) -> None:
        repository = self._open(repository_id)
        if repository is None:
            return
        if repository.discussions_disabled:
            self._send(403)
            return
        found = [
            {
                "num": number,
                "title": "Adding `safetensors` variant of this model",
                "author": {"name": author},
                "status": status,
                "isPullRequest": True,
                "createdAt": "2023-05-01T00:00:00.000Z",
                "repo": {"name": repository_id, "type": "model"},
            }
            for number, author, status in repository.requests
            if wanted.get("author", author) == author and wanted.get("status", status) == status
        ]
        self._send(200, json.dumps({"discussions": found, "count": len(found), "start": 0}).encode())

    def _open(self, repository_id: str) -> Repository | None:
        """The repository, or None after a refusal was sent."""
        repository = self.hub.repositories.get(repository_id)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        elif repository.private_token not in (None, self.headers.get("Authorization", "").removeprefix("Bearer ")):
            self._refuse(401, "RepoNotFound")
        else:
            return repository
        return None

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, headers={"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        asked = self.headers.get("Range", "")
        if status == 200 and asked.startswith("bytes=") and self.command == "GET":
            first, _, last = asked.removeprefix("bytes=").partition("-")
            whole = len(content)
            start = int(first) if first else whole - int(last)
            stop = min(int(last) + 1, whole) if first and last else whole
            status, content = 206, content[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
