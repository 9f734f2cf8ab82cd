"""A hub on this machine, as the official library speaks to it: sets are read from it, and pushed to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(kw_only=True)
class Repo:
    """One data set. refused: the code of the hub's error for whoever asks for it."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    refused: str | None = None

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Hub:
    """Its data sets by name, and the paths that were asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _fault(self, code: str, status: int = 404) -> None:
        self._answer(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "api" and parts[1] == "datasets":
            self._about("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and len(parts) > 5 and parts[3] == "resolve":
            self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._fault("EntryNotFound")

    def _repo(self, name: str, revision: str = "main") -> Repo | None:
        """None: it was answered that there is none to see."""
        repo = self.hub.repos.get(name)
        if repo is None or repo.refused:
            self._fault(repo.refused if repo and repo.refused else "RepoNotFound", 401)
            return None
        if revision not in ("main", repo.commit):
            self._fault("RevisionNotFound")
            return None
        return repo

    def _about(self, name: str, rest: list[str]) -> None:
        repo = self._repo(name, rest[1] if len(rest) > 1 else "main")
        if repo is None:
            return
        if rest[:1] == ["tree"]:
            start = "/".join(rest[2:])
            self._json([_entry(path, repo) for path in repo.files if path.startswith(start)])
        elif rest[:1] in ([], ["revision"]):
            siblings = [{"rfilename": path} for path in repo.files]
            self._json({"id": name, "sha": repo.commit, "private": repo.private, "siblings": siblings, "tags": []})
        else:
            self._fault("EntryNotFound")

    def _file(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        if path not in repo.files:
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.commit)
            return
        content = repo.files[path]
        tag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, X_Repo_Commit=repo.commit, ETag=f'"{tag}"')

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self._body()
        self.hub.asked.append(f"POST {path}")
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif parts[4:5] == ["paths-info"]:
            self._paths_info("/".join(parts[2:4]), body)
        elif parts[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._fault("EntryNotFound")

    def _create(self, wanted: dict[str, object]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        status = 409 if name in self.hub.repos else 200
        if status == 200:
            self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._answer(status, json.dumps({"url": f"{self.hub.url}/datasets/{name}", "name": name}).encode())

    def _paths_info(self, name: str, body: bytes) -> None:
        repo = self._repo(name)
        if repo is not None:
            wanted = parse_qs(body.decode())["paths"]
            self._json([_entry(path, repo) for path in wanted if path in repo.files])

    def _commit(self, name: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        for line in body.splitlines():
            message = json.loads(line)
            if message["key"] == "file":
                repo.files[message["value"]["path"]] = base64.b64decode(message["value"]["content"])
        url = f"{self.hub.url}/datasets/{name}/commit/{repo.commit}"
        self._json({"success": True, "commitOid": repo.commit, "commitUrl": url, "hookOutput": ""})


def _entry(path: str, repo: Repo) -> dict[str, object]:
    content = repo.files[path]
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serves on loopback until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("_Bound", (_Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
