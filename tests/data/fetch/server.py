"""A real HTTP server on loopback that breaks off, is busy, or has changed its file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    """What the server has, and how it behaves.

    ``cuts``: after how many bytes of its body each next answer breaks off. ``busy``: statuses of the next answers.
    ``ranges``: whether it can send a rest. ``seen``: the headers of each request.
    """

    content: dict[str, bytes]
    cuts: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    ranges: bool = True
    tag: str = '"one"'
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(files: Files) -> Iterator[Files]:
    """The server, until the block ends; `Files.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            files.seen.append(dict(self.headers))
            content = files.content.get(self.path.lstrip("/"))
            status = files.busy.pop(0) if files.busy else 200 if content is not None else 404
            if status != 200 or content is None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = self._start(len(content))
            if start > len(content) or (start and start == len(content)):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", files.tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            cut = files.cuts.pop(0) if files.cuts else len(content)
            self.wfile.write(content[start : start + cut])
            if start + cut < len(content):
                self.close_connection = True

        def _start(self, size: int) -> int:
            asked = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
            same = self.headers.get("If-Range", files.tag) == files.tag
            return int(asked) if files.ranges and same and asked else 0

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    files.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
