"""A Hub on 127.0.0.1 that serves the repositories put into it to the real client, and takes what that uploads."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

Files = dict[str, bytes]

# What a program does first whose client is to try as often as it does, but not to wait as long for the next time.
IMPATIENT = """
import time
from huggingface_hub import constants
constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 0.5
time.sleep = lambda seconds, sleep=time.sleep: sleep(seconds / 50)
"""


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
        if re.fullmatch("[0-9a-f]{40}", revision):  # a commit that is known by name
            return revision
        files = self.revisions[revision]
        return hashlib.sha1("".join(name + _digest(files[name]) for name in sorted(files)).encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """The branch that a name or a commit means."""
        return next((name for name in self.revisions if revision in (name, self.commit(name))), None)


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, with organisations, and its ``role``: "write", "read" or "fineGrained"."""

    name: str
    organisations: tuple[str, ...] = ()
    role: str = "write"

    def may_write(self, repository_id: str) -> bool:
        return self.role != "read" and repository_id.partition("/")[0] in (self.name, *self.organisations)

    def describe(self) -> dict[str, Any]:
        token = {"displayName": "test", "role": self.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        organisations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.organisations]
        return {
            "type": "user",
            "name": self.name,
            "orgs": organisations,
            "auth": {"type": "access_token", "accessToken": token},
        }


