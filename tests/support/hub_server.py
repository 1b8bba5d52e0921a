"""A stand-in of the Hugging Face Hub: the requests of huggingface_hub that make a repository and commit files to it.

Files above a few kilobytes go through Git LFS, as weights do on the Hub. ``failures`` makes chosen requests fail once.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hub_rules
import yaml

TOKEN = "hf_only_for_tests"
LARGE = 4_000


@dataclass
class Repository:
    """One repository: its commits, each with all of its files."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    """Titles."""


@dataclass
class HubServer:
    """What the stand-in holds and was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    """Part of a request line to the status of its one failure; 0 closes the connection after the work is done."""


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Tests read ``requests`` instead."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chosen = next((part for part in self.hub.failures if part in line), None)
        status = self.hub.failures.pop(chosen) if chosen is not None else None
        if status:
            return self._send(status, {"error": f"chosen failure {status}"})
        if not self.path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid credentials"})
        found = self._work(self.path.split("?")[0].strip("/").split("/"), body)
        if status == 0:
            self.close_connection = True
            return self.connection.close()
        return self._send(*found)

    def _work(self, path: list[str], body: bytes) -> tuple[int, Any]:
        match path:
            case ["api", "validate-yaml"]:
                front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
                wrong = [{"message": problem} for problem in hub_rules.problems(front)]
                return (400 if wrong else 200), {"errors": wrong, "warnings": []}
            case ["api", "repos", "create"]:
                values = json.loads(body)
                name = f"{values['organization']}/{values['name']}"
                there = name in self.hub.repositories
                if not there:
                    self.hub.repositories[name] = Repository(values.get("visibility") == "private")
                return (409 if there else 200), {"url": f"{self.hub.url}/{name}", "error": "exists"}
            case ["api", "models", _]:
                return 404, {"error": "Repository not found"}
            case ["api", "models", owner, name, *rest]:
                if (repository := self.hub.repositories.get(f"{owner}/{name}")) is None:
                    return 404, {"error": "Repository not found"}
                return 200, self._repository(repository, f"{owner}/{name}", rest, body)
            case [_, _, "info", "lfs", "objects", "batch"]:
                return 200, {"objects": [self._lfs(each) for each in json.loads(body)["objects"]], "transfer": "basic"}
            case ["lfs", oid]:
                assert hashlib.sha256(body).hexdigest() == oid
                self.hub.blobs[oid] = body
                return 200, {}
        return 404, {"error": f"no such request: {path}"}

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.blobs:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}

    def _repository(self, repository: Repository, name: str, rest: list[str], body: bytes) -> Any:
        if rest[:1] == ["preupload"]:
            return {"files": [_mode(repository, each) for each in json.loads(body)["files"]]}
        if rest[:1] == ["commit"]:
            self._commit(repository, [json.loads(line) for line in body.splitlines()])
        oid = hashlib.sha1(repr(repository.commits).encode()).hexdigest()
        url = f"{self.hub.url}/{name}/commit/{oid}"
        info = {"id": name, "sha": oid, "private": repository.private, "siblings": [], "tags": [], "downloads": 0}
        return info | {"commitUrl": url, "commitOid": oid, "success": True}

    def _commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if status == 404 and value.get("error") == "Repository not found":
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _mode(repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
    large = file["size"] > LARGE or file["path"].endswith(".safetensors")
    found: dict[str, Any] = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if (data := repository.files.get(file["path"])) is not None:
        found["oid"] = hashlib.sha256(data).hexdigest() if large else git_oid(data)
    return found


@contextlib.contextmanager
def serving() -> Iterator[HubServer]:
    """A stand-in on a free port of this machine."""
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
