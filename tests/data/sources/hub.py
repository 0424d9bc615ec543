"""A folder as a data set or a model of the hub of Hugging Face, over HTTP: what its client asks to list and to read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_COMMIT = "0" * 40


@contextmanager
def hub(folder: Path, name: str = "us/talks", kind: str = "datasets") -> Iterator[str]:
    """Serves the files of ``folder`` as the data set (or of ``models``) ``name``; yields the address of the hub."""
    prefix = "" if kind == "models" else f"/{kind}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            tree = f"/api/{kind}/{name}/tree/main"
            file = f"{prefix}/{name}/resolve/main/"
            if path.startswith(tree):
                self._json(_listed(folder, path[len(tree) :].strip("/")))
            elif path.startswith(f"/api/{kind}/{name}"):
                self._json({"id": name, "sha": _COMMIT, "siblings": []})
            elif path.startswith(file) and (folder / path[len(file) :]).is_file():
                self._file((folder / path[len(file) :]).read_bytes())
            else:
                self._error()

        do_HEAD = do_GET

        def do_POST(self) -> None:
            given = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked = json.loads(given)["paths"] if given.startswith("{") else [unquote(given.partition("=")[2])]
            self._json([_entry(folder, folder / path) for path in asked if (folder / path).exists()])

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, data: bytes) -> None:
            asked = self.headers.get("Range")
            if asked is None:
                self._send(200, data, {"ETag": '"x"', "X-Repo-Commit": _COMMIT})
                return
            first, last = asked.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            self._send(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})

        def _error(self) -> None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _listed(folder: Path, below: str) -> list[dict[str, Any]]:
    return [_entry(folder, path) for path in sorted((folder / below).rglob("*"))]


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name, oid = str(path.relative_to(folder)), "0" * 40
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": oid, "size": 0}
    return {"type": "file", "path": name, "oid": oid, "size": path.stat().st_size}
