"""A stand-in for the Hugging Face Hub: the answers that huggingface_hub and datasets read, from folders, on this machine.

    with HubServer() as hub:
        hub.add("model", "Qwen/Qwen3-0.6B-Base", folder, commit)
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)})

Repositories have one commit, which `main` points to. Over http the library does not take a 401 for a missing repository, as
it does over https, so what is missing or private is a 404 here. Commands need the address before they import the library, so
they run as processes of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?|/(auth-check))?")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE = (".safetensors", ".parquet", ".zip")  # kept as large files: their ETag is the hash of their content
BROKEN = ("cut", "stall")
HANG = 60.0  # seconds that a hanging answer takes: longer than any time limit of the library


@dataclass
class Repository:
    folder: Path
    commit: str
    gated: bool

    def files(self) -> dict[str, Path]:
        return {p.relative_to(self.folder).as_posix(): p for p in sorted(self.folder.rglob("*")) if p.is_file()}


@dataclass
class Fault:
    """What goes wrong with requests whose path matches: a status, or `hang`; of files `cut`, where the connection ends after the
    first half, and `stall`, where nothing follows it."""

    path: re.Pattern[str]
    how: int | str
    left: int


@dataclass
class HubServer:
    """Serves while its `with` block lasts, or until `stop`; `asked` lists the requests as `METHOD path`."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, kind: str, name: str, folder: Path, commit: str, gated: bool = False) -> None:
        self.repositories[kind, name] = Repository(folder, commit, gated)

    def fail(self, path: str, how: int | str, times: int = 1000) -> None:
        """From now on requests whose path matches the expression go wrong, so many times."""
        self.faults.append(Fault(re.compile(path), how, times))

    def mend(self) -> None:
        self.faults.clear()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables that send a command here, with its caches below `home` and no token."""
        found = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        found |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        return found | more

    def __enter__(self) -> HubServer:
        self._start(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Meanwhile nobody listens at the address."""
        self._stop()
        yield
        self._start(self._server.server_port)

    def _start(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        how = self._fault(path)
        if how == "hang":
            time.sleep(HANG)
            self.close_connection = True
        elif isinstance(how, int):
            self._send(how)
        elif found := API.fullmatch(path):
            self._api(*found.groups(), query=parse_qs(parts.query), form=parse_qs(body))
        elif found := RESOLVE.fullmatch(path):
            self._resolve(*found.groups(), broken=how)
        else:
            self._send(200 if path == "/" else 404)

    do_HEAD = do_POST = do_GET

    def _fault(self, path: str) -> int | str | None:
        for fault in self.hub.faults:
            if fault.left and fault.path.search(path) and (fault.how not in BROKEN or self.command == "GET"):
                fault.left -= 1
                return fault.how
        return None

    def _repository(self, kind: str, name: str, revision: str | None) -> Repository | None:
        """The repository, or None when the answer is that there is none."""
        found = self.hub.repositories.get((kind, name))
        if found is None:
            self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in (None, "main", found.commit):
            self._send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"})
            return None
        return found

    def _api(
        self,
        kind: str,
        name: str,
        what: str | None,
        revision: str | None,
        path: str | None,
        check: str | None,
        query: dict[str, list[str]],
        form: dict[str, list[str]],
    ) -> None:
        repository = self._repository(kind, name, revision)
        if repository is None:
            return
        if check:
            self._gated() if repository.gated else self._send(200)
            return
        entries = _entries(repository)
        if what == "tree":
            inside = [e for e in entries if path is None or e["path"].startswith(f"{path}/")]
            if query.get("recursive") not in (["True"], ["true"]):
                depth = path.count("/") + 1 if path else 0
                inside = [e for e in inside if e["path"].count("/") == depth]
            if path is not None and not inside:
                self._send(404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._json(inside)
        elif what == "paths-info":
            self._json([e for e in entries if e["path"] in form.get("paths", [])])
        else:
            siblings = [{"rfilename": e["path"]} for e in entries if e["type"] == "file"]
            self._json({"id": name, "sha": repository.commit, "siblings": siblings, "gated": repository.gated})

    def _resolve(self, dataset: str | None, name: str, revision: str, path: str, broken: str | None) -> None:
        repository = self._repository("dataset" if dataset else "model", name, revision)
        if repository is None:
            return
        file = repository.files().get(path)
        if repository.gated:
            self._gated()
        elif file is None:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.commit})
        else:
            self._file(file, repository.commit, broken)

    def _gated(self) -> None:
        self._send(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this repository is restricted"})

    def _file(self, file: Path, commit: str, broken: str | None) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{_etag(file, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, total = 200, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or total - 1), total - 1)
            if first >= total:
                self._send(416, {"Content-Range": f"bytes */{total}"})
                return
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{total}"
        if broken is None:
            self._send(status, headers, content)
            return
        self._send(status, headers, content, half=True)
        if broken == "stall":
            time.sleep(HANG)

    def _json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", half: bool = False) -> None:
        """One answer; with `half` only that much of a body that is announced whole, and the connection ends after it."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
            self.wfile.flush()
        self.close_connection = self.close_connection or half


def _entries(repository: Repository) -> list[dict[str, Any]]:
    """The tree as the Hub lists it, folders included."""
    found: list[dict[str, Any]] = []
    folders: dict[str, None] = {}
    for path, file in repository.files().items():
        folders |= dict.fromkeys(parent.as_posix() for parent in reversed(Path(path).parents) if parent.name)
        content = file.read_bytes()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
        if file.suffix in LARGE:
            entry["lfs"] = {"oid": _etag(file, content), "size": len(content), "pointerSize": 130}
        found.append(entry)
    return [{"type": "directory", "path": f, "oid": _blob(f.encode()), "size": 0} for f in folders] + found


def _etag(file: Path, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if file.suffix in LARGE else _blob(content)


def _blob(content: bytes) -> str:
    """The identifier that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
