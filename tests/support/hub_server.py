"""A few endpoints of the Hugging Face Hub over real HTTP, serving folders of this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Hub:
    """Repositories by name; each has commits by revision, and what was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[str] = []
        self._commits: dict[str, dict[str, Path]] = {}
        self._revisions: dict[tuple[str, str], str] = {}
        self.closed: set[str] = set()

    def publish(self, repository: str, folder: Path, *, revision: str = "main") -> str:
        """Serve a folder as a commit of a repository, and let a revision name it."""
        content = [(p.name, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]
        commit = hashlib.sha1(repr(content).encode()).hexdigest()
        self._commits.setdefault(repository, {})[commit] = folder
        self._revisions[repository, revision] = commit
        return commit

    def commit(self, repository: str, revision: str) -> str | None:
        if revision in self._commits.get(repository, {}):
            return revision
        return self._revisions.get((repository, revision))

    def known(self, repository: str) -> bool:
        return repository in self._commits

    def files(self, repository: str, commit: str) -> dict[str, Path]:
        folder = self._commits[repository][commit]
        return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


@contextmanager
def serving() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = _Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def reached(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A Hub that the libraries reach, with a cache of its own: as the environment would say it."""
    with serving() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        api = path.removeprefix("api/models/")
        parts = (api if api != path else path).split("/")
        repository, rest = "/".join(parts[:2]), parts[2:]
        if not self.hub.known(repository):
            self._error(401, "RepoNotFound", body=body)
        elif repository in self.hub.closed:
            self._error(403, "GatedRepo", body=body)
        elif api != path:
            self._api(repository, rest, body=body)
        else:
            self._file(repository, rest, body=body)

    def _api(self, repository: str, rest: list[str], *, body: bool) -> None:
        commit = self.hub.commit(repository, rest[1] if rest else "main")
        if commit is None:
            self._error(404, "RevisionNotFound", body=body)
            return
        files = self.hub.files(repository, commit)
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": _etag(p)}
                for name, p in files.items()
            ]
            self._send(json.dumps(tree).encode(), {}, body=body)
            return
        info = {
            "id": repository,
            "modelId": repository,
            "sha": commit,
            "siblings": [{"rfilename": name} for name in files],
        }
        self._send(json.dumps(info).encode(), {}, body=body)

    def _file(self, repository: str, rest: list[str], *, body: bool) -> None:
        commit = self.hub.commit(repository, rest[1])
        file = self.hub.files(repository, commit or "").get("/".join(rest[2:]))
        if commit is None or file is None:
            self._error(404, "EntryNotFound", body=body)
            return
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit}
        self._send(file.read_bytes(), headers, body=body)

    def _send(self, data: bytes, headers: dict[str, str], *, body: bool, code: int = 200) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _error(self, code: int, kind: str, *, body: bool) -> None:
        self._send(b"{}", {"X-Error-Code": kind}, body=body, code=code)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
