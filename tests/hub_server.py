"""A Hub on 127.0.0.1 that serves the repositories put into it to the real client."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]


@lru_cache
def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """The files of each branch or ``refs/pr/N``; its requests, as (number, author, status); who may read it.

    ``in_storage`` are endings of files that are redirected to another address, as the Hub does with large ones.
    """

    revisions: dict[str, Files]
    requests: list[tuple[int, str, str]] = field(default_factory=list)
    discussions_disabled: bool = False
    gated: bool = False
    private_token: str | None = None
    in_storage: tuple[str, ...] = (".parquet",)

    def commit(self, revision: str) -> str:
        files = self.revisions[revision]
        return hashlib.sha1("".join(name + _digest(files[name]) for name in sorted(files)).encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch that a name or a commit means."""
        return next((name for name in self.revisions if revision in (name, self.commit(name))), None)


class HubServer:
    """``repositories`` by id (data sets begin with ``datasets/``); ``log`` holds each request as method and path.

    ``sent_bytes`` counts what left for each path of a repository. ``cuts`` holds, for the next answers with content,
    after how many bytes the connection is cut; ``page`` is sent in place of any content, as a captive portal does.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[str] = []
        self.sent_bytes: dict[str, int] = {}
        self.cuts: list[int] = []
        self.page: bytes | None = None
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

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        self.hub.log.append(f"{self.command} {unquote(self.path)}")

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        if "/resolve/" in path:
            repository_id, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._resolve(repository_id, unquote(revision), unquote(name))
        elif path.startswith("/storage/"):
            repository_id, _, rest = path.removeprefix("/storage/").partition("/at/")
            revision, _, name = rest.partition("/")
            content = self.hub.repositories[repository_id].revisions[unquote(revision)][unquote(name)]
            self._send(200, content, {"ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}, name=unquote(name))
        elif path.startswith("/api/models/") and path.endswith("/discussions"):
            self._discussions(path.removeprefix("/api/models/").removesuffix("/discussions"), query)
        elif path.startswith("/api/"):
            parts = path.removeprefix("/api/").removeprefix("models/").split("/")
            width = 3 if parts[0] == "datasets" else 2
            self._information("/".join(parts[:width]), [unquote(part) for part in parts[width:]])
        else:
            self._send(404)

    def _information(self, repository_id: str, about: list[str]) -> None:
        """What a repository is at a revision, and what its files weigh: /revision/R, /paths-info/R, /tree/R/folder."""
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repository = self._open(repository_id)
        if repository is None:
            return
        revision = about[1] if len(about) > 1 else "main"
        branch = repository.find(revision)
        if branch is None:
            self._refuse(404, "RevisionNotFound")
            return
        files = repository.revisions[branch]
        if about[:1] == ["paths-info"]:
            wanted = _paths_in(asked)
            found = [_entry(path, files[path]) for path in wanted if path in files]
            folders = [path for path in wanted if any(name.startswith(f"{path}/") for name in files)]
            self._send_json(found + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders])
        elif about[:1] == ["tree"]:
            below = "/".join(about[2:])
            self._send_json([_entry(path, files[path]) for path in files if path.startswith(below)])
        else:
            siblings = [{"rfilename": path, "size": len(files[path])} for path in files]
            name = repository_id.removeprefix("datasets/")
            self._send_json({"id": name, "sha": repository.commit(branch), "siblings": siblings, "tags": []})

    def _resolve(self, repository_id: str, revision: str, name: str) -> None:
        repository = self._open(repository_id)
        if repository is None:
            return
        branch = repository.find(revision)
        commit = {"X-Repo-Commit": repository.commit(branch)} if branch else {}
        content = repository.revisions[branch].get(name) if branch else None
        if content is None:
            self._refuse(404, "EntryNotFound" if branch else "RevisionNotFound", commit)
            return
        etag = f'"{_digest(content)}"'
        if name.endswith(repository.in_storage):
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            place = f"{elsewhere}/storage/{repository_id}/at/{(branch or '').replace('/', '%2F')}/{name}"
            linked = {"Location": place, "X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
            self._send(302, headers=commit | linked)
        else:
            self._send(200, content, commit | {"ETag": etag, "Accept-Ranges": "bytes"}, name=name)

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
        self._send_json({"discussions": found, "count": len(found), "start": 0})

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

    def _send_json(self, answer: Any) -> None:
        self._send(200, json.dumps(answer).encode())

    def _send(
        self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, name: str | None = None
    ) -> None:
        """Answer; ``name`` says that the content is that of a file, which may be asked for in part."""
        headers = dict(headers or {})
        if self.hub.page is not None:
            status, content, headers, name = 200, self.hub.page, {"Content-Type": "text/html"}, None
        asked = self.headers.get("Range", "")
        if name and asked.startswith("bytes=") and self.command == "GET":
            first, _, last = asked.removeprefix("bytes=").partition("-")
            whole = len(content)
            start = int(first) if first else whole - int(last)
            stop = min(int(last) + 1, whole) if first and last else whole
            status, content = 206, content[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{whole}"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name and self.hub.cuts:
            content = content[: self.hub.cuts.pop(0)]
            self.close_connection = True
        for piece in _pieces(content):
            self.wfile.write(piece)
            if name:
                self.hub.sent_bytes[name] = self.hub.sent_bytes.get(name, 0) + len(piece)


def _pieces(content: bytes) -> Iterator[memoryview]:
    view = memoryview(content)
    return (view[first : first + 2**16] for first in range(0, len(view), 2**16))


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _digest(content)[:40]}


def _paths_in(body: bytes) -> list[str]:
    """The paths that a request names, as a form or as JSON: clients differ."""
    try:
        paths = json.loads(body)["paths"]
        return [paths] if isinstance(paths, str) else list(paths)
    except ValueError:
        return parse_qs(body.decode()).get("paths", [])