class HubServer:
    """``repositories`` by id (data sets begin with ``datasets/``); ``log`` holds each request as method and path.

    ``sent_bytes`` counts what left for each path of a repository. ``cuts`` holds, for the next answers with content,
    after how many bytes the connection is cut; ``page`` is sent in place of any content, as a captive portal does, and
    ``stalls`` is for how many answers nothing comes after the head, for half a minute.

    ``accounts`` holds, by token, who may write; ``large_files`` what was uploaded the way of LFS, by digest; and
    ``refusals`` the status that answers every request with a certain part in its method and path, where 0 hangs up.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[str] = []
        self.sent_bytes: dict[str, int] = {}
        self.cuts: list[int] = []
        self.page: bytes | None = None
        self.stalls = 0
        self.accounts: dict[str, Account] = {}
        self.large_files: Files = {}
        self.refusals: dict[str, int] = {}
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

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        self.hub.log.append(f"{self.command} {unquote(self.path)}")

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = url.path
        query = {key: value[0] for key, value in parse_qs(url.query).items()}
        self._asked = self._read_body()
        refusal = next((status for part, status in self.hub.refusals.items() if part in f"{self.command} {path}"), None)
        if refusal == 0:
            self.close_connection = True
        elif refusal is not None:  # with more in it than a server should say
            self._send_json({"error": f"refused {self.headers.get('Authorization')}"}, refusal)
        elif self._takes(path):
            pass
        elif "/resolve/" in path:
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
            wanted = _paths_in(self._asked)
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

    def _takes(self, path: str) -> bool:
        """Answer what an upload asks for, and say whether the request was one of that."""
        if path == "/api/whoami-v2":
            if account := self._account():
                self._send_json(account.describe())
        elif path == "/api/repos/create":
            self._create(**json.loads(self._asked))
        elif path == "/api/validate-yaml":
            problem = _problem_of_card(json.loads(self._asked)["content"])
            errors = [{"message": problem}] if problem else []
            self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif path.startswith("/api/models/") and "/preupload/" in path:
            if repository := self._open_to_write(path.removeprefix("/api/models/").partition("/preupload/")[0]):
                self._choose_ways(repository)
        elif path.endswith(".git/info/lfs/objects/batch"):
            if self._open_to_write(path.removeprefix("/").removesuffix(".git/info/lfs/objects/batch")):
                self._send_json({"transfer": "basic", "objects": [self._place(e) for e in self._json()["objects"]]})
        elif path.startswith("/lfs/"):
            self._keep_large_file(path.removeprefix("/lfs/"))
        elif path.startswith("/api/models/") and "/commit/" in path:
            repository_id, _, revision = path.removeprefix("/api/models/").partition("/commit/")
            if repository := self._open_to_write(repository_id):
                self._commit(repository_id, repository, unquote(revision))
        else:
            return False
        return True

    def _create(self, name: str, organization: str | None, visibility: str | None = None, **_: Any) -> None:
        account = self._account()
        if account is None:
            return
        repository_id = f"{organization or account.name}/{name}"
        address = {"url": f"{self.hub.url}/{repository_id}", "name": repository_id}
        if not account.may_write(repository_id):
            self._send_json({"error": f"You don't have the rights to create {repository_id}"}, 403)
        elif repository_id in self.hub.repositories:
            self._send_json({"error": "You already created this model repo", **address}, 409)
        else:
            first = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
            owner = self._token() if visibility == "private" else None
            self.hub.repositories[repository_id] = Repository({"main": first}, private_token=owner, in_storage=())
            self._send_json(address)

    def _choose_ways(self, repository: Repository) -> None:
        """For each file "regular", inside the commit, or "lfs"; and what is there already, as git or LFS name it."""
        chosen = []
        for file in self._json()["files"]:
            path, present = file["path"], repository.revisions["main"].get(file["path"])
            is_large = file["size"] > 10 * 2**20 or path.endswith(".safetensors")
            way = "lfs" if is_large or not _is_text(base64.b64decode(file["sample"])) else "regular"
            known = {} if present is None else {"oid": _digest(present) if way == "lfs" else _git_digest(present)}
            chosen.append({"path": path, "uploadMode": way, "shouldIgnore": False, **known})
        self._send_json({"files": chosen})

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where a large file is to be put, unless it is there."""
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.hub.large_files:
            return answer
        verify = {"href": f"{self.hub.url}/lfs/verify", "header": {}}
        upload = {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}
        return {**answer, "authenticated": True, "actions": {"upload": upload, "verify": verify}}

    def _keep_large_file(self, digest: str) -> None:
        if digest == "verify":
            asked = self._json()
            self._send(200 if len(self.hub.large_files.get(asked["oid"], b"")) == asked["size"] else 404)
        elif _digest(self._asked) == digest:
            self.hub.large_files[digest] = self._asked
            self._send(200)
        else:
            self._send(400)

    def _commit(self, repository_id: str, repository: Repository, revision: str) -> None:
        """Take the files that a commit brings or names; all of them or none."""
        files = dict(repository.revisions[revision])
        large = list(repository.in_storage)
        for line in self._asked.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile" and value["oid"] in self.hub.large_files:
                files[value["path"]] = self.hub.large_files[value["oid"]]
                large.append(value["path"])
            elif entry["key"] != "header":
                self._send_json({"error": f"cannot take {entry}"}, 400)
                return
        repository.revisions[revision], repository.in_storage = files, tuple(large)
        commit = repository.commit(revision)
        self._send_json({"commitUrl": f"{self.hub.url}/{repository_id}/commit/{commit}", "commitOid": commit})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _account(self) -> Account | None:
        """Who asks, or None after a refusal was sent."""
        account = self.hub.accounts.get(self._token())
        if account is None:
            self._send(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        return account

    def _open_to_write(self, repository_id: str) -> Repository | None:
        """The repository, or None after a refusal was sent."""
        account = self._account()
        if account is None:
            return None
        if not account.may_write(repository_id):
            self._send_json({"error": "Forbidden: pass a token that may write"}, 403)
            return None
        return self._open(repository_id)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _json(self) -> dict[str, Any]:
        return json.loads(self._asked)

    def _open(self, repository_id: str) -> Repository | None:
        """The repository, or None after a refusal was sent."""
        repository = self.hub.repositories.get(repository_id)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        elif repository.private_token not in (None, self._token()):
            self._refuse(401, "RepoNotFound")
        else:
            return repository
        return None

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, headers={"X-Error-Code": code, **(headers or {})})

    def _send_json(self, answer: Any, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

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
        if name and self.hub.stalls:
            self.hub.stalls -= 1
            time.sleep(30)
        if name and self.hub.cuts:
            content = content[: self.hub.cuts.pop(0)]
            self.close_connection = True
        for piece in _pieces(content):
            self.wfile.write(piece)
            if name:
                self.hub.sent_bytes[name] = self.hub.sent_bytes.get(name, 0) + len(piece)


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_text(sample: bytes) -> bool:
    """Whether a file begins as text does; its first bytes may end in the middle of a character."""
    return b"\0" not in sample and "\ufffd" not in sample[:-4].decode(errors="replace")


def _problem_of_card(content: str) -> str | None:
    """What the Hub would refuse in the head of a README.md, as far as this knows its rules."""
    head = REGEX_YAML_BLOCK.search(content)
    try:
        metadata = yaml.safe_load(head.group(2)) if head else {}
    except yaml.YAMLError as error:
        return f"not valid YAML: {error}"
    if not isinstance(metadata, dict):
        return "the head has to be a mapping"
    name = metadata.get("license_name")
    if name is not None and (metadata.get("license") != "other" or not re.fullmatch("[a-z0-9-.]+", name)):
        return f'"license_name" {name!r} takes license: other and lower case letters, digits, - and .'
    return None


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
